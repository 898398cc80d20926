"""Networks that don't exist or can't be built, and weights files with other content."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
import torch
from safetensors.torch import save, save_file

from gendd.models import create_backbone, save_weights
from mistakes.case import Case, Made, Place

_NAMES = [
    *("resnet20", "cifar/", "cifar/resnet", "cifar/resnet21", "cifar/resnet9999999999992", "cifar/resnet8x0"),
    *("cifar/resnet8x1000000", "cifar/wrn_16_0", "cifar/wrn_16_99999999", "cifar/vgg7", "cifar/MobileNetV9"),
    *("timm/", "timm/resnett18", "timm/resnet18.nothing", "torchvision/resnet19", "torchvision/", "0"),
    *("hf/", "hf/./nothing", "hf//nothing", "keras/resnet50", "/", "//", ".", "a b", "../resnet20", "null"),
    *("net.py:network", "net.py:", ":network", "timm/resnet18\n", "CIFAR/resnet20", "tiem/resnet18"),
    *("module/x", "NULL/1"),
]  # fmt: skip

_WRONG = {
    "of a size it can't take": ["--student=timm/vit_tiny_patch16_224", "--student.input_size=8"],
    "inception of 8 pixels": ["--student=torchvision/inception_v3"],
    "two means": ["--student.mean=[0.5,0.5]"],
    "a deviation of 0": ["--student.std=[0]"],
    "seven channels": ["--student.channels=7"],
    "a feature that is not there": ["--student.feature=nothing"],
    "a feature that is empty": ["--student.feature="],
    "pretrained that has none": ["--student.pretrained=true"],
    "a head too deep": ["--gendd.head_depth=101"],
    "a head too wide": ["--gendd.head_width=70000"],
    "a probe of nothing": ["--method=linear_probe", "--baselines=[]"],
}

_SOURCES = {
    "an error": "raise RuntimeError('no')",
    "no Python": "def network(:",
    "another name": "def net(num_classes): ...",
    "a number": "network = 5",
    "nothing returned": "def network(num_classes): ...",
    "an exit": "def network(num_classes): raise SystemExit(0)",
    "an argument": "def network(num_classes, colour): ...",
    "no images": "import torch\ndef network(num_classes): return torch.nn.Linear(3, num_classes)",
    "a missing package": "import nothing_of_this_name\ndef network(num_classes): ...",
}


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code of a pickle ran')",)


def _torch(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("data.pkl", b"nothing")
    return stream.getvalue()


def _npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, weight=np.zeros(3))
    return stream.getvalue()


def _header(described: dict[str, object], content: bytes = b"") -> bytes:
    """A safetensors file with a given header."""
    text = json.dumps(described).encode()
    return struct.pack("<Q", len(text)) + text + content


def _files() -> dict[str, bytes]:
    state = {"fc.weight": torch.zeros(10, 16)}
    whole = save(state)
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return {
        "text.safetensors": b"weights",
        "empty.safetensors": b"",
        "cut.safetensors": whole[:-5],
        "cut_header.safetensors": whole[:20],
        "huge_header.safetensors": struct.pack("<Q", 2**62) + b"{}",
        "no_tensors.safetensors": _header({}),
        "outside.safetensors": _header({"a": {**tensor, "data_offsets": [0, 2**40]}}, bytes(4)),
        "negative.safetensors": _header({"a": {**tensor, "shape": [-1]}}, bytes(4)),
        "huge_shape.safetensors": _header({"a": {**tensor, "shape": [2**60]}}, bytes(4)),
        "odd_type.safetensors": _header({"a": {**tensor, "dtype": "X9"}}, bytes(4)),
        "list.safetensors": _header([], b""),  # type: ignore[arg-type]
        "torch.safetensors": _torch(state),
        "safetensors.pth": whole,
        "text.pth": b"weights",
        "empty.pth": b"",
        "cut.pth": _torch(state)[:-40],
        "zip.pth": _zip(),
        "npz.pth": _npz(),
        "json.pth": b'{"fc.weight": [1, 2]}',
        "code.pth": pickle.dumps(_Code()),
        "code_beside.pth": _torch({"model": state, "more": _Code()}),
        "network.pth": _torch(torch.nn.Linear(2, 2)),
        "list.pth": _torch([1, 2]),
        "tensor.pth": _torch(torch.zeros(2)),
        "number.pth": _torch(5),
        "numbers.pth": _torch({"model": {"fc.weight": 3}}),
        "no_names.pth": _torch({1: torch.zeros(2)}),
        "empty_dict.pth": _torch({}),
        "another.pth": _torch(state),
        "sparse.pth": _torch({"fc.weight": torch.eye(3).to_sparse()}),
    }


def cases() -> Iterator[Case]:
    for role in ("teacher", "student"):
        for name in _NAMES:

            def named(place: Place, role: str = role, name: str = name) -> Made:
                return place.distill(f"--{role}.name={name}")

            yield Case("networks", f"{role} {name!r}", named)
    for name, words in _WRONG.items():

        def wrong(place: Place, words: list[str] = words) -> Made:
            return place.distill(*words)

        yield Case("networks", name, wrong)
    for name, source in _SOURCES.items():

        def written(place: Place, source: str = source) -> Made:
            return place.distill("--student", f"{place.write('net.py', source)}:network")

        yield Case("networks", f"a file with {name}", written)
    for number, name in enumerate(_files()):

        def damaged(place: Place, name: str = name) -> Made:
            return place.distill(f"--student.weights={place.write(name, _files()[name])}")

        yield Case("weights", name, damaged, quick=number == 0)
    yield Case("weights", "other classes", _of("cifar/resnet8", 7, role="teacher"))
    yield Case("weights", "other widths", _of("cifar/resnet8x0.5", 10))
    yield Case("weights", "another depth", _of("cifar/resnet14", 10))
    yield Case("weights", "a part that is not there", _of("cifar/resnet8", 10, "::ema"))
    yield Case("weights", "numbers that are none", _not_finite)


def _of(name: str, classes: int, part: str = "", role: str = "student") -> Callable[[Place], Made]:
    def make(place: Place) -> Made:
        file = place.folder / "other.safetensors"
        save_weights(create_backbone(name, classes, in_channels=1), file)
        return place.distill(f"--{role}=cifar/resnet8", f"--{role}.weights={file}{part}", "--method=kd")

    return make


def _not_finite(place: Place) -> Made:
    state = create_backbone("cifar/resnet8", 10, in_channels=1).net.state_dict()
    spoiled = {
        key: torch.full_like(value, torch.nan) if "weight" in key else value for key, value in state.items()
    }
    save_file(spoiled, place.folder / "nan.safetensors")
    return place.distill("--student=cifar/resnet8", f"--student.weights={place.folder / 'nan.safetensors'}")
