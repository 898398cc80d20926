"""Small networks of ten families as teacher and student: the logits are affine in the feature found."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from gendd.methods.gendd import GenDD
from gendd.models import Backbone, Frozen, create_backbone, multiply_adds

CLASSES = 5
# name, side in pixels, D, kinds of the layers that give the logits
NETWORKS = [
    ("timm/dla46x_c", 32, 256, ["Conv2d"]),
    ("timm/test_mambaout", 32, 256, ["Linear"]),  # behind a hidden layer
    ("timm/efficientvit_m0", 32, 192, ["Linear"]),  # behind a BatchNorm
    ("timm/efficientformerv2_s0", 32, 176, ["Linear", "Linear"]),
    ("timm/deit_tiny_distilled_patch16_224", 32, 2 * 192, ["Linear", "Linear"]),
    ("timm/levit_128s", 32, 2 * 384, ["Linear", "Linear"]),
    ("timm/cpubone_nano", 32, 1600, ["Linear"]),
    ("timm/efficientvim_m1", 64, CLASSES, ["Linear"]),  # a learned mixture: the logits themselves
    ("torchvision/squeezenet1_1", 32, CLASSES, ["Linear"]),
    ("hf/regnet", 32, 24, ["Linear"]),
]


def built(name: str, side: int, folder: Path) -> Backbone:
    torch.manual_seed(0)
    if name.startswith("hf/"):
        transformers = pytest.importorskip("transformers")
        config = transformers.RegNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 24], depths=[1] * 4, groups_width=8
        )
        config.save_pretrained(folder)
        name = f"hf/{folder}"
    return create_backbone(name, CLASSES, input_size=side).eval()


@torch.no_grad()
def stir(net: nn.Module) -> None:
    """Randomise norms, so that they have an effect and differ after the same layer."""
    for name, value in net.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)


@pytest.mark.parametrize(("name", "side", "width", "kinds"), NETWORKS, ids=[each[0] for each in NETWORKS])
def test_logits_are_affine_in_the_feature(
    name: str, side: int, width: int, kinds: list[str], tmp_path: Path
) -> None:
    backbone = built(name, side, tmp_path)
    stir(backbone.net)
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        own = backbone.net(backbone.prepare(images))
    own = getattr(own, "logits", own)
    layers = [backbone.net.get_submodule(each) for each in backbone.classifier_names]
    assert [type(each).__name__ for each in layers] == kinds
    assert (backbone.feature_dim, backbone.num_classes) == (width, CLASSES)
    teacher = Frozen(copy.deepcopy(backbone))
    feature, logits = teacher(images)
    matrix, bias = teacher.classifier.weight, teacher.classifier.bias
    assert feature.shape == (2, width) and matrix.shape == (CLASSES, width)
    for found in (logits, feature @ matrix.T + bias):
        torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-5 * float(own.abs().max()))
    assert multiply_adds(backbone.net, backbone.prepare(images[:1])) > 10**5
    method = GenDD(backbone, teacher, labels=True, map_weight=0, head_width=16, head_depth=1).train()
    labels = torch.arange(2)
    method.prepare([(images, labels)])
    loss = method(images, labels).loss
    loss.backward()
    assert bool(loss.isfinite())
    grads = [value.grad for value in method.backbone.parameters() if value.grad is not None]
    assert len(grads) > 5 and all(bool(each.isfinite().all()) for each in grads)
    assert any(bool(each.any()) for each in grads)
