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

from gendd.models import cifar, count_parameters, create_backbone, load_weights

SHARED = Path(__file__).parents[3] / "shared"
ZOO = SHARED / "parity" / "cifar_zoo.json"
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


@pytest.mark.skipif(not ZOO.exists(), reason="no shared/parity/cifar_zoo.json beside the checkout")
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


def test_multipliers_scale_every_width() -> None:
    half = cifar.create("resnet8x0.5", 3, in_channels=1)
    assert half.conv1.weight.shape == (8, 1, 3, 3)
    assert half.fc.weight.shape == (3, 32)
    assert (
        cifar.create("resnet8x4.0", 3).conv1.weight.shape == cifar.create("resnet8x4", 3).conv1.weight.shape
    )


@pytest.mark.parametrize("name", ["resnet9", "resnet2", "resnet8x0", "resnet8x", "vgg8", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(KeyError):
        cifar.create(name, 10)
