"""Every method by name: those that come with gendd, and those in a user's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import images
from torch import Tensor

from gendd.config import RunConfig, from_dict, registry
from gendd.errors import UserError
from gendd.methods._build import build_method
from gendd.methods.base import Method
from gendd.models import Backbone, create_backbone

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method.py"
CLASSES = 4

MINE = '''
from dataclasses import dataclass

import torch
from torch.nn import functional as F

import gendd


@dataclass
class Settings:
    """Mine.

    Args:
        scale: Factor of the loss.
    """

    scale: float = 2.0


class Mine(gendd.Method):
    """What I tried."""

    name = "{name}"
    Settings = Settings
    needs_teacher = False

    def forward(self, images, labels=None, *, generator=None):
        _, logits = self.backbone(images)
        loss = self.settings.scale * F.cross_entropy(logits, self.labelled(labels))
        return gendd.StepOutput(loss, logits)
'''


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unregister the methods that a test registers."""
    monkeypatch.setattr(registry, "_OWN", {})


def labels() -> Tensor:
    return torch.arange(8) % CLASSES


def network(name: str, seed: int) -> Backbone:
    torch.manual_seed(seed)
    return create_backbone(name, CLASSES, in_channels=1)


def build(config: RunConfig) -> Method:
    student, teacher = network("cifar/resnet8x0.25", 0), network("cifar/resnet8x0.5", 1)
    return build_method(config, student, teacher).train()


def train(method: Method, steps: int = 2) -> list[float]:
    """The losses of a few steps."""
    method.prepare([(images(), labels())])
    optimiser = torch.optim.SGD([value for value in method.parameters() if value.requires_grad], lr=0.01)
    losses = []
    for step in range(steps):
        out = method(images(), labels(), generator=torch.Generator().manual_seed(step))
        assert out.logits.shape == (8, CLASSES)
        assert all(part.dim() == 0 and not part.requires_grad for part in out.parts.values())
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
        losses.append(out.loss.item())
    return losses


def written(folder: Path, name: str = "mine") -> str:
    path = folder / "tried.py"
    path.write_text(MINE.format(name=name), encoding="utf-8")
    return f"{path}:Mine"


@pytest.mark.parametrize("name", registry.names())
def test_every_method_trains(name: str) -> None:
    method = build(RunConfig(method=name))
    assert type(method) is registry.method_class(name) and method.name == name
    assert (method.teacher is not None) == method.needs_teacher
    before = {key: value.clone() for key, value in method.named_parameters()}
    taught = [] if method.teacher is None else [value.clone() for value in method.teacher.parameters()]
    assert torch.tensor(train(method)).isfinite().all()
    after = dict(method.named_parameters())
    trained = {key for key, value in after.items() if value.requires_grad}
    assert all(not torch.equal(after[key], before[key]) for key in trained)
    # the probe trains its classifier and nothing else
    frozen = set(after) - trained
    assert ("backbone.net.conv1.weight" in frozen) == (name == "linear_probe")
    assert all(torch.equal(after[key], before[key]) for key in frozen)
    if method.teacher is not None:
        assert all(map(torch.equal, method.teacher.parameters(), taught))
    assert method.eval().student()(images()).shape == (8, CLASSES)


@pytest.mark.parametrize("name", registry.names())
def test_every_method_says_what_it_is(name: str) -> None:
    method = registry.method_class(name)
    assert "\n" not in method.summary() and len(method.summary()) > len(method.label)
    assert registry.settings_type(name) is method.Settings and registry.label(name) == method.label
    assert all(color.startswith("#") and len(color) == 7 for color in method.colors)


def test_no_two_methods_look_alike() -> None:
    looks = [(*registry.method_class(name).colors, registry.marker(name)) for name in registry.names()]
    assert len(set(looks)) == len(looks)


def test_a_file_is_a_method(tmp_path: Path) -> None:
    name = written(tmp_path)
    method = build(RunConfig(method=name))
    assert type(method) is registry.method_class(name)
    assert method.label == registry.label(name) == "mine" and method.teacher is None
    assert method.summary() == "What I tried (needs labels)"
    first, second = train(method)
    assert second < first


def test_the_settings_of_a_files_method_are_a_section(tmp_path: Path) -> None:
    name = written(tmp_path)
    plain = build(RunConfig(method=name)).eval()(images(), labels()).loss
    config = from_dict({"method": name, "mine": {"scale": 6.0}}, RunConfig)
    assert config.settings_of(name).scale == 6.0
    torch.testing.assert_close(build(config).eval()(images(), labels()).loss, 3 * plain)
    with pytest.raises(UserError, match=r"^Unknown config key 'mine\.scael'\. Did you mean 'mine\.scale'\?$"):
        from_dict({"method": name, "mine": {"scael": 6.0}}, RunConfig)


def test_a_name_that_is_none() -> None:
    with pytest.raises(UserError, match=r"^method: expected one of gendd, .*got 'rdk'\. Did you mean"):
        registry.method_class("rdk")
    with pytest.raises(UserError, match=r"^baselines: expected one of gendd, .*got 'nothing at all'\."):
        RunConfig(baselines=["nothing at all"])


def refused(name: str, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        registry.method_class(name)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_no_method(tmp_path: Path) -> None:
    name = written(tmp_path)
    refused(f"{tmp_path}/other.py:Mine", "expected a Python file, found none at")
    refused(name[:-1] + "a", "expected a subclass of gendd.Method called 'Mina'", "Did you mean 'Mine'?")
    refused(name.replace("Mine", "Settings"), "expected a subclass of gendd.Method called 'Settings'")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n", encoding="utf-8")
    refused(f"{tmp_path}/broken.py:Mine", "that can be imported", "nothing_of_that_name")


def test_a_files_method_has_a_name_of_its_own(tmp_path: Path) -> None:
    refused(written(tmp_path, "kd"), "expected a method with a name of its own, got 'kd'", "set Mine.name")


@pytest.mark.skipif(not EXAMPLE.is_file(), reason="examples/ is not beside tests/")
def test_the_example() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 60
    name = f"{EXAMPLE}:AttentionTransfer"
    values: dict[str, Any] = {"method": name, "attention_transfer": {"weight": 10.0}}
    method = build(from_dict(values, RunConfig))
    before = method.backbone.classifier.weight.detach().clone()
    assert torch.tensor(train(method)).isfinite().all()
    assert not torch.equal(method.backbone.classifier.weight, before)
    out = method.eval()(images(), labels())
    assert method.teacher is not None
    with torch.no_grad():
        maps = method.backbone.with_map(images())[1], method.teacher.with_map(images())[2]
    energies = [found.double().pow(2).sum(1).flatten(1) for found in maps if found is not None]
    ours, theirs = (energy / energy.norm(dim=1, keepdim=True) for energy in energies)
    wanted = ((ours - theirs) ** 2).mean().float()
    torch.testing.assert_close(out.parts["attention"], wanted, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(out.loss.detach(), out.parts["cross_entropy"] + 10 * wanted)
