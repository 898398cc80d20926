"""A run from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Finished
from runs import untimed

import gendd
from gendd.config import load_config
from gendd.config.registry import names
from gendd.errors import UserError
from gendd.run import Run


def settings_of(finished: Finished) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((finished.folder / "config.yaml").read_text())
    return values


def test_distill_from_python_takes_names_dicts_and_configs(digits_run: Finished, tmp_path: Path) -> None:
    given = settings_of(digits_run)
    config = load_config(digits_run.folder / "config.yaml")
    run = gendd.distill(
        teacher="cifar/resnet8x0.5",
        student=gendd.ModelConfig("cifar/resnet8x0.25"),
        data=config.data,
        out=tmp_path / "run",
        training=given["training"],
        teacher_training=config.teacher_training,
        gendd={"head_width": 32, "repeats": 2, "token_width": 32},
        readout=gendd.ReadoutConfig("mean", num_samples=2, steps=4),
    )
    assert isinstance(run, gendd.Run)
    assert run.folder == tmp_path / "run"
    first = Run.open(digits_run.folder).metrics
    assert untimed(run.metrics["student"]) == untimed(first["student"])
    assert run.metrics["baselines"] == {}


def test_distill_from_python_replaces_parts_of_a_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[gendd.RunConfig] = []
    monkeypatch.setattr("gendd.run.distilling.execute", lambda config, **flags: made.append(config))
    config = gendd.RunConfig(seed=3, training=gendd.TrainingConfig(epochs=7, lr=0.5))
    gendd.distill(config, training={"epochs": 2}, student="cifar/resnet20", data="cifar10", out=tmp_path)
    assert (made[0].seed, made[0].training.epochs, made[0].training.lr) == (3, 2, 0.5)
    assert (made[0].student.name, made[0].data.name, made[0].out) == (
        "cifar/resnet20",
        "cifar10",
        str(tmp_path),
    )
    assert config.training.epochs == 7


@pytest.mark.parametrize(
    "given, message",
    [
        ({"trainig": {}}, "Unknown config key 'trainig'. Did you mean 'training'?"),
        ({"training": {"epoch": 1}}, "Unknown config key 'training.epoch'. Did you mean 'training.epochs'?"),
        ({"training": {"epochs": 0}}, "training.epochs: expected a positive integer or null, got 0."),
        (
            {"method": "gend"},
            f"method: expected one of {', '.join(names())}, or path/to/file.py:CLASS, got 'gend'. "
            "Did you mean 'gendd'?",
        ),
        ({"seed": "x"}, "seed: expected integer, got x."),
        ({"method": {"a": 1}}, "method: expected text, got {'a': 1}."),
        ({"training": 5}, "training: expected a section (key: value lines), got 5."),
    ],
)
def test_distill_from_python_names_what_is_wrong(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        gendd.distill(**given)
    assert str(caught.value) == message
