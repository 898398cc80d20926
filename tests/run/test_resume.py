"""Settings that may change when a run is resumed, and those that may not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Finished
from PIL import Image
from runs import distil, teacher_of, untimed

from gendd.cli import main
from gendd.config import DataConfig, load_config
from gendd.data import load_data
from gendd.methods import GenDD
from gendd.run import Run

Capture = pytest.CaptureFixture[str]
ALONE = "--baselines=[]"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Steps taken, and the one at which Ctrl-C is pressed."""
    forward, found = GenDD.forward, {"taken": 0, "stop": 0}

    def counted(self: GenDD, *args: Any, **options: Any) -> Any:
        found["taken"] += 1
        if found["taken"] == found["stop"]:
            raise KeyboardInterrupt
        return forward(self, *args, **options)

    monkeypatch.setattr(GenDD, "forward", counted)
    return found


@pytest.fixture
def digit_folder(tmp_path: Path) -> Path:
    """Class folders of digits: eight a class to train on, four to test."""
    data = load_data(DataConfig())
    for part, images, count in (("train", data.train, 8), ("test", data.test, 4)):
        assert images.labels is not None
        for number in range(10):
            folder = tmp_path / "digits" / part / str(number)
            folder.mkdir(parents=True)
            rows = (images.labels == number).nonzero().flatten()[:count]
            for index, image in enumerate(images.images(rows)[:, 0].numpy()):
                Image.fromarray(image).save(folder / f"{index}.png")
    return tmp_path / "digits"


def resume(folder: Path, *options: str, code: int = 0) -> dict[str, Any]:
    assert main(["distill", "--resume", "--out", str(folder), *options]) == code
    return Run.open(folder).metrics if code == 0 else {}


def rates(folder: Path) -> list[float]:
    """The learning rate of every optimiser step up to the last checkpoint."""
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return [float(group["lr"]) for group in saved["optimizer_states"][0]["param_groups"]]


@pytest.mark.parametrize(
    ("option", "was", "value"),
    [
        ("--training.lr=0.001", "training.lr 0.02", 0.001),
        ("--training.clip_grad_norm=0.5", "training.clip_grad_norm None", 0.5),
        ("--training.epochs=4", "training.epochs 3", 4),
    ],
)
def test_training_may_go_on_in_another_way(
    option: str, was: str, value: float, digits_run: Finished, tmp_path: Path, steps: dict[str, int],
    capsys: Capture,
) -> None:  # fmt: skip
    steps["stop"] = 9
    distil(tmp_path / "run", ALONE, "--training.schedule=constant", "--training.warmup_epochs=0", code=130)
    resume(tmp_path / "run", option)
    assert f"--resume: {was} → {value} from here on" in capsys.readouterr().err
    training = load_config(tmp_path / "run" / "config.yaml").training
    assert getattr(training, option[11:].partition("=")[0]) == value
    assert rates(tmp_path / "run")[0] == pytest.approx(training.lr)
    assert steps["taken"] == 9 + 6 * ((training.epochs or 0) - 1)
    # and resumed once more, given only the folder
    before = Run.open(tmp_path / "run").metrics
    assert untimed(resume(tmp_path / "run")) == untimed(before)


def test_a_rate_that_led_nowhere_is_lowered(digits_run: Finished, tmp_path: Path, capsys: Capture) -> None:
    distil(tmp_path / "run", ALONE, "--training.lr=1e30", code=2)
    assert "--resume and a lower training.lr" in capsys.readouterr().err.splitlines()[-1]
    found = resume(tmp_path / "run", "--training.lr=0.02")
    whole = distil(tmp_path / "whole", ALONE)
    assert untimed(found["student"]) == untimed(whole["student"])


