"""Teachers trained as part of a run, and cached."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Finished
from runs import distil, teacher_of, untimed
from torch import nn

import gendd
from gendd.config import RunConfig, from_dict, load_config
from gendd.data import load_data
from gendd.methods import Supervised
from gendd.run import Run
from gendd.run.experiment import trained_teacher
from gendd.run.networks import teacher_network
from gendd.run.teacher import freeze, open_teacher
from gendd.training import resolve_precision


def test_the_teacher_is_trained_once(
    digits_run: Finished, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "teacher cifar/resnet8x0.5: training" in digits_run.err
    assert f"(cached afterwards in {cache}" in digits_run.err
    before = (teacher_of(cache) / "student" / "model.safetensors").stat().st_mtime_ns
    metrics = distil(tmp_path / "again", "--baselines=[]")
    err = capsys.readouterr().err
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    line = rf"^teacher cifar/resnet8x0.5: cached, trained {when}, from {teacher_of(cache)}$"
    assert re.search(line, err, re.M)
    assert "supervised" not in err
    assert (teacher_of(cache) / "student" / "model.safetensors").stat().st_mtime_ns == before
    first = Run.open(digits_run.folder).metrics
    assert metrics["teacher"]["top1"] == first["teacher"]["top1"]
    # baselines have no effect: the same seed gives the same student
    assert untimed(metrics["student"]) == untimed(first["student"])


def test_an_interrupted_teacher_goes_on_by_resume(
    digits_run: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GENDD_CACHE", str(tmp_path / "cache"))
    forward, steps = Supervised.forward, 0

    def stopped(self: Supervised, *args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 15:  # of 6 an epoch
            raise KeyboardInterrupt
        return forward(self, *args, **options)

    monkeypatch.setattr(Supervised, "forward", stopped)
    distil(tmp_path / "run", "--baselines=[]", code=130)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "gendd: interrupted; what was written is kept. Go on with the same command and --resume."
    )
    (teacher,) = (tmp_path / "cache" / "teachers").iterdir()
    assert not (teacher / "metrics.json").exists()
    metrics = distil(tmp_path / "run", "--baselines=[]", "--resume")
    first = Run.open(digits_run.folder).metrics
    assert steps == 15 + 6 * 2  # two epochs were not repeated
    assert untimed(metrics["teacher"]) == untimed(first["teacher"])
    assert untimed(metrics["student"]) == untimed(first["student"])


@pytest.fixture
def teacher_folder(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return the cache name of a configuration's teacher, without training it."""
    from gendd.data import Data, load_data

    monkeypatch.setattr("gendd.run.experiment.execute", lambda config, **flags: None)

    def name(
        changed: Callable[[Data], Data] = lambda data: data,
        teacher: dict[str, Any] | None = None,
        **data: Any,
    ) -> str:
        config = gendd.RunConfig(
            data=gendd.DataConfig(train_images=100, **data),
            teacher_training=gendd.TrainingConfig(**(teacher or {})),
        )
        found = changed(load_data(config.data))
        network = teacher_network(config, found, {})
        assert network is not None
        return trained_teacher(config, found, network, torch.device("cpu")).name

    return name


def test_the_same_teacher_is_found_however_it_is_asked_for(
    teacher_folder: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = teacher_folder(path=str(tmp_path / "images"))
    monkeypatch.chdir(tmp_path)
    assert teacher_folder(path="images") == first
    assert teacher_folder(path="other/../images", workers=3, in_memory=False) == first
    assert teacher_folder(path="images", labels=False) == first
    free = {"loggers": [], "progress": True, "device": "cpu", "checkpoint_every": 7}
    assert teacher_folder(teacher=free, path="images") == first
    assert teacher_folder(path="elsewhere") != first
    monkeypatch.chdir(tmp_path.parent)
    assert teacher_folder(path="images") != first


def test_another_teacher_has_another_name(teacher_folder: Callable[..., str]) -> None:
    from gendd.data import Data

    def relabelled(data: Data) -> Data:
        return replace(data, train=replace(data.train, fingerprint="of other labels"))

    def renamed(data: Data) -> Data:
        return replace(data, class_names=[*data.class_names[:-1], "ten"])

    def fewer(data: Data) -> Data:
        return replace(data, val=None)

    names = [teacher_folder(change) for change in (lambda data: data, relabelled, renamed, fewer)]
    names += [teacher_folder(teacher={"lr": 0.5}), teacher_folder(batch_size=7), teacher_folder(split_seed=1)]
    assert len(set(names)) == len(names)
    # what "auto" resolves to here
    precisions = {name: teacher_folder(teacher={"precision": name}) for name in ("fp32", "bf16")}
    assert len(set(precisions.values())) == 2
    assert names[0] == precisions[resolve_precision("auto", torch.device("cpu"))]


def test_a_name_that_has_come_to_mean_another_network_is_another_teacher(
    teacher_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = teacher_folder()
    wider = gendd.create_backbone("cifar/resnet20x2", 10, 1)
    monkeypatch.setattr("test_trained_teacher.teacher_network", lambda *given: wider)
    assert teacher_folder() != first


def test_a_fresh_teacher_is_trained_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GENDD_CACHE", str(tmp_path / "cache"))
    quick = ["--baselines=[]", "--training.epochs=1", "--teacher_training.epochs=1"]
    distil(tmp_path / "first", *quick)
    (weights,) = (tmp_path / "cache" / "teachers").glob("*/student/model.safetensors")
    before, content = weights.stat().st_mtime_ns, weights.read_bytes()
    capsys.readouterr()
    distil(tmp_path / "second", *quick, "--fresh-teacher")
    assert "teacher cifar/resnet8x0.5: training" in capsys.readouterr().err
    assert weights.stat().st_mtime_ns > before and weights.read_bytes() == content
    for more in (["--resume"], ["--teacher", str(tmp_path / "first")]):
        distil(tmp_path / "second", *quick, "--fresh-teacher", *more, code=2)
        assert (
            "gendd: --fresh-teacher: expected a teacher that is trained first, got "
            in capsys.readouterr().err
        )


def test_the_teacher_of_a_finished_run_has_its_norms_folded(digits_run: Finished, cache: Path) -> None:
    config = load_config(digits_run.folder / "config.yaml")
    data = load_data(config.data)
    teacher = open_teacher(config, data, torch.device("cpu"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in teacher.modules())
    images = data.test.images(range(8)).float() / 255
    with torch.no_grad():
        expected = gendd.load(teacher_of(cache)).backbone(images)[1]
    torch.testing.assert_close(teacher(images)[1], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("settings", "folded"), [({}, True), ({"dtype": "bf16"}, False), ({"name": "module/Net"}, False)]
)
def test_a_teacher_that_nothing_else_has_is_frozen_without_batch_norms(
    settings: dict[str, Any], folded: bool
) -> None:
    config = from_dict({"teacher": {"name": "cifar/resnet8", **settings}}, RunConfig)
    torch.manual_seed(0)
    network = gendd.create_backbone("cifar/resnet8", 10).eval()
    images = torch.rand(4, 3, 32, 32)
    expected = network(images)
    frozen = freeze(network, config, torch.device("cpu"))
    norms = [each for each in frozen.backbone.modules() if isinstance(each, nn.BatchNorm2d)]
    assert bool(norms) is not folded
    if settings.get("dtype") is None:
        torch.testing.assert_close(frozen(images), expected, rtol=1e-4, atol=1e-5)
