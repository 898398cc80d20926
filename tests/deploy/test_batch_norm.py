from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from helpers import images as random_images
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gendd.config import GenDDConfig, ReadoutName
from gendd.deploy import deploy, fold_batch_norms
from gendd.models import Backbone, create_backbone, wrap
from gendd.models.feature import Reading
from gendd.student import Student
from gendd.student.generator import FeatureGenerator


def moved(backbone: Backbone) -> Backbone:
    """Return a network in eval mode, with norms far from their initial identity."""
    random = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            assert module.running_mean is not None
            module.running_var.uniform_(0.5, 2, generator=random)
            module.running_mean.normal_(0, 0.3, generator=random)
            if module.affine:
                with torch.no_grad():
                    module.weight.uniform_(-1.5, 1.5, generator=random)
                    module.bias.normal_(0, 0.3, generator=random)
    return backbone.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


def images(side: int = 32) -> Tensor:
    return random_images(2, 1, channels=3, side=side)


# timm's have norms with an activation in them and convolutions that pad to the size they give
@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("cifar/resnet20", 0),
        ("cifar/mobilenetv2", 0),
        ("timm/resnet18", 0),
        ("timm/tf_efficientnet_lite0", 0),
        ("timm/mobilenetv3_small_050", 0),
        ("torchvision/mobilenet_v2", 0),
        # its norms come before activation and convolution, and can't be folded
        ("timm/densenet121", 62),
    ],
)
@torch.no_grad()
def test_norms_become_part_of_convolutions(name: str, left: int) -> None:
    torch.manual_seed(0)
    backbone = moved(create_backbone(name, 5, input_size=32))
    folded = copy.deepcopy(backbone)
    count = norms(backbone)
    assert fold_batch_norms(folded) == count - left
    assert norms(folded) == left
    for found, expected in zip(folded(images()), backbone(images()), strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)
    assert norms(backbone) == count


class Net(nn.Module):
    """Two convolutions and norms, and a classifier, called in different ways."""

    def __init__(self, way: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)
        self.classifier = nn.Linear(3, 4)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.way(self, x).mean((2, 3)))
        return logits


def straight(net: Net, x: Tensor) -> Tensor:
    found: Tensor = net.other(net.second(net.norm(net.first(x)).relu()))
    return found


def branching(net: Net, x: Tensor) -> Tensor:
    before = net.first(x)
    found: Tensor = net.norm(before) + before
    return found


def repeated(net: Net, x: Tensor) -> Tensor:
    found: Tensor = net.norm(net.first(net.norm(net.first(x))))
    return found


def weight_read(net: Net, x: Tensor) -> Tensor:
    found: Tensor = net.norm(net.first(x)) * net.first.weight.sum()
    return found


def deciding(net: Net, x: Tensor) -> Tensor:
    found: Tensor = net.norm(net.first(x)) if x.mean() > 0 else net.other(net.second(x))
    return found


def apart(net: Net, x: Tensor) -> Tensor:
    found: Tensor = net.norm(net.first(x).relu())
    return found


@pytest.mark.parametrize(
    ("way", "folded"),
    [(straight, 2), (branching, 0), (repeated, 0), (weight_read, 0), (deciding, 0), (apart, 0)],
)
def test_only_what_stays_the_same_is_folded(way: Callable[[Net, Tensor], Tensor], folded: int) -> None:
    torch.manual_seed(0)
    backbone = moved(wrap(Net(way), in_channels=3, input_size=8))
    expected = backbone(images(8))[1]
    assert fold_batch_norms(backbone) == folded
    assert norms(backbone) == 2 - folded
    torch.testing.assert_close(backbone(images(8))[1], expected)


def _share(net: Net) -> None:
    net.second.weight = net.first.weight


def _parametrize(net: Net) -> None:
    nn.utils.parametrizations.weight_norm(net.first)


def _no_statistics(net: Net) -> None:
    net.norm = nn.BatchNorm2d(3, track_running_stats=False).eval()


def _train(net: Net) -> None:
    net.norm.train()


@pytest.mark.parametrize(
    ("change", "folded"),
    [(_share, 0), (_parametrize, 1), (_no_statistics, 1), (_train, 1)],
)
def test_layers_that_are_more_than_they_seem_stay(change: Callable[[Net], None], folded: int) -> None:
    torch.manual_seed(0)
    net = Net(straight)
    backbone = moved(wrap(net, in_channels=3, input_size=8))
    change(net)
    # with the first norm's current statistics, which each call in training mode would change
    expected = copy.deepcopy(backbone)(images(8))[1]
    assert fold_batch_norms(backbone) == folded
    torch.testing.assert_close(backbone(images(8))[1], expected)


