from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gendd
from gendd.config import ModelConfig
from gendd.errors import UserError
from gendd.models import build_model, create_backbone, save_weights
from gendd.models.module import digest
from gendd.student import Student, load

NETS = """
import torch
from torch import nn
from neighbour import WIDTH


class Net(nn.Module):
    def __init__(self, num_classes=10, in_channels=3, width=WIDTH):
        super().__init__()
        self.body = nn.Conv2d(in_channels, width, 3)
        self.last = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.last(self.body(x).mean((2, 3)))


def fixed():
    return Net(4, 3)


def trained(pretrained, **others):
    net = Net(**others)
    nn.init.constant_(net.last.weight, float(pretrained))
    return net


def needs(num_classes, depth):
    return Net()


def fails(num_classes):
    raise RuntimeError("out of ideas\\nmore")


def nothing():
    return "a network"


count = 3
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 6\n")
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path / "nets.py"


def test_a_class_of_a_file_is_built_and_reloaded(nets: Path, tmp_path: Path) -> None:
    name = f"{nets}:Net"
    backbone = create_backbone(name, 7, in_channels=2).eval()
    assert (backbone.num_classes, backbone.in_channels, backbone.feature_dim) == (7, 2, 6)
    assert (backbone.input_mean, backbone.input_std) == ([0.0, 0.0], [1.0, 1.0])
    assert backbone.describe() == f"{name}: feature = input of last (Linear), D 6, K 7"
    images = torch.rand(2, 2, 8, 8)
    torch.testing.assert_close(backbone(images)[1], backbone.net(images), rtol=0, atol=0)
    with gendd.trusted_code():
        again = load(Student(backbone).save(tmp_path / "student"))
    torch.testing.assert_close(again(images), backbone(images)[1], rtol=0, atol=0)
    config = ModelConfig(f"{nets.parent}/../{nets.parent.name}/nets.py:Net", str(tmp_path / "student"))
    assert build_model(config, 7, 2).num_classes == 7


def test_a_function_takes_what_it_names(nets: Path) -> None:
    grey = create_backbone(f"{nets}:fixed", 9, in_channels=1)
    assert (grey.num_classes, grey.in_channels, grey.channels) == (4, 1, 3)
    trained = create_backbone(f"{nets}:trained", 9, pretrained=True)
    assert trained.num_classes == 9 and bool((trained.classifier.weight == 1).all())
    assert not create_backbone(f"{nets}:trained", 9).classifier.weight.any()


def test_an_embedding_of_a_file(nets: Path, tmp_path: Path) -> None:
    whole = create_backbone(f"{nets}:Net", 9).eval()
    save_weights(whole, tmp_path / "w.safetensors")
    config = ModelConfig(f"{nets}:Net", str(tmp_path / "w.safetensors"), classifier=False)
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(build_model(config, 3, 3).eval()(images)[0], whole(images)[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Nett", r"expected a function 'Nett' in .*nets\.py\. Did you mean 'Net'\?"),
        ("count", "expected a function 'count'"),
        ("needs", "got one that needs 'depth'; give that a default"),
        ("fails", "expected a function that returns a network; RuntimeError: out of ideas$"),
        ("nothing", "expected a function that returns a torch.nn.Module, got one of str"),
    ],
)
def test_a_function_that_is_none_is_named(nets: Path, factory: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        create_backbone(f"{nets}:{factory}", 5)
    assert str(caught.value).startswith(f"{nets}:{factory}: ") and "\n" not in str(caught.value)


def test_a_file_that_is_none_is_named(nets: Path) -> None:
    with pytest.raises(UserError, match=r"none\.py:Net: expected a Python file, found none at"):
        create_backbone("none.py:Net", 5)
    nets.write_text("import torch\nraise ValueError('no more')\n")
    with pytest.raises(UserError, match="expected a Python file that can be imported; ValueError: no more"):
        create_backbone(f"{nets}:Net", 5)
    nets.write_text("def f(:\n")
    with pytest.raises(UserError, match="expected a Python file that can be imported; SyntaxError"):
        create_backbone(f"{nets}:Net", 5)


def test_a_file_that_changed_is_another_network(nets: Path) -> None:
    first = digest(f"{nets}:Net")
    assert first is not None and digest("cifar/resnet8") is None
    nets.write_text(NETS.replace("width=WIDTH", "width=2 * WIDTH"))
    assert digest(f"{nets}:Net") != first
    assert create_backbone(f"{nets}:Net", 5).feature_dim == 12
