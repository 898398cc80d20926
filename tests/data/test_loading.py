from __future__ import annotations

from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from gendd.config import DataConfig
from gendd.data import Batch, Data, ImageSet, eval_loader, train_loader
from gendd.data.augment import draw_boxes, draw_flips
from gendd.data.draws import keyed_generator
from gendd.data.encoded import Files
from gendd.errors import UserError
from gendd.processes import share
from gendd.training.device import with_images_on


def _data(count: int, augment: str = "none", labelled: bool = True) -> Data:
    """Image i is filled with the value i, and labelled i."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 8, 8)
    images = ImageSet(pixels, torch.arange(count) if labelled else None, 1, 8)
    return Data("numbers", images, None, images, [str(label) for label in range(count)], 1, 8, augment)


def _streamed(tmp_path: Path, count: int, augment: str) -> Data:
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        path = str(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    images = ImageSet(Files(paths), torch.arange(count), 3, 8)
    return Data("files", images, None, images, [str(label) for label in range(count)], 3, 8, augment)


def _labels(batches: list[Batch]) -> list[int]:
    return [label for batch in batches if batch.labels is not None for label in batch.labels.tolist()]


def _equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(_of(a), _of(b))
        for a, b in zip(first, second, strict=True)
    )


def _of(batch: Batch) -> Tensor:
    assert batch.labels is not None
    return batch.labels


def test_evaluation_gives_everything_once_in_order() -> None:
    loader = eval_loader(_data(10).test, 4)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert [len(batch.images) for batch in batches] == [4, 4, 2]
    assert _labels(batches) == list(range(10))
    pixels = torch.cat([batch.images for batch in batches])
    assert pixels.dtype == torch.float32 and pixels.shape == (10, 1, 8, 8)
    torch.testing.assert_close(pixels[:, 0, 0, 0], torch.arange(10) / 255, rtol=0, atol=0)


def test_evaluation_shares_are_disjoint_and_complete() -> None:
    parts = [_labels(list(eval_loader(_data(10).test, 3, rank=rank, world_size=4))) for rank in range(4)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    parts = [_labels(list(eval_loader(_data(4).test, 3, rank=rank, world_size=3))) for rank in range(3)]
    assert parts == [[0, 1, 2], [3], []]


def test_training_drops_the_part_of_a_batch() -> None:
    config = DataConfig(batch_size=4)
    loader = train_loader(_data(10), config, seed=0, epoch=0)
    batches = list(loader)
    assert len(loader) == 2 and [len(batch.images) for batch in batches] == [4, 4]
    assert len(set(_labels(batches))) == 8
    for batch in batches:
        assert torch.equal((batch.images[:, 0, 0, 0] * 255).round().long(), _of(batch))


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    loader = train_loader(_data(10), DataConfig(batch_size=64), seed=0, epoch=0)
    batches = list(loader)
    assert len(loader) == 1 and sorted(_labels(batches)) == list(range(10))


@pytest.mark.parametrize("augment", ["none", "crop", "crop-flip", "resized-crop"])
def test_an_epoch_repeats_exactly(augment: str) -> None:
    config, data = DataConfig(batch_size=8), _data(200, augment)
    before = torch.random.get_rng_state()
    loader = train_loader(data, config, seed=3, epoch=5)
    first = list(loader)
    assert _equal(first, list(loader))
    torch.rand(7)
    assert _equal(first, list(train_loader(data, config, seed=3, epoch=5)))
    torch.random.set_rng_state(before)
    for seed, epoch in ((3, 6), (4, 5), (5, 3)):
        assert _labels(first) != _labels(list(train_loader(data, config, seed=seed, epoch=epoch)))


def test_iterating_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    for data in (_data(16, "crop-flip"), _streamed(tmp_path, 4, "resized-crop")):
        list(train_loader(data, DataConfig(batch_size=4, workers=0), seed=0, epoch=0))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("augment", ["none", "crop", "crop-flip", "resized-crop"])
@pytest.mark.parametrize(("batch_size", "world_size"), [(12, 1), (6, 2), (4, 3), (3, 4), (1, 12)])
def test_processes_share_each_step(augment: str, batch_size: int, world_size: int) -> None:
    data = _data(26, augment)
    whole = list(train_loader(data, DataConfig(batch_size=12), seed=0, epoch=1))
    parts = [
        list(
            train_loader(
                data, DataConfig(batch_size=batch_size), seed=0, epoch=1, rank=rank, world_size=world_size
            )
        )
        for rank in range(world_size)
    ]
    assert len(whole) == 2
    for step, batch in enumerate(whole):
        given = torch.cat([part[step].images for part in parts])
        places = torch.cat([share(12, rank, world_size) for rank in range(world_size)])
        assert torch.equal(batch.images[places], given)
        assert torch.equal(_of(batch)[places], torch.cat([_of(part[step]) for part in parts]))


@pytest.mark.parametrize("augment", ["crop-flip", "resized-crop"])
def test_augmentation_does_not_depend_on_the_batches(augment: str) -> None:
    first, second = (
        torch.cat(
            [
                batch.images
                for batch in train_loader(_data(24, augment), DataConfig(batch_size=size), seed=0, epoch=1)
            ]
        )
        for size in (4, 12)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("augment", ["none", "crop-flip", "resized-crop"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_since_one_are_the_rest(augment: str, in_memory: bool, tmp_path: Path) -> None:
    data = _data(26, augment) if in_memory else _streamed(tmp_path, 26, augment)
    loader = train_loader(data, DataConfig(batch_size=4, workers=0), seed=0, epoch=1)
    whole = list(loader)
    for first in (0, 1, 5, 6):
        rest = loader.since(first)
        assert len(rest) == len(whole) == 6
        found = list(rest)
        assert len(found) == 6 - first
        for batch, other in zip(found, whole[first:], strict=True):
            assert torch.equal(batch.images, other.images)
            assert batch.labels is None or torch.equal(batch.labels, other.labels)


def test_ranks_augment_differently() -> None:
    data = _data(2, "resized-crop")
    data = replace(
        data, train=ImageSet(torch.arange(64).to(torch.uint8).view(1, 1, 8, 8).repeat(2, 1, 1, 1), None, 1, 8)
    )
    first, second = (
        next(iter(train_loader(data, DataConfig(), seed=0, epoch=0, rank=rank, world_size=2)))
        for rank in range(2)
    )
    assert first.labels is None and not torch.equal(first.images, second.images)


def test_more_processes_than_images() -> None:
    with pytest.raises(UserError, match="got 3 for 2") as caught:
        train_loader(_data(2), DataConfig(), seed=0, epoch=0, world_size=3)
    # No config key determines this.
    assert "training." not in str(caught.value)


def test_every_epoch_sees_other_images_of_the_rest() -> None:
    seen = set()
    for epoch in range(10):
        seen |= set(_labels(list(train_loader(_data(10), DataConfig(batch_size=8), seed=0, epoch=epoch))))
    assert seen == set(range(10))


@pytest.mark.parametrize("augment", ["crop-flip", "resized-crop"])
def test_workers_do_not_change_what_is_streamed(tmp_path: Path, augment: str) -> None:
    data = _streamed(tmp_path, 10, augment)
    alone, helped = (
        list(train_loader(data, DataConfig(batch_size=4, workers=workers), seed=0, epoch=0))
        for workers in (0, 2)
    )
    assert _equal(alone, helped) and len(alone) == 2
    later = list(train_loader(data, DataConfig(batch_size=4, workers=0), seed=0, epoch=1))
    assert not _equal(alone, later)
    plain = list(
        train_loader(replace(data, augment="none"), DataConfig(batch_size=4, workers=0), seed=0, epoch=0)
    )
    assert _labels(plain) == _labels(alone) and not _equal(plain, alone)


CHANGED = {"randaugment": "rand-m9-n2-p1.0", "color_jitter": 0.4, "erase_prob": 1.0}


@pytest.mark.parametrize("augment", ["none", "crop-flip", "resized-crop"])
@pytest.mark.parametrize("changes", [*({key: value} for key, value in CHANGED.items()), CHANGED])
def test_appearance_is_of_seed_epoch_and_image(tmp_path: Path, augment: str, changes: dict[str, Any]) -> None:
    data = _streamed(tmp_path, 10, augment)
    config = DataConfig(batch_size=4, workers=0, **changes)

    def batches(epoch: int = 0, seed: int = 0, **more: Any) -> list[Batch]:
        return list(train_loader(data, replace(config, **more), seed=seed, epoch=epoch))

    before = torch.random.get_rng_state()
    first = batches()
    assert torch.equal(before, torch.random.get_rng_state())
    assert _equal(first, batches(workers=2)) and not _equal(first, batches(epoch=1))
    plain = batches(randaugment=None, color_jitter=0.0, erase_prob=0.0)
    assert _labels(plain) == _labels(first) and not _equal(plain, first)

    def by_label(found: list[Batch]) -> dict[int, Tensor]:
        rows = [
            (int(label), image)
            for batch in found
            for image, label in zip(batch.images, _of(batch), strict=True)
        ]
        return dict(rows)

    # independent of the batch and process an image is in
    alone = by_label(batches(batch_size=1))
    assert all(torch.equal(image, alone[label]) for label, image in by_label(first).items())
    shares = [train_loader(data, config, seed=0, epoch=0, rank=rank, world_size=2) for rank in range(2)]
    shared = by_label([batch for share in shares for batch in share])
    assert all(torch.equal(image, alone[label]) for label, image in shared.items()) and len(shared) == 8


@pytest.mark.parametrize("augment", ["none", "crop", "crop-flip", "resized-crop"])
def test_appearance_is_the_same_in_memory(augment: str) -> None:
    data = _data(200, augment)
    config = DataConfig(batch_size=8, workers=0, **CHANGED)
    held = list(train_loader(data, config, seed=0, epoch=0))
    assert _equal(held, list(train_loader(data, replace(config, workers=2), seed=0, epoch=0)))
    pixels = (held[0].images * 255).round()
    assert pixels.shape == (8, 1, 8, 8) and not torch.equal(pixels[:, 0, 0, 0].long(), _of(held[0]))
    # images in memory are not modified, and evaluation sees the originals
    assert torch.equal(data.train.images(range(200))[:, 0, 3, 3], torch.arange(200, dtype=torch.uint8))
    shown = torch.cat([batch.images for batch in eval_loader(data.test, 50)])
    assert torch.equal((shown[:, 0, 0, 0] * 255).round().long(), torch.arange(200))


def test_resized_crops_are_bicubic_where_asked(tmp_path: Path) -> None:
    data = _streamed(tmp_path, 4, "resized-crop")
    config = DataConfig(batch_size=4, workers=0, crop_interpolation="bicubic")
    (found,) = train_loader(data, config, seed=1, epoch=2)
    for image, label in zip(found.images, _of(found).tolist(), strict=True):
        generator = keyed_generator(1, 2, "image", label)
        original = data.train.original(label)
        top, left, tall, wide = draw_boxes(1, *original.shape[-2:], config.crop_scale, generator)[0].tolist()
        crop = VF.resize(
            original[:, top : top + tall, left : left + wide],
            [8, 8],
            interpolation=VF.InterpolationMode.BICUBIC,
            antialias=True,
        )
        wanted = crop.flip(-1) if bool(draw_flips(1, generator)) else crop
        assert torch.equal(image, wanted / 255)
    (bilinear,) = train_loader(data, replace(config, crop_interpolation="bilinear"), seed=1, epoch=2)
    assert not torch.equal(bilinear.images, found.images)
    assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1


def test_bicubic_crops_of_held_images_are_those_of_streamed_ones(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=keyed_generator("pixels"))
    paths = [str(tmp_path / f"{index}.png") for index in range(4)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    config = DataConfig(batch_size=4, workers=0, crop_interpolation="bicubic")
    found = []
    for source in (pixels, Files(paths)):
        images = ImageSet(source, torch.arange(4), 3, 8)
        data = Data("x", images, None, images, list("abcd"), 3, 8, "resized-crop")
        found.append(list(train_loader(data, config, seed=0, epoch=0)))
    assert _equal(*found)


def test_streamed_evaluation_equals_memory(tmp_path: Path) -> None:
    data = _streamed(tmp_path, 5, "none")
    assert _equal(list(eval_loader(data.test, 2)), list(eval_loader(data.test.loaded("x"), 2)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_streamed_image_is_named_on_one_line(tmp_path: Path, workers: int) -> None:
    data = _streamed(tmp_path, 6, "none")
    (tmp_path / "3.png").write_bytes(b"nothing")
    with pytest.raises(UserError) as caught:
        list(eval_loader(data.test, 2, workers=workers))
    assert "3.png" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("cuda", [True, False])
@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_are_pinned_where_there_is_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool, cuda: bool
) -> None:
    data = _data(4) if in_memory else _streamed(tmp_path, 4, "none")
    plain = list(eval_loader(data.test, 2))
    pinned: list[int] = []
    empty = torch.empty

    def recorded(*shape: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        made = empty(*shape, **options)
        if pin_memory:
            pinned.append(made.data_ptr())
        return made

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch, "empty", recorded)
    batches = list(eval_loader(data.test, 2))
    given = [tensor.data_ptr() for batch in batches for tensor in (batch.images, _of(batch))]
    assert pinned == (given if cuda else [])
    assert _equal(batches, plain)


def test_a_stream_left_early_leaves_no_worker(tmp_path: Path) -> None:
    batches = iter(eval_loader(_streamed(tmp_path, 8, "none").test, 2, workers=2))
    before = len(active_children())
    next(batches)
    assert len(active_children()) == before + 2
    del batches
    assert len(active_children()) == before


def test_batch_moves_as_one() -> None:
    batch = Batch(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64)).to("meta")
    assert batch.images.device.type == "meta" and _of(batch).device.type == "meta"
    assert Batch(torch.zeros(1, 1, 2, 2), None).to("cpu").labels is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("augment", ["none", "crop-flip", "resized-crop"])
def test_images_on_a_device_give_the_same_batches(augment: str) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50, 3, 16, 16), dtype=torch.uint8, generator=generator)
    images = ImageSet(pixels, torch.arange(50), 3, 16)
    data = Data("noise", images, None, images, [str(label) for label in range(50)], 3, 16, augment)
    there = with_images_on(data, torch.device("cuda"))
    config = DataConfig(batch_size=8)
    host, device = (list(train_loader(each, config, seed=0, epoch=1)) for each in (data, there))
    assert all(batch.images.is_cuda and _of(batch).is_cuda for batch in device)
    back = [batch.to("cpu") for batch in device]
    if augment != "resized-crop":
        assert _equal(host, back)
        return
    # interpolated in another order of operations
    for one, two in zip(host, back, strict=True):
        assert torch.equal(_of(one), _of(two))
        assert (one.images - two.images).abs().max() < 1.5 / 255


def test_images_stay_in_memory_without_cuda_or_if_they_stream(tmp_path: Path) -> None:
    data, streamed = _data(4), _streamed(tmp_path, 4, "none")
    assert with_images_on(data, torch.device("cpu")) is data
    assert with_images_on(streamed, torch.device("cuda")) is streamed


def test_a_set_larger_than_a_quarter_of_the_free_memory_stays_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = _data(4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * 4 * 64 - 1, 10**9))
    assert with_images_on(data, torch.device("cuda")) is data
