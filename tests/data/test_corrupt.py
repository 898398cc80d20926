"""Corrupt images: skipped, replaced, counted, named and refused beyond the limit."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gendd.config import DataConfig
from gendd.data import Batch, Data, ImageSet, eval_loader, load_data, train_loader
from gendd.data.corrupt import Skipped, allowed, substitutes
from gendd.data.decoding import decode
from gendd.data.encoded import Files, probe
from gendd.errors import UserError
from gendd.processes import share

COUNT = 12


def _files(folder: Path, corrupt: tuple[int, ...], kind: str = "png") -> ImageSet:
    """Image i is labelled i and filled with 10·i; the corrupt ones are cut short."""
    paths = []
    for number in range(COUNT):
        path = folder / f"{number:02}.{kind}"
        pixels = np.full((8, 8, 3), 10 * number, np.uint8)
        pixels[0] = np.random.default_rng(number).integers(0, 256, (8, 3))
        Image.fromarray(pixels).save(path)
        if number in corrupt:
            path.write_bytes(path.read_bytes()[:-30])
        paths.append(str(path))
    return ImageSet(Files(paths), torch.arange(COUNT), 3, 8, max_corrupt=0.3, skipped=Skipped("test"))


def _data(images: ImageSet, augment: str = "none") -> Data:
    return Data("files", images, None, images, [str(label) for label in range(COUNT)], 3, 8, augment)


def _shown(batches: list[Batch]) -> list[tuple[int, int]]:
    """The image numbers (tens of the pixels) and labels of a batch."""
    found = []
    for batch in batches:
        assert batch.labels is not None
        shades = (batch.images[:, 0, 4, 4] * 25.5).round().long()
        found += list(zip(shades.tolist(), batch.labels.tolist(), strict=True))
    return found


def test_how_many_are_allowed() -> None:
    assert [allowed(100, share) for share in (0, 0.009, 0.01, 0.29, 0.57, 0.999)] == [0, 0, 1, 29, 57, 99]
    assert (allowed(1, 0.999), allowed(10, 0.99999), allowed(0, 0.5)) == (0, 9, 0)


def test_substitutes_go_around() -> None:
    assert list(substitutes(4, 6, 3)) == [4, 5, 0, 1]
    assert list(substitutes(4, 6, 0)) == [4]
    assert list(substitutes(1, 3, 10)) == [1, 2, 0]


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp"])
def test_every_kind_cut_short_is_corrupt(tmp_path: Path, kind: str) -> None:
    images = _files(tmp_path, (1, 2), kind)
    for index in (1, 2):
        with pytest.raises(UserError, match="can't be decoded"):
            images.original(index)
    assert images.original(3).shape == (3, 8, 8)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_raise_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raised = 0
    for kind in ("png", "jpg", "webp", "gif", "tif", "bmp"):
        path = tmp_path / f"a.{kind}"
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 8):
                damaged[place] = rng.integers(0, 256)
            with contextlib.suppress(UserError):
                decode(bytes(damaged), "it", 3)
                raised -= 1
            raised += 1
    assert raised > 60


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_them_out(tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    images = _files(tmp_path, (0, 4, 5))
    wanted = [(number, number) for number in range(COUNT) if number not in (0, 4, 5)]
    # the batch of only 4 and 5 is left out
    batches = list(eval_loader(images, 2, workers=workers))
    assert [len(batch.images) for batch in batches] == [1, 2, 2, 2, 2]
    assert _shown(batches) == wanted
    assert list(images.skipped.names) == [repr(str(tmp_path / f"{number:02}.png")) for number in (0, 4, 5)]
    told = capsys.readouterr().err.splitlines()
    assert told[0] == (f"skipped a test image that can't be decoded: {str(tmp_path / '00.png')!r}")
    list(eval_loader(images, 2, workers=workers))
    assert len(told) == 3 and capsys.readouterr().err == ""
    loaded = images.loaded("x")
    assert len(loaded) == 9 and _shown(list(eval_loader(loaded, 4))) == wanted


@pytest.mark.parametrize("workers", [0, 2])
def test_training_takes_the_next_one(tmp_path: Path, workers: int) -> None:
    images = _files(tmp_path, (4, 5, 11))
    config = DataConfig(batch_size=4, workers=workers)
    stands_for = {4: 6, 5: 6, 11: 0}
    for epoch in range(2):
        batches = list(train_loader(_data(images), config, seed=0, epoch=epoch))
        assert [len(batch.images) for batch in batches] == [4, 4, 4]
        sound = replace(images, source=torch.zeros(COUNT, 3, 8, 8, dtype=torch.uint8))
        order = [label for _, label in _shown(list(train_loader(_data(sound), config, seed=0, epoch=epoch)))]
        assert _shown(batches) == [(stands_for.get(label, label),) * 2 for label in order]
    loaded = images.loaded("x", full=True)
    assert loaded.labels is not None and len(loaded) == COUNT
    assert loaded.labels.tolist() == [stands_for.get(label, label) for label in range(COUNT)]
    held = images.held("x")
    assert torch.equal(loaded.images(range(COUNT))[:, 0, 4, 4], loaded.labels.to(torch.uint8) * 10)
    # streamed, held encoded and decoded ahead are the same images
    for other in (loaded, held):
        found = list(train_loader(_data(other), config, seed=0, epoch=1))
        assert all(torch.equal(a.images, b.images) for a, b in zip(found, batches, strict=True))


@pytest.mark.parametrize("augment", ["crop-flip", "resized-crop"])
def test_what_takes_a_place_is_a_function_of_the_epoch(tmp_path: Path, augment: str) -> None:
    images = replace(_files(tmp_path, (4, 5, 11)), max_corrupt=0.6)

    def epoch(workers: int, rank: int = 0, world_size: int = 1, size: int = 3) -> Tensor:
        config = DataConfig(batch_size=size, workers=workers)
        loader = train_loader(
            _data(images, augment), config, seed=0, epoch=3, rank=rank, world_size=world_size
        )
        return torch.stack([batch.images for batch in loader])

    alone = epoch(0, size=6)
    assert torch.equal(alone, epoch(2, size=6))
    # two processes share each step's images
    shares = torch.cat([epoch(0, rank, 2) for rank in range(2)], 1)
    places = torch.cat([share(6, rank, 2) for rank in range(2)])
    assert torch.equal(alone[:, places], shares)


def test_beyond_the_limit(tmp_path: Path) -> None:
    images = replace(_files(tmp_path, (1, 4, 5, 8)), skipped=Skipped("training"))
    message = (
        "data.max_corrupt: expected at most 3 of 12 training images that can't be decoded, got more, the "
        f"last {str(tmp_path / '08.png')!r}; replace or remove them, or raise it."
    )
    for give in (lambda: images.loaded("x"), lambda: list(eval_loader(images, 5, workers=2))):
        with pytest.raises(UserError) as caught:
            give()
        assert str(caught.value) == message
    with pytest.raises(UserError, match=r"^data.max_corrupt: expected at most 3 of 12 training images"):
        list(train_loader(_data(images), DataConfig(batch_size=4, workers=0), seed=0, epoch=0))
    strict = replace(images, max_corrupt=0.0, skipped=Skipped())
    for give in (lambda: strict.loaded("x"), lambda: list(eval_loader(strict, 5))):
        with pytest.raises(UserError) as caught:
            give()
        assert str(caught.value) == (
            f"Expected an image, got {str(tmp_path / '01.png')!r}, which can't be decoded; "
            "replace or remove it."
        )
    assert len(strict.skipped) == 0


def test_the_readable_ones_of_some(tmp_path: Path) -> None:
    pixels, used = _files(tmp_path, (4, 5)).readable([3, 5, 8])
    assert used.tolist() == [3, 8] and (pixels[:, 0, 4, 4] // 10).tolist() == [3, 8]
    pixels, used = _files(tmp_path, (4, 5)).readable([5])
    assert len(used) == 0 and pixels.shape == (0, 3, 8, 8)


def test_a_file_that_is_gone_is_skipped_too(tmp_path: Path) -> None:
    images = _files(tmp_path, ())
    (tmp_path / "03.png").unlink()
    wanted = [number for number in range(COUNT) if number != 3]
    for found in (images, images.held("x"), images.loaded("x")):
        assert [label for _, label in _shown(list(eval_loader(found, 5)))] == wanted
    with pytest.raises(UserError, match="Expected a readable image file"):
        replace(images, max_corrupt=0.0).held("x")


def test_probing_passes_over_them(tmp_path: Path) -> None:
    images = _files(tmp_path, ())
    assert isinstance(images.source, Files)
    (tmp_path / "00.png").write_bytes(b"nothing")
    assert probe(images.source) == ({(8, 8)}, False)
    with pytest.raises(UserError, match=r"00.png', which can't be decoded"):
        probe(Files(images.source.paths[:1]))


def test_they_are_named_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "logs" / "skipped.txt"
    skipped, other = Skipped("training"), Skipped("test")
    skipped.add("'a'")
    for each in (skipped, other):
        each.record(file)
    for number in range(15):
        skipped.add(str(number % 12))
    other.add("'b'")
    lines = ["training: 'a'", *(f"training: {number}" for number in range(12)), "test: 'b'"]
    assert file.read_text().splitlines() == lines
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 12 and told[10] == f"further skipped training images are listed in {file}"
    again = Skipped("training")
    again.add("5")
    again.record(file)
    again.add("'a'")
    again.add("'c'")
    assert len(again) == 14 and file.read_text().splitlines() == [*lines, "training: 'c'"]
    list(map((alone := Skipped()).add, map(str, range(12))))
    assert capsys.readouterr().err.splitlines()[-1] == "further skipped set images are not listed"
    assert len(alone) == 12


def test_a_set_with_some(tmp_path: Path) -> None:
    for split, count in (("train", 40), ("test", 20)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count // 2):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / split / name / f"{number:02}.png")
    for bad in ("train/a/07.png", "test/b/00.png"):
        (tmp_path / bad).write_bytes(b"")
    how: dict[str, Any] = {"image_size": 8, "validation": 0, "max_corrupt": 0.05, "workers": 0}
    config = DataConfig("folder", str(tmp_path), batch_size=40, **how)
    for in_memory in (True, False):
        data = load_data(replace(config, in_memory=in_memory))
        labels = _labels(list(train_loader(data, config, seed=0, epoch=0)))
        assert sorted(labels) == [0] * 20 + [1] * 20
        assert sorted(_labels(list(eval_loader(data.test, 8)))) == [0] * 10 + [1] * 9
        assert [(each.part, len(each)) for each in data.skipped] == [("training", 1), ("test", 1)]
    with pytest.raises(UserError, match=r"got '.*07.png', which can't be decoded; replace or remove it.$"):
        load_data(replace(config, max_corrupt=0.0))


def _labels(batches: list[Batch]) -> list[int]:
    return [label for batch in batches if batch.labels is not None for label in batch.labels.tolist()]