def test_a_finished_training_is_given_more_epochs(
    digits_run: Finished, tmp_path: Path, steps: dict[str, int]
) -> None:
    options = [ALONE, "--training.schedule=constant", "--training.warmup_epochs=0"]
    options += ["--training.beta2=[0.99,0.99]"]
    distil(tmp_path / "run", *options)
    taken = steps["taken"]
    resume(tmp_path / "run", "--training.epochs=5")
    assert steps["taken"] == taken + 2 * 6
    longer = distil(tmp_path / "whole", *options, "--training.epochs=5")
    assert untimed(Run.open(tmp_path / "run").metrics["student"]) == untimed(longer["student"])
    resume(tmp_path / "run", "--training.epochs=4", code=2)


def test_the_sampling_of_a_finished_run_may_change(
    digits_run: Finished, tmp_path: Path, steps: dict[str, int]
) -> None:
    distil(tmp_path / "run", ALONE, "--readout.name=sample")
    taken = steps["taken"]
    resume(tmp_path / "run", "--readout.steps=2", "--readout.num_samples=1", "--readout.sampler=ddim")
    assert steps["taken"] == taken
    settings = Run.open(tmp_path / "run").student().settings
    assert (settings.steps, settings.num_samples, settings.sampler) == (2, 1, "ddim")


def test_steps_of_sampling_that_can_not_be_are_refused_first(tmp_path: Path, capsys: Capture) -> None:
    for words in ("--readout.steps=1001", "--readout.steps=99999999"):
        distil(tmp_path / "run", words, code=2)
        assert "readout.steps: expected an integer up to gendd.timesteps, 1,000" in capsys.readouterr().err
    distil(tmp_path / "run", "--gendd.timesteps=20", "--readout.steps=21", code=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--data.train_images=150", "data.train_images was 200 and is 150"),
        ("--training.weight_decay=0.1", "training.weight_decay was 0.05 and is 0.1"),
        ("--training.epochs=2", "training.epochs was 3 and is 2"),
        ("--readout.name=linear", "readout.name was 'mean' and is 'linear'"),
    ],
)
def test_what_made_the_weights_may_not_change(
    option: str, said: str, digits_run: Finished, capsys: Capture
) -> None:
    config = (digits_run.folder / "config.yaml").read_bytes()
    assert main(["distill", "--resume", "--out", str(digits_run.folder), option]) == 2
    assert f"but {said}. Give the same, or another --out." in capsys.readouterr().err
    assert (digits_run.folder / "config.yaml").read_bytes() == config


def _remove(folder: Path) -> None:
    (folder / "train" / "0" / "0.png").unlink()


def _add(folder: Path) -> None:
    shutil.copy(folder / "train" / "0" / "0.png", folder / "train" / "0" / "new.png")


def _move(folder: Path) -> None:
    (folder / "train" / "0" / "0.png").rename(folder / "train" / "1" / "moved.png")


def _replace(folder: Path) -> None:
    shutil.copy(folder / "test" / "0" / "0.png", folder / "test" / "1" / "0.png")


@pytest.mark.parametrize("change", [_remove, _add, _move, _replace])
def test_images_that_changed_since_are_noticed(
    change: Callable[[Path], None],
    digits_run: Finished,
    digit_folder: Path,
    cache: Path,
    tmp_path: Path,
    steps: dict[str, int],
    capsys: Capture,
) -> None:
    options = ["--data.name=folder", f"--data.path={digit_folder}", "--data.train_images=null", ALONE]
    options += [f"--teacher.weights={teacher_of(cache)}", "--data.batch_size=8"]
    steps["stop"] = 3
    assert main(["distill", "--out", str(tmp_path / "run"), *TINY, *options]) == 130
    change(digit_folder)
    config = (tmp_path / "run" / "config.yaml").read_bytes()
    resume(tmp_path / "run", "--training.lr=0.001", code=2)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == config
    line = capsys.readouterr().err.splitlines()[-1]
    part = "test" if change is _replace else "training"
    assert "--resume: expected the " in line and f"{part} images that the run in" in line
    assert line.endswith("restore them, or start again with --overwrite.")
