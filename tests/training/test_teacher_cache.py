"""A cached teacher answers like the teacher itself, for the same pixels, whatever happens to its files."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import re
import tarfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import TINY
from helpers import one_line
from PIL import Image
from started import Started, run_gendd
from torch import Tensor

from gendd.cli import main
from gendd.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from gendd.data import Data, Rows, load_data
from gendd.errors import UserError
from gendd.methods import KD, GenDD, Method
from gendd.models import Backbone, Frozen, create_backbone
from gendd.processes import share
from gendd.run.caching import _Filling
from gendd.run.settings import sized
from gendd.run.view_cache import cached_teacher, open_cache
from gendd.training import Answers, CachedTeacher, LightningMethod, fit
from gendd.training.answers import Storage, _File, decode, encode

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
MIXED = DataConfig(train_images=100, batch_size=32, validation=0.1, mixup=0.3, cutmix=1.0)
PLAIN = dataclasses.replace(MIXED, mixup=0.0, cutmix=0.0)
BATCHES = 3
METHODS = ["kd", "gendd", "gendd, no labels"]


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(MIXED)


def network(name: str, seed: int) -> Backbone:
    torch.manual_seed(seed)
    return create_backbone(name, 10, in_channels=1)


def teacher() -> Frozen:
    return Frozen(network("cifar/resnet8x0.5", 1))


def cached(folder: Path, data: Data, storage: Storage = "fp16") -> CachedTeacher:
    return CachedTeacher(teacher(), Answers(folder, len(data.train), storage))


def made(name: str, taught_by: Frozen) -> Method:
    student = network("cifar/resnet8x0.25", 0)
    torch.manual_seed(2)
    if name == "kd":
        return KD(student, taught_by)
    small: dict[str, Any] = {"token_width": 16, "repeats": 2, "head_width": 16, "head_depth": 1}
    return GenDD(student, taught_by, labels=name == "gendd", **small)


def settings(**changes: Any) -> TrainingConfig:
    given: dict[str, Any] = {"epochs": 4, "lr": 1e-3, "loggers": [], "device": "cpu", "precision": "fp32"}
    # the memory format of maps, which is part of a file, would depend on the processor
    given["channels_last"] = False
    return TrainingConfig(**{**given, "progress": False, "cache_teacher": 2, **changes})


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """The images and the losses of every step."""
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    mixed, watch = LightningMethod._mixed, LightningMethod._watch

    def noted(self: LightningMethod, *given: Any) -> Any:
        images, labels = mixed(self, *given)
        found.append((images.clone(), {}))
        return images, labels

    def watched(self: LightningMethod, parts: dict[str, Tensor]) -> None:
        found[-1][1].update({name: value.clone() for name, value in parts.items()})
        watch(self, parts)

    monkeypatch.setattr(LightningMethod, "_mixed", noted)
    monkeypatch.setattr(LightningMethod, "_watch", watched)
    return found


def train(method: Method, data: Data, folder: Path, images: DataConfig = MIXED, **changes: Any) -> None:
    if method.name == "gendd" and not cast(GenDD, method).labels:
        images = dataclasses.replace(images, labels=False)
    resume = changes.pop("resume", False)
    fit(method, data, settings(**changes), images, seed=0, folder=folder, resume=resume)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npy"))}


# --- training ---


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("storage", "tolerance"), [("fp32", 0.0), ("fp16", 1e-4), ("int8", 2e-2)])
def test_losses_are_those_of_the_teacher_itself_on_the_same_views(
    name: str, storage: Storage, tolerance: float, data: Data, tmp_path: Path, steps: list[Any]
) -> None:
    train(made(name, teacher()), data, tmp_path / "plain")
    plain = steps[:]
    steps.clear()
    source = cached(tmp_path / "cache", data, storage)
    train(made(name, source), data, tmp_path / "cached")
    assert (source.computed, source.found) == (2 * BATCHES, 2 * BATCHES)
    assert len(steps) == len(plain) == 4 * BATCHES
    for (images, parts), (own, wanted) in zip(steps, plain, strict=True):
        assert torch.equal(images, own) and parts.keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(parts[key], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("views", [1, 2])
def test_an_epoch_has_the_images_of_its_view(
    views: int, data: Data, tmp_path: Path, steps: list[Any]
) -> None:
    train(made("kd", cached(tmp_path / "cache", data)), data, tmp_path, cache_teacher=views)
    epochs = [torch.cat([images for images, _ in steps[start : start + BATCHES]]) for start in (0, 3, 6, 9)]
    for number in range(views, 4):
        assert torch.equal(epochs[number], epochs[number % views])
    assert views == 1 or not torch.equal(epochs[0], epochs[1])


def test_a_method_without_a_teacher_sees_other_images_in_every_epoch(
    data: Data, tmp_path: Path, steps: list[Any]
) -> None:
    from gendd.methods import Supervised

    train(Supervised(network("cifar/resnet8x0.25", 0)), data, tmp_path, cache_teacher=1)
    assert not torch.equal(steps[0][0], steps[BATCHES][0])


def test_a_training_goes_on_from_within_an_epoch(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made("gendd", cached(tmp_path / "whole", data))
    train(whole, data, tmp_path / "one", checkpoint_minutes=1e-6)
    forward, taken = GenDD.forward, []

    def stopped(self: GenDD, *given: Any, **more: Any) -> Any:
        taken.append(self)
        if len(taken) == 2 * BATCHES:
            raise KeyboardInterrupt
        return forward(self, *given, **more)

    broken, resumed = (made("gendd", cached(tmp_path / "cache", data)) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(GenDD, "forward", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(broken, data, tmp_path / "two", checkpoint_minutes=1e-6)
    train(resumed, data, tmp_path / "two", checkpoint_minutes=1e-6, resume=True)
    state = resumed.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items())
    assert files(tmp_path / "cache") == files(tmp_path / "whole")
    source = cast(CachedTeacher, resumed.teacher)
    assert (source.computed, source.found) == (1, 2 * BATCHES)


def test_gradients_of_several_batches_are_accumulated(data: Data, tmp_path: Path, steps: list[Any]) -> None:
    source = cached(tmp_path / "cache", data, "fp32")
    train(made("kd", source), data, tmp_path / "cached", accumulate=2)
    found = steps[:]
    steps.clear()
    train(made("kd", teacher()), data, tmp_path / "plain", accumulate=2)
    # three batches leave one over
    assert (source.computed, source.found) == (4, 4) and len(found) == 8
    assert [parts for _, parts in found] == [parts for _, parts in steps]


def test_processes_read_what_one_wrote_and_write_their_rows(data: Data, tmp_path: Path) -> None:
    def answers(source: CachedTeacher, part: tuple[int, int], size: int) -> list[Tensor]:
        images = dataclasses.replace(MIXED, batch_size=size)
        module = LightningMethod(made("kd", source), data, settings(), images, 0, False)
        module.part = part
        found = []
        for number, batch in enumerate(module.epoch(1)):
            mixed, _ = module.mixed(batch, number, 1)
            assert batch.rows is not None
            with source.answering(mixed, 1, batch.rows):
                found.append(source(mixed)[1])
        return found

    source = cached(tmp_path / "one", data)
    whole = answers(source, (0, 1), 32)
    places = [share(32, rank, 2) for rank in range(2)]
    for rank in range(2):
        for own, one in zip(answers(source, (rank, 2), 16), whole, strict=True):
            assert torch.equal(own, one[places[rank]])
    assert (source.computed, source.found) == (3, 6)
    apart = cached(tmp_path / "two", data)
    for rank in range(2):
        answers(apart, (rank, 2), 16)
    for own, one in zip(answers(apart, (0, 1), 32), whole, strict=True):
        torch.testing.assert_close(own, one, rtol=1e-3, atol=1e-4)
    assert (apart.computed, apart.found) == (6, 3)


def test_only_the_images_of_the_step_are_known(data: Data, tmp_path: Path) -> None:
    source = cached(tmp_path, data)
    images = torch.rand(4, 1, 8, 8)
    rows = Rows.of(torch.arange(4), images)
    with source.answering(images, 0, rows):
        kept = source(images)[1]
        assert torch.equal(source(images.clone())[1], teacher()(images)[1])
    assert not torch.equal(kept, teacher()(images)[1])
    assert (source.computed, source.found) == (1, 0)


def test_tar_shards_are_read_again_in_their_order(tmp_path: Path, steps: list[Any]) -> None:
    digits = load_data(PLAIN).train
    assert digits.labels is not None
    for number in range(4):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for index in range(number * 24, number * 24 + 24):
                image = io.BytesIO()
                Image.fromarray(digits.images([index])[0, 0].numpy()).save(image, "PNG")
                for suffix, content in (("png", image.getvalue()), ("cls", b"%d" % digits.labels[index])):
                    member = tarfile.TarInfo(f"{index:04}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    pattern = str(tmp_path / "{0..3}.tar")
    images = DataConfig(
        "webdataset", pattern, pattern, image_size=8, validation=0.0, batch_size=32, workers=0, mixup=0.5
    )
    data = load_data(images)
    taught_by = Frozen(create_backbone("cifar/resnet8x0.5", 10, in_channels=data.channels))
    source = CachedTeacher(taught_by, Answers(tmp_path / "cache", 96, "fp32"))

    def method(of: Frozen) -> Method:
        torch.manual_seed(0)
        return KD(create_backbone("cifar/resnet8x0.25", 10, in_channels=data.channels), of)

    train(method(source), data, tmp_path / "cached", images, epochs=3)
    found = steps[:]
    steps.clear()
    train(method(taught_by), data, tmp_path / "plain", images, epochs=3)
    assert (source.computed, source.found) == (2 * BATCHES, BATCHES)
    assert [parts for _, parts in found] == [parts for _, parts in steps]


# --- the files ---


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
def test_numbers_come_back(storage: Storage) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(5, 7, generator=generator) * 10,
        torch.zeros(5, 3),
        torch.randn(5, 4, 3, 2, generator=generator).contiguous(memory_format=torch.channels_last),
        torch.randn(5, 6, generator=generator).bfloat16(),
        torch.empty(5, 0),
    ]
    rows = encode(tensors, np.arange(5, dtype=np.uint32), storage)
    found = decode(rows, CPU)
    for own, other in zip(found, tensors, strict=True):
        assert own.dtype == other.dtype and own.shape == other.shape
        if other.ndim == 4:
            assert own.is_contiguous(memory_format=torch.channels_last) and not own.is_contiguous()
        if storage != "int8":
            torch.testing.assert_close(own, other, rtol=2**-11 if storage == "fp16" else 0.0, atol=0)
        elif other.numel() > 0:
            largest = other.float().flatten(1).abs().amax(1)
            # half a quantisation step, plus bf16 rounding
            most = largest / 127 * 0.501 + (largest * 2**-8 if other.dtype == torch.bfloat16 else 0)
            assert bool(((own - other).float().flatten(1).abs().amax(1) <= most).all())


def test_numbers_beyond_fp16_are_refused() -> None:
    with pytest.raises(UserError, match=r"^training\.cache_dtype: expected fp32 or int8 .* \(1e\+05\)"):
        encode([torch.full((2, 3), 1e5)], np.zeros(2, np.uint32), "fp16")


class Killed(BaseException):
    """The process ends here."""


def filled(folder: Path, data: Data, name: str = "gendd") -> CachedTeacher:
    source = cached(folder, data)
    config = RunConfig(training=settings(), data=PLAIN)
    module = LightningMethod(made(name, source), data, config.training, PLAIN, 0, False)
    _Filling(module, source, config, CPU).run()
    return source


@pytest.mark.parametrize("name", ["gendd", "kd"])
def test_a_cache_is_the_same_bytes_wherever_filling_it_was_killed(
    name: str, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = filled(tmp_path / "whole", data, name)
    assert whole.computed == 2 * BATCHES and files(tmp_path / "whole")
    count, share_written = 0, 0.0

    class Cut:
        """At its last call, writes a part of the data and is killed."""

        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

        def write(self, content: Any) -> int:
            nonlocal count
            count -= 1
            if count == 0:
                self.stream.write(content[: int(len(content) * share_written)])
                raise Killed
            return cast(int, self.stream.write(content))

    opened = _File.__init__

    def cut(self: _File, path: Path) -> None:
        opened(self, path)
        self.stream = cast(Any, Cut(self.stream))

    for at in (1, 2, 5):
        for share_written in (0.0, 0.4, 1.0):
            folder = tmp_path / f"{at}-{share_written}"
            count = at
            with monkeypatch.context() as patch:
                patch.setattr(_File, "__init__", cut)
                with pytest.raises(Killed):
                    filled(folder, data, name)
            again = filled(folder, data, name)
            assert files(folder) == files(tmp_path / "whole")
            assert 0 < again.computed <= 2 * BATCHES and not list(folder.rglob("*.lock"))
            assert filled(folder, data, name).computed == 0


def test_a_damaged_byte_is_noticed(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, data)
    whole = files(tmp_path)
    generator = np.random.default_rng(0)
    header = 256
    for name, content in [*whole.items()][::2]:
        for place in (8, 70, header - 3, header + 2, *generator.integers(header, len(content) * 9 // 10, 3)):
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(generator.integers(8))
            (tmp_path / name).write_bytes(damaged)
            source = cached(tmp_path, data)
            method = made("gendd", source)
            capsys.readouterr()
            train(method, data, tmp_path / "run", PLAIN, epochs=2)
            assert 0 < source.computed <= BATCHES, (name, place)
            told = [line for line in capsys.readouterr().err.splitlines() if "teacher cache" in line]
            assert len(told) == 1 and f"{name} is damaged; it is computed again" in told[0]
            assert files(tmp_path) == whole


def test_a_file_that_is_cut_short_is_filled_again(data: Data, tmp_path: Path) -> None:
    filled(tmp_path, data)
    whole = files(tmp_path)
    for size in (0, 100, 5000):
        name = "float32-fp16/1-map.npy"
        os.truncate(tmp_path / name, size)
        assert 0 < filled(tmp_path, data).computed <= BATCHES
        # except for rows that are in no batch
        assert files(tmp_path)[name].rstrip(b"\0") == whole[name].rstrip(b"\0")


def test_other_pixels_at_the_same_place_are_noticed(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: list[Any]
) -> None:
    train(made("kd", cached(tmp_path / "cache", data)), data, tmp_path / "first", PLAIN)
    pixels = cast(Tensor, data.train.source).clone()  # type: ignore[union-attr]
    pixels[7] = pixels[7].flip(-1)
    other = dataclasses.replace(data, train=dataclasses.replace(cast(Any, data.train), source=pixels))
    source = cached(tmp_path / "cache", data)
    steps.clear()
    train(made("kd", source), other, tmp_path / "second", PLAIN)
    found = steps[:]
    steps.clear()
    train(made("kd", cached(tmp_path / "anew", data)), other, tmp_path / "third", PLAIN)
    assert [parts for _, parts in found] == [parts for _, parts in steps]
    # an image is in at most one batch per view
    assert 0 < source.computed <= 2
    assert "was computed for images with other pixels" in capsys.readouterr().err


def test_a_full_disk_costs_no_result(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    steps: list[Any],
) -> None:  # fmt: skip
    train(made("kd", cached(tmp_path / "whole", data)), data, tmp_path / "one", PLAIN)
    whole = steps[:]
    steps.clear()
    write, written = _File.write, []

    def full(self: _File, *given: Any) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(write(self, *given))

    with monkeypatch.context() as patch:
        patch.setattr(_File, "write", full)
        capsys.readouterr()
        train(made("kd", cached(tmp_path / "cache", data)), data, tmp_path / "two", PLAIN)
        told = [line for line in capsys.readouterr().err.splitlines() if "teacher cache" in line]
        with pytest.raises(UserError, match="expected to write there, got No space left") as error:
            filled(tmp_path / "cache", data, "kd")
        one_line(error)
    assert len(told) == 1 and "No space left on device" in told[0]
    assert [parts for _, parts in steps] == [parts for _, parts in whole]
    # complete rows are used
    assert filled(tmp_path / "cache", data, "kd").computed == 2 * BATCHES - 2
    assert files(tmp_path / "cache") == files(tmp_path / "whole")


# --- where it is ---


def place(config: RunConfig, data: Data | None = None, of: Frozen | None = None) -> Path:
    found = load_data(config.data) if data is None else data
    return cached_teacher(sized(config, found), found, of or teacher()).answers.folder


def test_whatever_changes_the_answers_changes_the_place(data: Data) -> None:
    config = RunConfig(teacher=ModelConfig("cifar/resnet8x0.5"), data=PLAIN, training=settings())
    own = place(config, data)

    def changed(**images: Any) -> Path:
        return place(dataclasses.replace(config, data=dataclasses.replace(PLAIN, **images)))

    same = [
        place(dataclasses.replace(config, training=settings(lr=0.1, epochs=9, cache_teacher=1)), data),
        place(dataclasses.replace(config, method="kd"), data),
        changed(batch_size=16),
        changed(label_smoothing=0.1),
    ]
    assert set(same) == {own}
    other = Frozen(network("cifar/resnet8x0.5", 5))
    embedding = create_backbone("cifar/resnet8x0.5", 10, in_channels=1, classifier=False)
    others = [
        place(config, data, other),
        place(config, data, Frozen(embedding)),
        place(dataclasses.replace(config, seed=1), data),
        changed(train_images=90),
        changed(split_seed=1),
        changed(augment="none"),
        changed(augment="resized-crop"),
        changed(augment="resized-crop", crop_scale=(0.5, 1.0)),
        changed(image_size=16),
        changed(randaugment="rand-m7-n2"),
        changed(color_jitter=0.1),
        changed(erase_prob=0.1),
        changed(mixup=0.2),
        changed(mixup=0.2, mixup_prob=0.5),
        changed(mixup=0.2, batch_size=16),
        changed(cutmix=0.2),
    ]
    assert len({own, *others}) == len(others) + 1


def test_a_new_cache_says_what_the_nearest_has(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GENDD_CACHE", str(tmp_path))

    def opened(config: RunConfig, of: Frozen) -> list[str]:
        config = sized(config, data)
        capsys.readouterr()
        source = cached_teacher(config, data, of)
        open_cache(source, config, data, made("kd", source))
        return capsys.readouterr().err.splitlines()

    config = RunConfig(teacher=ModelConfig("cifar/resnet8x0.5"), data=PLAIN, training=settings())
    (first,) = opened(config, teacher())
    own = place(config, data)
    assert first == f"teacher cache: 2 views of 96 images, 18 kB in fp16, in {own}"
    assert len(opened(config, teacher())) == 1
    mixed = dataclasses.replace(config, data=dataclasses.replace(PLAIN, augment="none"), seed=1)
    assert opened(mixed, teacher())[1:] == [f"teacher cache: a new one, as {own.name} has seed 0 (now 1)"], (
        "augment is the data's"
    )
    (_, told) = opened(config, Frozen(network("cifar/resnet8x0.5", 5)))
    assert told == f"teacher cache: a new one, as {own.name} has another teacher.weights"


def test_too_little_room_is_told_before_anything_is_written(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENDD_CACHE", str(tmp_path / "cache"))
    config = sized(RunConfig(data=PLAIN, training=settings()), data)
    source = cached_teacher(config, data, teacher())
    monkeypatch.setattr("gendd.run.view_cache._free", lambda folder: 10_000)
    with pytest.raises(
        UserError, match=r"training\.cache_teacher: expected 18 kB free in .*, got 10 kB;"
    ) as error:
        open_cache(source, config, data, made("kd", source))
    one_line(error)
    assert not (tmp_path / "cache").exists()
    # int8 needs less
    small = dataclasses.replace(config, training=dataclasses.replace(config.training, cache_dtype="int8"))
    source = cached_teacher(small, data, teacher())
    with pytest.raises(UserError, match="expected 11 kB free"):
        open_cache(source, small, data, made("kd", source))


# --- commands ---

CACHED = [*TINY, "--baselines=[]", "--training.cache_teacher=2"]


def test_a_run_reads_what_was_computed_ahead(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", *CACHED]) == 0
    out, err = capsys.readouterr()
    folder = Path(out.strip())
    assert folder.parent == cache / "views" and (folder / "key.json").is_file()
    assert re.search(r"teacher cache: 12 batches to compute, about \d", err)
    assert "next: gendd distill" in err
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}
    assert main(["cache", *CACHED]) == 0
    assert "teacher cache: complete" in capsys.readouterr().err
    assert main(["distill", *CACHED, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "ms while the cache is filled" in out and "teacher cache of 2 views of 192 images" in out
    assert ", complete" in out
    assert main(["distill", *CACHED, "--out", str(tmp_path / "run")]) == 0
    assert "complete, in" in capsys.readouterr().err
    # a resumed run refuses a different number of views
    assert main(["distill", "--resume", "--out", str(tmp_path / "run"), "--training.cache_teacher=1"]) == 2
    assert "training.cache_teacher was 2 and is 1" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")} == written


def test_processes_build_one_cache_together(cache: Path, tmp_path: Path) -> None:
    # fills the cache, training the teacher first
    assert main(["cache", *CACHED]) == 0
    more = ["--training.cache_teacher=3", "--training.cache_dtype=int8"]
    words = ["cache", *CACHED, *more]
    running = [Started(tmp_path / str(number), run_gendd, *words) for number in range(2)]
    done = [process.ended() for process in running]
    assert [code for code, _ in done] == [0, 0], done
    counts = [re.search(r"; (\d+) batches were computed here", err) for _, err in done]
    assert sum(int(each[1]) for each in counts if each) == 18
    folder = Path(running[0].out.strip())
    assert running[1].out == running[0].out
    together = files(folder / "float32-int8")
    assert len(together) == 9 and not [*folder.rglob("*.claim"), *folder.rglob("*.lock")]
    for path in folder.rglob("*-int8/*.npy"):
        path.unlink()
    assert main(words) == 0
    assert files(folder / "float32-int8") == together


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cache", *TINY], "training.cache_teacher: expected the number of views"),
        (["cache", *CACHED, "--dry-run"], "gendd cache: expected no --dry-run"),
        (
            ["distill", *CACHED, "--method=supervised"],
            "training.cache_teacher: expected 0 for method 'supervised', which has no teacher, got 2",
        ),
        (["distill", *TINY, "--teacher_training.cache_teacher=1"], "teacher_training.cache_teacher: exp"),
        (["distill", *TINY, "--training.cache_teacher=-1"], "training.cache_teacher: expected"),
        (["distill", *TINY, "--training.cache_dtype=fp8"], "training.cache_dtype"),
    ],
)  # fmt: skip
def test_what_is_refused(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run")] if words[0] == "distill" else []
    assert main([*words, *out]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gendd: ")]
    assert told in line
    assert not (tmp_path / "run").exists()
