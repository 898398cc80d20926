"""Classifiers of two layers or of a 1x1 convolution: one matrix and one bias, read and written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gendd
from gendd import Student, wrap
from gendd.deploy import deploy
from gendd.errors import UserError
from gendd.models import Backbone, Frozen, count_parameters, load_weights, save_weights
from gendd.models.affine import as_linear, assign


class Heads(nn.Module):
    """Two layers on one pooled feature, on norms of it that differ once trained, or one 1x1 convolution."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm1d(6) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(6, 5, bias=index == 0) for index in range(2))
        self.fc = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).relu().mean((2, 3))
        if self.kind == "convolution":
            logits: Tensor = self.fc(x[..., None, None]).flatten(1)
            return logits
        each = [norm(x) for norm in self.norms] if self.kind == "apart" else [x, x]
        return torch.stack([head(one) for head, one in zip(self.heads, each, strict=True)]).mean(0)


KINDS = {"shared": 6, "apart": 12, "convolution": 6}


def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=KINDS)
def net(request: Any) -> nn.Module:
    torch.manual_seed(0)
    return Heads(request.param).eval()


@pytest.fixture
def backbone(net: nn.Module) -> Backbone:
    found = wrap(net)
    # the norms agreed when the network was inspected
    net.norms[1].running_mean.add_(1)  # type: ignore[index,union-attr,operator]
    return found


def test_the_feature_times_the_matrix_is_what_the_network_gives(net: nn.Module, backbone: Backbone) -> None:
    expected = net(images())
    assert backbone.feature_dim == KINDS[net.kind] and backbone.num_classes == 5  # type: ignore[index]
    for network in (backbone, Frozen(copy.deepcopy(backbone)), Frozen(copy.deepcopy(backbone)).train()):
        feature, logits = network(images())
        torch.testing.assert_close(logits, expected)
        layer = network.classifier
        torch.testing.assert_close(feature @ layer.weight.T + layer.bias, expected)


def test_a_classifier_is_written_and_reset_through_the_layers(backbone: Backbone) -> None:
    weight, bias = torch.randn(5, backbone.feature_dim), torch.randn(5)
    assign(backbone.classifier, weight, bias)
    torch.testing.assert_close(backbone.classifier.weight, weight)
    torch.testing.assert_close(backbone.classifier.bias, bias)
    torch.testing.assert_close(backbone.net(images()), backbone(images())[1])
    backbone.classifier.reset_parameters()
    assert not torch.allclose(backbone.classifier.weight, weight)


def test_a_classifier_of_other_classes_takes_the_place_of_the_layers(backbone: Backbone) -> None:
    feature = backbone(images())[0]
    layer = nn.Linear(backbone.feature_dim, 3)
    backbone.classifier = layer
    assert backbone.num_classes == 3 == backbone.net(images()).shape[1]
    torch.testing.assert_close(backbone(images()), (feature, layer(feature)))
    with pytest.raises(UserError, match=f"classifier of {backbone.feature_dim} inputs, got 7"):
        backbone.classifier = nn.Linear(7, 3)


def test_gradients_reach_every_layer_of_it(backbone: Backbone) -> None:
    backbone.train()(images())[1].square().sum().backward()
    names = {name for name, value in backbone.net.named_parameters() if value.grad is not None}
    assert {f"{name}.weight" for name in backbone.classifier_names} | {"body.weight"} <= names
    backbone.classifier.requires_grad_(False)
    frozen = {name for name, value in backbone.net.named_parameters() if not value.requires_grad}
    assert {f"{name}.weight" for name in backbone.classifier_names} <= frozen


def test_its_layers_are_counted_kept_in_float32_and_left_out_of_the_body(backbone: Backbone) -> None:
    kept = sum(
        value.numel()
        for name in backbone.classifier_names
        for value in backbone.net.get_submodule(name).parameters()
    )
    assert count_parameters(backbone.classifier) == kept
    body = backbone.body()
    assert count_parameters(backbone) - count_parameters(body) == kept and not body.has_classifier
    torch.testing.assert_close(body.features(images()), backbone(images())[0])
    expected = backbone(images())
    half = Frozen(backbone, dtype=torch.bfloat16)(images())
    assert half[0].dtype == half[1].dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.03, atol=0.03)


def test_weights_are_the_network_s_own(net: nn.Module, backbone: Backbone, tmp_path: Path) -> None:
    save_weights(backbone, tmp_path / "w.safetensors")
    other = wrap(copy.deepcopy(net))
    with torch.no_grad():
        for value in other.parameters():
            value.zero_()
    load_weights(other, tmp_path / "w.safetensors")
    torch.testing.assert_close(other(images()), backbone(images()), rtol=0, atol=0)
    names = tuple(other.classifier_names)
    three = {key: value[:3] if key.startswith(names) else value for key, value in net.state_dict().items()}
    torch.save(three, tmp_path / "three.pt")
    with pytest.raises(UserError, match="has 3 classes, not the expected 5"):
        load_weights(other, tmp_path / "three.pt")


def test_a_student_of_it_is_saved_deployed_and_exported(backbone: Backbone, tmp_path: Path) -> None:
    student = Student(backbone).eval()
    expected = student(images())
    student.save(tmp_path)
    again = gendd.load(tmp_path, backbone=copy.deepcopy(backbone.net))
    torch.testing.assert_close(again(images()), expected, rtol=0, atol=0)
    deployed = deploy(student)
    torch.testing.assert_close(deployed(images()), expected)
    exported = torch.export.export(deployed, (images(),))
    torch.testing.assert_close(exported.module()(images()), expected)


def test_a_layer_alone_is_itself() -> None:
    layer = nn.Linear(2, 3)
    assert as_linear([layer], False) is layer
