from __future__ import annotations

import functools
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gendd.errors import UserError
from gendd.models import cifar, count_parameters, create_backbone, load_weights
from gendd.models.cifar.shufflenet import shuffle

SHARED = Path(__file__).parents[3] / "shared"
ZOO = Path(__file__).parent / "cifar_zoo.json"
WEIGHTS = SHARED / "data" / "resnet56_cifar10.safetensors"
IMAGES = SHARED / "data" / "cifar10-jpeg-test.parquet"


@functools.cache
def zoo() -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(ZOO.read_text())
    return recorded


def formula(key: str, value: Tensor) -> Tensor:
    """The weights with which the recorded numbers were made."""
    if not value.is_floating_point():
        return torch.zeros_like(value)
    wave = torch.sin(0.7 * torch.arange(value.numel(), dtype=torch.float64) + len(key)).reshape(value.shape)
    if key.endswith("running_var"):
        wave = 1 + 0.5 * wave
    elif value.dim() >= 2:
        wave = wave * math.sqrt(1 / math.prod(value.shape[1:]))
    elif key.endswith(".weight"):
        wave = 0.5 + 0.05 * wave
    else:
        wave = 0.1 * wave
    return wave.to(value.dtype)


@pytest.mark.parametrize("name", cifar.NAMES)
def test_agrees_with_the_recorded_network(name: str) -> None:
    recorded = zoo()[name]
    net = cifar.create(name, 100).eval()
    assert count_parameters(net) == recorded["parameters"]
    assert [[key, list(value.shape)] for key, value in net.state_dict().items()] == recorded["keys"]
    net.load_state_dict({key: formula(key, value) for key, value in net.state_dict().items()})
    images = torch.sin(0.01 * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64) * 3)
    images = images.reshape(2, 3, 32, 32).float()
    with torch.no_grad():
        feature = net.forward_head(net.forward_features(images), pre_logits=True)
        logits = net(images)
    assert feature.shape == (2, recorded["feature_dim"])
    sums = torch.tensor(recorded["features_sum"], dtype=torch.float64)
    torch.testing.assert_close(feature.double().sum(1), sums, rtol=1e-3, atol=0)
    torch.testing.assert_close(logits[:, :8], torch.tensor(recorded["logits"]), rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(
    not (WEIGHTS.exists() and IMAGES.exists()), reason="no shared/data with the CIFAR-10 network and images"
)
def test_public_weights_classify_cifar10() -> None:
    import numpy
    from PIL import Image
    from pyarrow import parquet  # type: ignore[import-untyped]

    backbone = create_backbone("cifar/resnet56", 10, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    load_weights(backbone, WEIGHTS)
    rows = next(parquet.ParquetFile(IMAGES).iter_batches(64)).to_pylist()
    decoded = [numpy.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows]
    images = torch.from_numpy(numpy.stack(decoded)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        _, logits = backbone.eval()(images)
    accuracy = (logits.argmax(1) == torch.tensor([row["label"] for row in rows])).float().mean()
    assert accuracy >= 0.8


# parameters with 100 classes, and entries of the state dict
SIZES = {
    "resnet8": (83892, 56),
    "resnet14": (181108, 92),
    "resnet20": (278324, 128),
    "resnet32": (472756, 200),
    "resnet44": (667188, 272),
    "resnet56": (861620, 344),
    "resnet110": (1736564, 668),
    "resnet8x4": (1233540, 62),
    "resnet32x4": (7433860, 206),
    "ResNet50": (23705252, 320),
    "wrn_16_1": (180916, 82),
    "wrn_16_2": (703284, 83),
    "wrn_40_1": (569780, 226),
    "wrn_40_2": (2255156, 227),
    "vgg8": (3965028, 37),
    "vgg11": (9277284, 58),
    "vgg13": (9462180, 72),
    "vgg16": (14774436, 93),
    "vgg19": (20086692, 114),
    "MobileNetV2": (812836, 320),
    "ShuffleV1": (949258, 296),
    "ShuffleV2": (1355528, 338),
}
ONE_A_FAMILY = ["resnet8", "ResNet50", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]


def test_every_network_has_its_published_size() -> None:
    assert set(SIZES) == set(cifar.NAMES)
    with torch.device("meta"):
        nets = {name: cifar.create(name, 100) for name in cifar.NAMES}
    assert {name: (count_parameters(net), len(net.state_dict())) for name, net in nets.items()} == SIZES


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_other_sizes_channels_and_layouts(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(f"cifar/{name}", 5, in_channels=1)
    images = torch.rand(3, 1, 21, 12)
    logits = backbone(images)[1]
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    assert [key for key, value in backbone.named_parameters() if value.grad is None] == []
    backbone.eval()
    seen: list[Tensor] = []
    backbone.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        feature, logits = backbone(images)
        own = backbone.net((images - backbone.mean) / backbone.std)
        backbone.to(memory_format=torch.channels_last)
        again = backbone(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(own, logits, rtol=0, atol=0)
    torch.testing.assert_close(feature, seen[0], rtol=0, atol=0)
    torch.testing.assert_close(again, (feature, logits), rtol=1e-4, atol=1e-5)


def test_shuffling_deals_the_groups_out_in_turn() -> None:
    channels = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffle(channels, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle(channels, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    torch.testing.assert_close(shuffle(shuffle(channels, 2), 3), channels, rtol=0, atol=0)


def test_convolutions_start_by_the_outputs_of_their_group() -> None:
    torch.manual_seed(0)
    net = cifar.create("MobileNetV2", 10)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 4000:
            outputs = module.weight[0, 0].numel() * module.out_channels / module.groups
            assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / outputs), rel=0.1)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("mobilenetv2", "MobileNetV2"),
        ("SHUFFLEV1", "ShuffleV1"),
        ("VGG13", "vgg13"),
        ("WRN_40_2", "wrn_40_2"),
        ("Resnet50", "ResNet50"),
        # of basic blocks, 6n + 2 deep
        ("resnet50", "resnet50"),
        ("resnet8x0.5", "resnet8x0.5"),
        ("lenet", "lenet"),
    ],
)
def test_names_are_found_in_any_case(given: str, name: str) -> None:
    assert cifar.canonical(given) == name


def test_wide_resnets_of_other_sizes() -> None:
    with torch.device("meta"):
        net = cifar.create("wrn_28_10", 10)
    assert count_parameters(net) == 36_479_194  # as published: 36.5 M
    assert net.fc.weight.shape == (10, 640)


def test_multipliers_scale_every_width() -> None:
    half = cifar.create("resnet8x0.5", 3, in_channels=1)
    assert half.conv1.weight.shape == (8, 1, 3, 3)
    assert half.fc.weight.shape == (3, 32)
    assert (
        cifar.create("resnet8x4.0", 3).conv1.weight.shape == cifar.create("resnet8x4", 3).conv1.weight.shape
    )


@pytest.mark.parametrize(
    "name",
    ["resnet9", "resnet2", "resnet8x0", "resnet8x", "vgg9", "wrn_17_1", "wrn_4_1", "wrn_16_0", "VGG8", ""],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(KeyError):
        cifar.create(name, 10)


@pytest.mark.parametrize("name", ["resnet9999999999992", "resnet8x1000", "wrn_16_9999", "wrn_999994_2"])
def test_names_of_networks_that_would_fill_the_memory_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"cifar/{name}"):
        create_backbone(f"cifar/{name}", 5)
