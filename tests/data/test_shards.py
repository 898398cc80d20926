"""Training images streamed from tar shards that are written here."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, load_fails
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from gendd.cli import main
from gendd.config import DataConfig
from gendd.data import (
    Batch,
    Data,
    ImageSet,
    Shards,
    describe,
    eval_loader,
    load_data,
    sample_loader,
    train_loader,
)
from gendd.data.encoded import Files, Held
from gendd.data.shards import STREAMS
from gendd.errors import UserError
from gendd.evaluation.long_tail import shots_of
from gendd.methods import GenDD
from gendd.models import create_backbone
from gendd.run import Run, evaluate_run

SHARDS, EACH, SIDE = 8, 12, 8


def picture(value: int, kind: str = "PNG") -> bytes:
    """An image filled with a value unique in these sets."""
    stream = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (value % 256, value // 256, 7)).save(stream, kind)
    return stream.getvalue()


def write_tar(path: Path, files: Sequence[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            # a fraction of a second costs a header of its own, as webdataset's writer leaves them
            member.mtime = 1.5
            tar.addfile(member, io.BytesIO(content))
    return path


def captioned(number: int, suffix: str = "png") -> list[tuple[str, bytes]]:
    name = f"{number:05d}"
    return [(f"{name}.{suffix}", picture(number)), (f"{name}.txt", b"a caption"), (f"{name}.json", b"{}")]


def labelled(number: int, label: bytes | None = None) -> list[tuple[str, bytes]]:
    name = f"{number:05d}"
    content = str(number % 4).encode() if label is None else label
    return [(f"{name}.png", picture(number)), (f"{name}.cls", content)]


def write_shards(
    folder: Path, sample: Callable[[int], list[tuple[str, bytes]]] = captioned, counts: Sequence[int] = ()
) -> list[Path]:
    """Write shards whose images are numbered consecutively."""
    paths, first = [], 0
    for shard, count in enumerate(counts or [EACH] * SHARDS):
        files = [file for number in range(first, first + count) for file in sample(number)]
        paths.append(write_tar(folder / f"{shard:04d}.tar", files))
        first += count
    return paths


def write_classes(folder: Path, classes: int = 4) -> Path:
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(3):
            (folder / f"class{label}" / f"{number}.png").write_bytes(picture(60_000 + label))
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Settings of a set of 8 unlabelled shards with a folder of classes for testing; nothing held out."""
    write_shards(tmp_path / "train")
    return {
        "name": "webdataset",
        "path": str(tmp_path / "train"),
        "test_path": str(write_classes(tmp_path / "val")),
        "image_size": SIDE,
        "validation": 0.0,
        "augment": "none",
        "batch_size": 4,
        "workers": 0,
    }


def seen(batches: Sequence[Batch]) -> list[int]:
    """The numbers of the images."""
    pixels = torch.cat([batch.images for batch in batches])
    return numbers((pixels * 255).round())


def numbers(pixels: Tensor) -> list[int]:
    corner = pixels[:, :, 0, 0].long()
    return (corner[:, 0] + 256 * corner[:, 1]).tolist()


def equal(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True)
    )


def epoch_of(data: Data, config: DataConfig, epoch: int = 0, seed: int = 0, **place: int) -> list[Batch]:
    return list(train_loader(data, config, seed=seed, epoch=epoch, **place))