def test_a_network_with_hooks_stays_and_they_are_not_called() -> None:
    net = Net(straight)
    backbone = moved(wrap(net, in_channels=3, input_size=8))
    called: list[object] = []
    net.register_forward_hook(lambda *values: called.append(values))
    assert fold_batch_norms(backbone) == 0
    assert not called


def lying(net: Net, x: Tensor) -> Tensor:
    # a tracer passes proxies, not tensors
    found: Tensor = net.norm(net.first(x).relu() if isinstance(x, Tensor) else net.first(x))
    return found


def test_a_network_that_was_traced_on_another_way_is_put_back() -> None:
    torch.manual_seed(0)
    net = Net(lying)
    backbone = moved(wrap(net, in_channels=3, input_size=8))
    expected, keys = backbone(images(8))[1], list(net.state_dict())
    assert fold_batch_norms(backbone) == 0
    assert torch.equal(backbone(images(8))[1], expected)
    assert list(net.state_dict()) == keys and norms(net) == 2


def aliased(net: Net, x: Tensor) -> Tensor:
    found: Tensor = net.again(net.first(x))  # type: ignore[operator]
    return found


def asking(net: Net, x: Tensor) -> Tensor:
    found: Tensor = net.norm(net.first(x)) * net.norm.num_features
    return found


@pytest.mark.parametrize("way", [aliased, asking])
def test_a_norm_that_is_reached_otherwise_too_stays(way: Callable[[Net, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = Net(way)
    # under its second name it is found first
    net.again = net.norm
    backbone = moved(wrap(net, in_channels=3, input_size=8))
    expected = backbone(images(8))[1]
    fold_batch_norms(backbone)
    torch.testing.assert_close(backbone(images(8))[1], expected)


def test_a_feature_that_a_container_gives_stays() -> None:
    torch.manual_seed(0)
    net = Net(lambda net, x: net.norm(net.stem(x)).relu())  # type: ignore[operator]
    net.stem = nn.Sequential(nn.Conv2d(3, 3, 3))
    backbone = moved(wrap(net, in_channels=3, input_size=8, feature="stem", classifier=False))
    expected = backbone.features(images(8))
    fold_batch_norms(backbone)
    torch.testing.assert_close(backbone.features(images(8)), expected)


def test_a_network_with_parameters_of_its_own_is_folded() -> None:
    backbone = moved(create_backbone("timm/visformer_tiny", 3, input_size=224))
    assert fold_batch_norms(backbone) > 0


def test_a_network_that_cannot_be_copied_stays() -> None:
    net = Net(straight)
    backbone = moved(wrap(net, in_channels=3, input_size=8))
    net.lock = threading.Lock()
    assert fold_batch_norms(backbone) == 0


def test_a_network_of_one_size_of_images_is_folded() -> None:
    # its input size is unknown, and 32 and 64 are too small
    backbone = moved(create_backbone("timm/inception_v3", 3))
    assert backbone.image_size is None
    assert fold_batch_norms(backbone) == 94 and norms(backbone) == 0


def test_autocast_around_it_changes_nothing() -> None:
    backbone = moved(create_backbone("cifar/resnet20", 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert fold_batch_norms(backbone) == 21


def test_a_feature_between_convolution_and_norm_stays() -> None:
    torch.manual_seed(0)
    backbone = moved(wrap(Net(straight), in_channels=3, input_size=8, feature="first"))
    assert isinstance(backbone.reading, Reading) and backbone.reading.modules == ("first",)
    expected = backbone.features(images(8))
    assert fold_batch_norms(backbone) == 1
    torch.testing.assert_close(backbone.features(images(8)), expected)


def test_halves_are_left_alone() -> None:
    backbone = moved(create_backbone("cifar/resnet20", 4)).compute_in(torch.bfloat16)
    assert fold_batch_norms(backbone) == 0


@torch.no_grad()
@pytest.mark.parametrize("readout", ["linear", "mean"])
def test_a_deployed_student_has_its_norms_folded(readout: ReadoutName) -> None:
    torch.manual_seed(0)
    backbone = moved(create_backbone("cifar/resnet20", 4)).to(memory_format=torch.channels_last)
    generator = FeatureGenerator(64, 8, GenDDConfig(head_width=16, token_width=4, zero_init=False))
    student = Student(backbone, generator, nn.Linear(8, 4)).eval()
    student.readout = readout
    deployed = deploy(student)
    assert norms(deployed) == 0 and norms(student) == 21
    layers = [layer for layer in deployed.modules() if isinstance(layer, nn.Conv2d)]
    assert all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in layers)
    assert not any(parameter.requires_grad for parameter in deployed.parameters())
    expected = student(images())
    torch.testing.assert_close(deployed(images()), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
