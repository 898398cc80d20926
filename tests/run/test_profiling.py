"""Profile of a training step."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY
from torch import nn

from gendd.cli import main
from gendd.cli.options import parse_run
from gendd.models import Backbone, Frozen
from gendd.run import profile_run
from gendd.run.profiling import Profile
from gendd.student.generator import FeatureGenerator

Capture = pytest.CaptureFixture[str]
PARTS = ["loading", "augmentation", "teacher", "student", "head", "losses", "backward", "optimiser"]
LIGHT = [*TINY, "--data.train_images=64", "--data.batch_size=16"]


def profiled(*words: str, steps: int = 3) -> Profile:
    config, _ = parse_run("distill", [*LIGHT, *words])
    assert config is not None
    return profile_run(config, steps=steps)


def test_a_profile_is_printed_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["profile", *LIGHT, "--gendd.repeats=2", "--steps=2"]) == 0
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr()
    lines = said.out.splitlines()
    wanted = [
        r"step          GenDD on \S+, fp32: 16 images \(32 rows of the head\) in [\d.]+ ms, [\d,]+ images/s; "
        r"[\d.]+ times a step of KD",
        *(rf"{part:12} +[\d.]+ ms +\d+%( +█+)?" for part in PARTS),
        r"loader        [\d,]+ images/s alone, in this process",
        r"memory        [\d,]+ MB at the peak",
        r"costs         multiply-adds per image: teacher 0\.19 M, student [\d.]+ [kM]; parameters: "
        r"teacher 19\.8 k, student [\d.]+ k, head [\d.]+ k",
    ]
    assert len(lines) >= len(wanted)
    for line, pattern in zip(lines, wanted, strict=False):
        assert re.fullmatch(pattern, line), line
    assert said.err.splitlines()[-1] == "next: gendd distill with the same options"


def test_json_holds_the_same(capsys: Capture) -> None:
    assert main(["profile", *LIGHT, "--steps=1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["parts"]) == PARTS and found["beside"] == "kd"
    assert found["images"] == 16 and found["seconds"] > 0 < found["loader"]


@pytest.mark.parametrize(
    ("part", "owner", "name"),
    [
        ("teacher", Frozen, "with_stages"),
        ("student", Backbone, "with_stages"),
        ("head", FeatureGenerator, "loss_rows"),
        ("optimiser", torch.optim.SGD, "step"),
        ("backward", torch.Tensor, "backward"),
    ],
)
def test_what_takes_longer_is_charged_to_its_part(
    part: str, owner: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = getattr(owner, name)

    def slow(self: object, *given: object, **options: object) -> object:
        # the teacher's own network does not count as student
        if not (part == "student" and isinstance(self, Backbone) and not self.training):
            time.sleep(0.3)
        return call(self, *given, **options)

    monkeypatch.setattr(owner, name, slow)
    found = profiled("--training.optimizer=sgd", steps=1)
    assert found.parts[part] > 0.3 > sum(found.parts.values()) - found.parts[part]
    assert found.seconds > 0.3


def test_a_step_that_waits_for_its_images_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from gendd.data.loading import Batches

    given = Batches._from_memory

    def slow(self: Batches) -> object:
        for batch in given(self):
            time.sleep(0.2)
            yield batch

    monkeypatch.setattr(Batches, "_from_memory", slow)
    found = profiled(steps=1)
    assert found.loader == pytest.approx(16 / 0.2, rel=0.2)
    advice = str(found).splitlines()[-1]
    told = r"\d+% of the step is spent waiting for images; without that it would reach [\d,]+ images/s\. "
    assert re.match(told, advice)
    assert "--data.workers" in advice


@pytest.mark.parametrize(
    ("words", "beside"),
    [
        (["--method=kd"], None),
        (["--method=kl"], "kd"),
        (["--method=supervised"], None),
        (["--data.labels=false"], "kl"),
    ],
)
def test_beside_a_step_of_the_plain_method(words: list[str], beside: str | None) -> None:
    found = profiled(*words, "--baselines=[]", steps=1)
    assert found.beside == beside and (found.ratio is None) == (beside is None)
    assert ("times a step of" in str(found)) == (beside is not None)
    if words[0].startswith("--method"):
        assert "head" not in found.parts and found.rows == found.images


def test_the_networks_are_left_as_they_were() -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    config, _ = parse_run("distill", LIGHT)
    assert config is not None
    found = profile_run(config, steps=1, networks={"student": student})
    assert found.parameters["student"] > 0
    assert not {"forward", "features"} & set(vars(student))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps=0"], "--steps: expected at least 1, got 0."),
        (["--dry-run"], "gendd profile: expected no --dry-run, which gendd distill has; leave it out."),
        (["--step=3"], "Unknown option '--step'."),
    ],
)
def test_wrong_options_are_one_line(words: list[str], message: str, capsys: Capture) -> None:
    assert main(["profile", *LIGHT, *words]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and message in err[0]