# --- every image once --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_two_processes_gives_every_image_once(settings: dict[str, Any], workers: int) -> None:
    config = DataConfig(**settings | {"workers": workers})
    data = load_data(config)
    loaders = [train_loader(data, config, seed=0, epoch=0, rank=rank, world_size=2) for rank in range(2)]
    parts = [list(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(part) for part in parts] == [12, 12]
    assert sorted(seen(parts[0]) + seen(parts[1])) == list(range(SHARDS * EACH))
    assert all(batch.images.shape == (4, 3, SIDE, SIDE) and batch.labels is None for batch in parts[0])


def test_shards_of_unequal_length_are_shared_evenly(settings: dict[str, Any], tmp_path: Path) -> None:
    counts = [3, 40, 1, 17, 29]
    write_shards(tmp_path / "uneven", counts=counts)
    config = DataConfig(**settings | {"path": str(tmp_path / "uneven"), "batch_size": 5})
    data = load_data(config)
    parts = [epoch_of(data, config, rank=rank, world_size=3) for rank in range(3)]
    assert [len(part) for part in parts] == [6, 6, 6]
    assert sorted(number for part in parts for number in seen(part)) == list(range(90))


def test_more_steps_than_streams_and_a_rest(settings: dict[str, Any], tmp_path: Path) -> None:
    write_shards(tmp_path / "many", counts=[50, 61])
    config = DataConfig(**settings | {"path": str(tmp_path / "many"), "batch_size": 2})
    batches = epoch_of(load_data(config), config)
    assert len(batches) == 55 > 2 * STREAMS
    assert len(set(seen(batches))) == 110


def test_fewer_images_than_a_batch_are_one(settings: dict[str, Any]) -> None:
    config = DataConfig(**settings | {"batch_size": 1000})
    batches = epoch_of(load_data(config), config)
    assert len(batches) == 1 and sorted(seen(batches)) == list(range(96))
    with pytest.raises(UserError, match="got 97 for 96"):
        epoch_of(load_data(config), config, world_size=97)


# --- order -------------------------------------------------------------------------------------------


def test_the_order_is_that_of_seed_epoch_and_process_alone(settings: dict[str, Any]) -> None:
    config = DataConfig(**settings)
    state = torch.random.get_rng_state()
    data = load_data(config)
    loader = train_loader(data, config, seed=0, epoch=0)
    first = list(loader)
    assert equal(first, list(loader))
    # as in a resumed run: independent of earlier epochs and the number of workers
    assert equal(first, epoch_of(load_data(config), config))
    assert equal(first, epoch_of(data, replace(config, workers=2)))
    assert torch.equal(state, torch.random.get_rng_state())
    for other in ({"epoch": 1}, {"seed": 1}):
        batches = epoch_of(data, config, **other)
        assert sorted(seen(batches)) == sorted(seen(first)) and seen(batches) != seen(first)


def test_images_are_shuffled_within_the_buffer(settings: dict[str, Any], tmp_path: Path) -> None:
    write_shards(tmp_path / "one", counts=[96])
    config = DataConfig(**settings | {"path": str(tmp_path / "one"), "batch_size": 96})
    data = load_data(config)
    assert seen(epoch_of(data, replace(config, shuffle_buffer=1))) == list(range(96))
    shuffled = seen(epoch_of(data, config))
    assert sorted(shuffled) == list(range(96)) and shuffled != sorted(shuffled)
    near = seen(epoch_of(data, replace(config, shuffle_buffer=4 * STREAMS)))
    # image i leaves a buffer of 4 at place i - 3 at the earliest
    assert near != sorted(near) and all(number <= place + 3 for place, number in enumerate(near))


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_drawn_by_place(settings: dict[str, Any], tmp_path: Path, workers: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    write_tar(tmp_path / "same" / "0.tar", [(f"{number}.png", stream.getvalue()) for number in range(8)])
    given = settings | {"path": str(tmp_path / "same"), "augment": "resized-crop", "workers": workers}
    config = DataConfig(**given)
    data = load_data(config)
    batches = epoch_of(data, config)
    images = torch.cat([batch.images for batch in batches]).flatten(1)
    assert len(images.unique(dim=0)) == 8
    assert equal(batches, epoch_of(data, config)) and not equal(batches, epoch_of(data, config, epoch=1))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"randaugment": "rand-m9-n2-mstd0.5", "color_jitter": 0.4, "erase_prob": 1.0},
        {"crop_interpolation": "bicubic"},
    ],
)
def test_augmentation_is_that_of_other_streamed_sets(
    settings: dict[str, Any], tmp_path: Path, more: dict[str, Any]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    write_tar(tmp_path / "one" / "0.tar", [("0.png", stream.getvalue())])
    config = DataConfig(**settings | {"path": str(tmp_path / "one"), "augment": "resized-crop"} | more)
    data = load_data(config)
    (batch,) = epoch_of(data, config, seed=3, epoch=5)
    (tmp_path / "0.png").write_bytes(stream.getvalue())
    alone = ImageSet(Files([str(tmp_path / "0.png")]), None, 3, SIDE)
    (wanted,) = epoch_of(replace(data, train=alone), config, seed=3, epoch=5)
    assert torch.equal(batch.images, wanted.images)
    plain = replace(config, randaugment=None, color_jitter=0.0, erase_prob=0.0, crop_interpolation="bilinear")
    (other,) = epoch_of(data, plain, seed=3, epoch=5)
    assert torch.equal(batch.images, other.images) == (not more)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_is_of_whole_images_each_once(
    settings: dict[str, Any], tmp_path: Path, workers: int
) -> None:
    write_shards(tmp_path / "labelled", labelled)
    config = DataConfig(**settings | {"path": str(tmp_path / "labelled"), "augment": "resized-crop"})
    train = load_data(config).train
    batches = list(sample_loader(train, 5, 30, workers))
    assert [len(batch.images) for batch in batches] == [5] * 6
    taken = seen(batches)
    # from three shards of twelve images, not augmented
    assert len(set(taken)) == 30 and len({number // EACH for number in taken}) == 3
    labels = [batch.labels for batch in batches if batch.labels is not None]
    assert torch.cat(labels).tolist() == [number % 4 for number in taken]
    assert equal(batches, list(sample_loader(train, 5, 30)))
    assert sorted(seen(list(sample_loader(train, 8)))) == list(range(SHARDS * EACH))
    # batches of 36 would leave a third of them out
    assert sorted(seen(list(sample_loader(train, 36)))) == list(range(SHARDS * EACH))
    assert len(seen(list(sample_loader(train, 500, 7)))) == 7


def test_a_sample_is_framed_as_asked(settings: dict[str, Any], tmp_path: Path) -> None:
    picture, stream = Image.new("RGB", (16, 16)), io.BytesIO()
    picture.paste((255, 255, 255), (4, 4, 12, 12))
    picture.save(stream, "PNG")
    write_tar(tmp_path / "framed" / "0.tar", [("0.png", stream.getvalue())])
    train = load_data(DataConfig(**settings | {"path": str(tmp_path / "framed")})).train
    whole, middle, same = (next(iter(sample_loader(train, 1, 1, 0, part))) for part in (None, 0.5, 1.0))
    assert torch.equal(whole.images, same.images) and float(whole.images.min()) == 0
    # the middle half is white
    assert middle.images.shape == (1, 3, SIDE, SIDE) and float(middle.images.min()) == 1


# --- steps -------------------------------------------------------------------------------------------


def test_resampled_epochs_take_the_steps_asked_for(settings: dict[str, Any]) -> None:
    given = settings | {"resampled": True, "steps_per_epoch": 70, "shuffle_buffer": STREAMS}
    config = DataConfig(**given)
    data = load_data(config)
    parts = [epoch_of(data, config, rank=rank, world_size=2) for rank in range(2)]
    assert [len(part) for part in parts] == [70, 70]
    first, second = seen(parts[0]), seen(parts[1])
    assert len(first) == 280 > SHARDS * EACH
    counts = Counter(first + second)
    # each of 96 images is expected 5.8 times
    assert len(counts) > 90 and max(counts.values()) > 6
    assert first != second and first != seen(epoch_of(data, config, epoch=1, world_size=2))
    assert equal(parts[1], epoch_of(data, replace(config, workers=2), rank=1, world_size=2))
    # all streams differ
    starts = [seen(parts[0][step : step + 1]) for step in range(STREAMS)]
    assert len({tuple(start) for start in starts}) > STREAMS // 2


def test_resampled_epochs_shorter_than_a_shard_reach_all_images(settings: dict[str, Any]) -> None:
    config = DataConfig(**settings | {"resampled": True, "steps_per_epoch": STREAMS, "batch_size": 1})
    data = load_data(config)
    met = Counter(number for epoch in range(40) for number in seen(epoch_of(data, config, epoch)))
    # 960 draws, 10 expected of each; that one is never met has a probability of 1e-3
    assert len(met) == 96 and max(met.values()) < 30


def test_steps_without_resampling_cut_the_pass(settings: dict[str, Any]) -> None:
    config = DataConfig(**settings | {"steps_per_epoch": 3})
    data = load_data(config)
    batches = epoch_of(data, config)
    assert len(batches) == 3 and len(set(seen(batches))) == 12
    load_fails(
        replace(config, steps_per_epoch=25), "data.steps_per_epoch", "at most 24", "got 25", "resampled"
    )
    with pytest.raises(UserError, match=r"at most 12 .* got 13"):
        epoch_of(data, replace(config, steps_per_epoch=13), world_size=2)


def test_resampling_without_steps_takes_as_many_as_a_pass(settings: dict[str, Any]) -> None:
    config = DataConfig(**settings | {"resampled": True})
    assert len(epoch_of(load_data(config), config)) == 24


# --- held out ----------------------------------------------------------------------------------------


def test_validation_images_are_held_out_by_their_keys(settings: dict[str, Any], tmp_path: Path) -> None:
    config = DataConfig(**settings | {"validation": 0.25, "batch_size": 1})
    data = load_data(config)
    assert data.val is not None and isinstance(data.val.source, Held)
    held = numbers(data.val.images(range(len(data.val))))
    assert len(held) == 24 and len(data.train) == 72
    assert sorted(held + seen(epoch_of(data, config))) == list(range(96))
    # independent of the location of the shards and of other shards
    write_shards(tmp_path / "elsewhere", counts=[EACH] * 4)
    fewer = load_data(replace(config, path=str(tmp_path / "elsewhere"), in_memory=False))
    assert fewer.val is not None and not isinstance(fewer.val.source, Held)
    kept = numbers(fewer.val.images(range(len(fewer.val))))
    assert len(kept) == 12 and len(set(kept) & set(held)) >= 6
    other = load_data(replace(config, split_seed=1)).val
    assert other is not None and numbers(other.images(range(24))) != held


def test_no_more_are_held_out_than_needed(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gendd.data.found_shards.MOST_HELD_OUT", 5)
    data = load_data(DataConfig(**settings | {"validation": 0.5}))
    assert data.val is not None and (len(data.val), len(data.train)) == (5, 91)


def test_train_images_are_drawn_from_the_rest(settings: dict[str, Any]) -> None:
    config = DataConfig(**settings | {"validation": 0.25, "train_images": 20, "batch_size": 1})
    data = load_data(config)
    whole = load_data(replace(config, train_images=None))
    chosen = seen(epoch_of(data, config))
    assert len(set(chosen)) == len(data.train) == 20 and set(chosen) <= set(seen(epoch_of(whole, config)))
    assert data.val is not None and whole.val is not None
    held = numbers(whole.val.images(range(24)))
    assert len(data.val) == 7 and set(numbers(data.val.images(range(7)))) < set(held)
    every = load_data(replace(config, validation_images="all")).val
    assert every is not None and numbers(every.images(range(24))) == held
    load_fails(replace(config, train_images=73), "data.train_images", "at most 72", "got 73")
    load_fails(replace(config, validation=0.001), "data.validation", "of the 96 training images")


# --- labels and test sets ----------------------------------------------------------------------------


def test_labels_come_with_their_images(settings: dict[str, Any], tmp_path: Path) -> None:
    write_shards(tmp_path / "labelled", labelled)
    write_shards(tmp_path / "test", labelled, counts=[7])
    given = {"path": str(tmp_path / "labelled"), "test_path": str(tmp_path / "test" / "*.tar")}
    config = DataConfig(**settings | given | {"validation": 0.25, "workers": 2})
    data = load_data(config)
    assert data.labelled and data.class_names == ["0", "1", "2", "3"]
    batches = epoch_of(data, config)
    labels = [label for batch in batches if batch.labels is not None for label in batch.labels.tolist()]
    assert labels == [number % 4 for number in seen(batches)] and len(labels) == 72
    assert data.train.labels is not None and sorted(data.train.labels.tolist()) == sorted(labels)
    for part in (data.val, data.test):
        assert part is not None and part.labels is not None
        held = numbers(part.images(range(len(part))))
        assert part.labels.tolist() == [number % 4 for number in held]
    assert len(data.test) == 7 and data.test.in_memory


def test_captioned_shards_are_tested_on_class_folders(settings: dict[str, Any]) -> None:
    config = DataConfig(**settings)
    data = load_data(config)
    assert not data.labelled and data.train.labels is None and data.val is None
    assert data.class_names == ["class0", "class1", "class2", "class3"]
    assert data.test.labels is not None and data.test.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert describe(data) == (
        "webdataset: 96 train, 12 test images of 3x8x8, 4 classes (training images unlabelled), "
        "augment none, streamed from 8 shards"
    )
    assert isinstance(data.train, Shards) and deepcopy(data.train) is data.train


def test_a_directory_may_hold_both_splits(settings: dict[str, Any], tmp_path: Path) -> None:
    write_shards(tmp_path / "both" / "train", labelled, counts=[5, 5])
    write_shards(tmp_path / "both" / "val", labelled, counts=[4])
    data = load_data(DataConfig(**settings | {"path": str(tmp_path / "both"), "test_path": None}))
    assert (len(data.train), len(data.test)) == (10, 4)


def test_unlabelled_shards_need_no_labelled_test_images(settings: dict[str, Any], tmp_path: Path) -> None:
    for place in (settings["path"], str(tmp_path / "val" / "class0")):
        data = load_data(DataConfig(**settings | {"test_path": place}))
        assert data.test.labels is None and data.class_names == [] and data.tested_on == "test"
    assert "the classes of the teacher (training and test images unlabelled)" in describe(data)
    data = load_data(DataConfig(**settings | {"test_path": None, "validation": 0.25}))
    assert data.test is data.val and data.tested_on == "validation" and len(data.test) == 24
    assert describe(data).startswith("webdataset: 72 train, 24 validation images of 3x8x8, the classes of")


def test_labels_that_nothing_uses_make_no_classes(settings: dict[str, Any], tmp_path: Path) -> None:
    write_shards(tmp_path / "labelled", lambda number: labelled(number, b"123456789"))
    given = settings | {"path": str(tmp_path / "labelled"), "labels": False, "validation": 0.25}
    for place in (None, settings["path"]):
        data = load_data(DataConfig(**given | {"test_path": place}))
        assert not data.labelled and data.class_names == []


def test_classes_are_named_by_a_file(settings: dict[str, Any], tmp_path: Path) -> None:
    write_shards(tmp_path / "labelled", labelled)
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\nfox\nemu\n")
    config = DataConfig(
        **settings | {"path": str(tmp_path / "labelled"), "classes": str(tmp_path / "names.txt")}
    )
    for test_path in (settings["test_path"], config.path, settings["path"]):
        data = load_data(replace(config, test_path=test_path))
        assert data.labelled and data.class_names == ["cat", "dog", "owl", "fox", "emu"]
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n")
    load_fails(config, "data.classes: expected at least 4 names", "got 3")


def test_long_tailed_shards_are_told_by_shots(settings: dict[str, Any], tmp_path: Path) -> None:
    write_shards(
        tmp_path / "tail", lambda number: labelled(number, str((number > 60) + (number > 88)).encode())
    )
    config = DataConfig(**settings | {"path": str(tmp_path / "tail"), "shot_thresholds": (10, 50)})
    data = load_data(config)
    assert data.class_counts is not None and data.class_counts.tolist() == [61, 28, 7, 0]
    assert "long-tailed (61 to 0 training images per class)" in describe(data)
    shots = shots_of(data, config)
    assert shots is not None
    assert {name: mask.tolist() for name, mask in shots.masks().items()} == {
        "many": [True, False, False, False],
        "medium": [False, True, False, False],
        "few": [False, False, True, True],
    }


def test_a_parquet_test_set(settings: dict[str, Any], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {"image": [{"bytes": picture(number)} for number in range(3)], "label": [0, 2, 1]}
    pq.write_table(pa.table(rows), tmp_path / "test.parquet")
    data = load_data(DataConfig(**settings | {"test_path": str(tmp_path / "test.parquet")}))
    assert data.class_names == ["0", "1", "2"] and numbers(data.test.images(range(3))) == [0, 1, 2]
    names = {"info": {"features": {"label": {"names": ["a", "b"]}}}}
    named = pa.table(rows).replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(named, tmp_path / "test.parquet")
    config = DataConfig(**settings | {"test_path": str(tmp_path / "*.parquet")})
    load_fails(config, "data.test_path", "labels below 2", "got 2")


def test_labels_that_do_not_fit_the_test_set(settings: dict[str, Any], tmp_path: Path) -> None:
    write_shards(tmp_path / "labelled", lambda number: labelled(number, str(number).encode()))
    config = DataConfig(**settings | {"path": str(tmp_path / "labelled")})
    load_fails(config, "labels below 4", "got 95", "data.labels")
    assert not load_data(replace(config, labels=False)).labelled


def test_size_and_channels(settings: dict[str, Any], tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (9, 9), 100).save(stream, "JPEG")
    files = [(f"a/{number}.JPG", stream.getvalue()) for number in range(4)]
    write_tar(tmp_path / "gray" / "0.tar", files)
    config = DataConfig(**settings | {"path": str(tmp_path / "gray"), "image_size": None, "augment": "auto"})
    data = load_data(config)
    assert (data.channels, data.image_size, data.augment) == (1, 224, "resized-crop")
    (batch,) = epoch_of(data, config)
    assert batch.images.shape == (4, 1, 224, 224)
    assert load_data(replace(config, image_size=32)).augment == "crop-flip"


# --- what can't be read ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cut_shard_costs_its_end(
    settings: dict[str, Any], tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "train" / "0002.tar"
    with tarfile.open(cut) as tar:
        place = tar.getmember("00030.png").offset_data
    cut.write_bytes(cut.read_bytes()[: place + 10])
    config = DataConfig(**settings | {"max_corrupt": 0.1, "workers": workers, "batch_size": 3})
    data = load_data(config)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "about 6 images" in said[0] and "0002.tar" in said[0] and "cut short" in said[0]
    assert [len(each) for each in data.skipped if each.part == "training"] == [6]
    data.train.skipped.record(tmp_path / "skipped.txt")
    assert (tmp_path / "skipped.txt").read_text().startswith(f"training: '{cut}'")
    # 24 to 29 can be read, 30 to 35 can't
    assert sorted(seen(epoch_of(data, config))) == [*range(30), *range(36, 96)]
    assert capsys.readouterr().err == ""
    load_fails(replace(config, max_corrupt=0.05), "0.05", "about 6 of 96", "0002.tar", "data.max_corrupt")


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_images_are_skipped_counted_and_named(
    settings: dict[str, Any], tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [file for number in range(12) for file in captioned(number)]
    files[9] = (files[9][0], b"nothing")
    files[15] = (files[15][0], files[15][1][:40])
    write_tar(tmp_path / "train" / "0000.tar", files)
    config = DataConfig(**settings | {"max_corrupt": 0.05, "workers": workers})
    data = load_data(config)
    capsys.readouterr()
    batches = epoch_of(data, config)
    assert len(batches) == 24 and all(len(batch.images) == 4 for batch in batches)
    assert set(seen(batches)) == set(range(96)) - {3, 5}
    names = {f"image '{key}' of '{tmp_path}/train/0000.tar'" for key in ("00003", "00005")}
    begin = "skipped a training image that can't be decoded: "
    assert set(capsys.readouterr().err.splitlines()) == {begin + name for name in names}
    assert isinstance(data.train, Shards) and set(data.train.skipped.names) == names
    assert set(seen(epoch_of(data, config, epoch=1))) == set(range(96)) - {3, 5}
    # said once
    assert capsys.readouterr().err == ""
    with pytest.raises(
        UserError, match=r"data.max_corrupt: .* most 1 of 96 training .* last image '0000[35]' of .*0000.tar"
    ) as caught:
        epoch_of(data, replace(config, max_corrupt=0.015))
    assert "\n" not in str(caught.value)


def test_a_shard_that_goes_missing_on_the_way(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = DataConfig(**settings | {"max_corrupt": 0.2})
    data = load_data(config)
    (tmp_path / "train" / "0001.tar").unlink()
    batches = epoch_of(data, config)
    assert len(batches) == 24 and set(seen(batches)) == set(range(96)) - set(range(12, 24))
    assert "training image 0 of " in capsys.readouterr().err
    assert [(each.part, len(each)) for each in data.skipped] == [("training", 12), ("test", 0)]
    assert all("0001.tar' (No such file" in name for name in data.train.skipped.names)
    for path in (tmp_path / "train").iterdir():
        path.unlink()
    with pytest.raises(UserError):
        epoch_of(data, replace(config, max_corrupt=0.99))
    with pytest.raises(UserError):
        epoch_of(data, replace(config, max_corrupt=0.99, resampled=True))


def test_unreadable_validation_images(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sample(number: int) -> list[tuple[str, bytes]]:
        return [(f"{number}.png", picture(number)[: 45 if number in bad else None])]

    bad: set[int] = set()
    write_shards(tmp_path / "some", sample)
    config = DataConfig(**settings | {"path": str(tmp_path / "some"), "validation": 0.9, "max_corrupt": 0.2})
    whole = load_data(config).val
    assert whole is not None and len(whole) == 86
    held = numbers(whole.images(range(86)))
    bad |= set(held[10:15])
    write_shards(tmp_path / "some", sample)
    val = load_data(config).val
    assert val is not None
    assert numbers(val.images(range(81))) == held[:10] + held[15:]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(val.skipped) == 5 and all("a validation image" in line for line in said)
    load_fails(replace(config, max_corrupt=0.05), "data.max_corrupt", "at most 4 of 86 validation images")
    # with images on disk they are found when used
    lying = load_data(replace(config, in_memory=False)).val
    assert lying is not None and len(lying) == 86
    assert sum(len(batch.images) for batch in eval_loader(lying, 8)) == 81 and len(lying.skipped) == 5


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_a_file_that_is_no_tar(
    settings: dict[str, Any], tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train" / "0003.tar").write_bytes(content)
    config = DataConfig(**settings | {"max_corrupt": 0.2})
    data = load_data(config)
    assert "about 12 images" in capsys.readouterr().err
    assert sorted(seen(epoch_of(data, config))) == [*range(36), *range(48, 96)]
    load_fails(DataConfig(**settings), "0003.tar", "about 12 of 96")


# --- leaving -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_left_early_leaves_nothing(settings: dict[str, Any], workers: int) -> None:
    config = DataConfig(**settings | {"workers": workers, "resampled": True, "steps_per_epoch": 1000})
    before = len(active_children())
    batches = iter(train_loader(load_data(config), config, seed=0, epoch=0))
    next(batches)
    assert len(active_children()) == before + workers
    del batches
    assert len(active_children()) == before


# --- mistakes ----------------------------------------------------------------------------------------


def test_mistakes_of_paths(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in ("empty", "none.tar", "*.tgz", "train/{0000..0009}.tar"):
        load_fails(DataConfig(**settings | {"path": str(tmp_path / path)}), "data.path", "tar", path)
    load_fails(
        DataConfig(**settings | {"path": str(tmp_path / "train/{0000..0009}.tar")}), "0008.tar' is not there"
    )
    for path in ("train/{0000..0009", "{a,b", "{{0..2}.tar"):
        load_fails(DataConfig(**settings | {"path": path}), "data.path", repr(path), "unbalanced braces")
    load_fails(DataConfig(**settings | {"path": None}), "data.path", "got none")
    load_fails(
        DataConfig(**settings | {"test_path": None}), "data.validation", "no test images", "data.test_path"
    )
    load_fails(DataConfig(**settings | {"test_path": str(tmp_path / "empty")}), "Expected images in", "empty")
    load_fails(
        DataConfig(**settings | {"test_path": str(tmp_path / "none.parquet")}), "data.test_path: expected"
    )
    write_shards(tmp_path / "labelled", labelled)
    alone = settings | {"path": str(tmp_path / "labelled"), "test_path": None, "validation": 0.1}
    load_fails(DataConfig(**alone), "data.test_path", "are labelled, got none")
    with pytest.raises(UserError, match=r"data.steps_per_epoch: expected null for data.name 'digits'"):
        DataConfig(steps_per_epoch=4)
    with pytest.raises(UserError, match=r"data.resampled: expected false"):
        DataConfig(resampled=True)
    with pytest.raises(UserError, match=r"data.imbalance: expected null for tar shards, got 10"):
        DataConfig(**settings, imbalance=10)


def test_mistakes_within_shards(settings: dict[str, Any], tmp_path: Path) -> None:
    one = tmp_path / "one"
    config = DataConfig(**settings | {"path": str(one)})
    write_tar(one / "0.tar", [("0.txt", b"caption"), ("0.v2.jpg", picture(0))])
    load_fails(config, "0.tar", "jpg, jpeg, png or webp", "sample '0'", "txt, v2.jpg")
    write_tar(one / "0.tar", [*labelled(0), ("1.txt", b"caption"), *labelled(2)])
    load_fails(config, "about 1 of 3", "sample '1'", "with txt")
    write_tar(one / "0.tar", [*labelled(0), *labelled(1, b"cat")])
    load_fails(config, "class number", "'cat' in sample '00001'", "0.tar")
    assert not load_data(replace(config, labels=False)).labelled
    write_tar(one / "0.tar", [*labelled(0), *labelled(1, b"-3")])
    load_fails(config, "class number", "'-3'")
    write_tar(one / "0.tar", [*labelled(0), *captioned(1)])
    load_fails(config, "with every image or with none", "got 1 without of 2")


def test_without_the_package(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "webdataset", None)
    load_fails(DataConfig(**settings), "pip install 'gendd[webdataset]'")


# --- runs --------------------------------------------------------------------------------------------


@pytest.fixture
def options(settings: dict[str, Any]) -> list[str]:
    """Of a tiny run on the captioned shards."""
    given = settings | {"batch_size": 16, "augment": "auto", "validation": 0.25, "workers": 2}
    return [*TINY, "--data.train_images=null", *(f"--data.{key}={value}" for key, value in given.items())]


def test_distillation_without_labels(
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(0)
    torch.save(create_backbone("cifar/resnet8x0.25", 4).net.state_dict(), tmp_path / "teacher.pt")
    words = [
        *options,
        "--teacher.name=cifar/resnet8x0.25",
        f"--teacher.weights={tmp_path / 'teacher.pt'}",
        "--data.resampled=true",
        "--data.steps_per_epoch=4",
        "--baselines=[kl]",
    ]
    assert main(["distill", "--out", str(tmp_path / "whole"), *words]) == 0
    metrics = Run.open(tmp_path / "whole").metrics
    assert metrics["run"]["labels_used"] is False and metrics["run"]["train_images"] == 72
    assert metrics["student"]["validation"]["metric"] == "val/agreement"
    finished = json.loads((tmp_path / "whole" / "checkpoints" / "finished.json").read_text())
    assert finished["steps"] == 12
    assert "webdataset: 72 train, 24 validation, 12 test images" in capsys.readouterr().err
    scores = evaluate_run(tmp_path / "whole")
    assert scores["mean"]["top1"] == metrics["student"]["readouts"]["mean"]["top1"]

    forward, steps = GenDD.forward, 0

    def stopped(self: GenDD, *args: Any, **more: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt
        return forward(self, *args, **more)

    monkeypatch.setattr(GenDD, "forward", stopped)
    assert main(["distill", "--out", str(tmp_path / "stopped"), *words]) == 130
    # with another number of workers it resumes in the same order
    assert main(["distill", "--out", str(tmp_path / "stopped"), *words, "--data.workers=0", "--resume"]) == 0
    first, second = (
        load_file(tmp_path / name / "student" / "model.safetensors") for name in ("whole", "stopped")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_teacher_is_trained_on_labelled_shards(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "labelled", labelled)
    words = [*options, f"--data.path={tmp_path}/labelled/{{0000..0007}}.tar", "--teacher_training.epochs=2"]
    assert main(["distill", "--out", str(tmp_path / "run"), *words]) == 0
    assert Run.open(tmp_path / "run").metrics["run"]["labels_used"] is True
    capsys.readouterr()
    assert main(["distill", "--out", str(tmp_path / "again"), *words, "--training.epochs=1"]) == 0
    assert "cached" in capsys.readouterr().err


def test_a_run_names_what_it_skipped(options: list[str], tmp_path: Path) -> None:
    write_shards(tmp_path / "labelled", labelled)
    write_tar(tmp_path / "labelled" / "0000.tar", [*labelled(0), ("00001.png", b"none"), ("00001.cls", b"1")])
    (tmp_path / "val" / "class1" / "bad.png").write_bytes(b"none")
    words = [
        *options,
        f"--data.path={tmp_path}/labelled",
        "--data.validation=0",
        "--data.max_corrupt=0.1",
        "--data.mixup=0.2",
        "--data.cutmix=1.0",
        "--data.label_smoothing=0.1",
        "--data.batch_size=8",
        "--training.accumulate=2",
        "--method=supervised",
        "--baselines=[]",
    ]
    assert main(["distill", "--out", str(tmp_path / "run"), *words]) == 0
    run = Run.open(tmp_path / "run").metrics["run"]
    assert run["skipped"] == {"training": 1, "test": 1} and run["test_images"] == 12
    finished = json.loads((tmp_path / "run" / "checkpoints" / "finished.json").read_text())
    # 86 images are 10 batches of 8, two a step
    assert finished["steps"] == 5 * Run.open(tmp_path / "run").config.training.epochs
    lines = (tmp_path / "run" / "logs" / "skipped.txt").read_text().splitlines()
    assert sorted(lines) == [
        f"test: '{tmp_path}/val/class1/bad.png'",
        f"training: image '00001' of '{tmp_path}/labelled/0000.tar'",
    ]


def without_tests(options: list[str], folder: Path) -> list[str]:
    """Of a run of one epoch with no test images, and a teacher of four classes in ``folder``."""
    torch.manual_seed(0)
    torch.save(create_backbone("cifar/resnet8x0.25", 4).net.state_dict(), folder / "teacher.pt")
    return [
        *options,
        "--data.test_path=null",
        "--teacher.name=cifar/resnet8x0.25",
        f"--teacher.weights={folder / 'teacher.pt'}",
        "--baselines=[]",
        "--training.epochs=1",
    ]


def test_a_run_without_any_labels(options: list[str], tmp_path: Path) -> None:
    words = without_tests(options, tmp_path)
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    assert (
        main(["distill", "--out", str(tmp_path / "run"), *words, f"--data.classes={tmp_path}/names.txt"]) == 0
    )
    metrics = Run.open(tmp_path / "run").metrics
    assert metrics["run"]["tested_on"] == "validation" and metrics["run"]["test_images"] == 24
    assert metrics["student"]["readouts"]["mean"]["top1"] is None
    assert 0 <= metrics["student"]["readouts"]["mean"]["agreement"] <= 100


def test_features_alone_and_no_class_known(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gendd.evaluation.embedding.BANK_IMAGES", 50)
    words = without_tests(options, tmp_path)
    assert main(["distill", "--out", str(tmp_path / "run"), *words, "--teacher.classifier=false"]) == 0
    metrics = Run.open(tmp_path / "run").metrics
    assert metrics["student"]["readouts"] == {}
    assert metrics["student"]["embedding"]["generated"]["knn"] is None
    cosine = metrics["student"]["embedding"]["generated"]["cosine"]
    assert -1 <= cosine <= 1
    assert evaluate_run(tmp_path / "run")["generated"]["cosine"] == pytest.approx(cosine, abs=1e-3)
    # the teacher's classifier determines the classes
    assert main(["distill", "--out", str(tmp_path / "four"), *words, "--gendd.refit=teacher"]) == 0
    student = Run.open(tmp_path / "four").student()
    assert student.num_classes("linear") == 4 and student.class_names() == ["0", "1", "2", "3"]
    assert Run.open(tmp_path / "four").metrics["student"]["refit"]["target"] == "teacher"


@pytest.mark.parametrize("resampled", [False, True])
def test_shards_that_give_nothing_are_no_endless_loop(
    resampled: bool, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(**settings, resampled=resampled, max_corrupt=0.9)
    data = load_data(config)
    monkeypatch.setattr(Shards, "read", lambda self, segment, tally: iter(()))
    with pytest.raises(UserError, match="and the other shards, found none in a whole pass"):
        epoch_of(data, config)
