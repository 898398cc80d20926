from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gendd.errors import UserError
from gendd.models import Backbone, create_backbone, load_weights, save_weights


@pytest.fixture
def trained() -> Backbone:
    torch.manual_seed(0)
    return create_backbone("cifar/resnet8", 4)


def fresh() -> Backbone:
    torch.manual_seed(1)
    return create_backbone("cifar/resnet8", 4)


def assert_same(one: Backbone, other: Backbone) -> None:
    torch.testing.assert_close(dict(one.net.state_dict()), dict(other.net.state_dict()), rtol=0, atol=0)


def test_saved_weights_come_back(trained: Backbone, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = tmp_path / "w.safetensors"
    save_weights(trained.to(memory_format=torch.channels_last), path)
    assert set(load_file(path)) == set(trained.net.state_dict())
    other = fresh()
    load_weights(other, path)
    assert_same(other, trained)


@pytest.mark.parametrize("wrapper", ["plain", "model", "state_dict", "module", "nested"])
def test_wrappers_are_removed(trained: Backbone, tmp_path: Path, wrapper: str) -> None:
    state: dict[str, Any] = dict(trained.net.state_dict())
    if wrapper in ("module", "nested"):
        state = {f"module.{key}": value for key, value in state.items()}
    if wrapper in ("model", "state_dict"):
        state = {wrapper: state, "epoch": 3}
    if wrapper == "nested":
        state = {"state_dict": {"model": state}}
    torch.save(state, tmp_path / "w.pth")
    other = fresh()
    load_weights(other, tmp_path / "w.pth")
    assert_same(other, trained)


def test_batch_counts_may_be_missing(trained: Backbone, tmp_path: Path) -> None:
    state = {k: v for k, v in trained.net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pt")
    other = fresh()
    load_weights(other, tmp_path / "w.pt")
    assert_same(other, trained)


def test_half_precision_weights_keep_the_networks_type(trained: Backbone, tmp_path: Path) -> None:
    torch.save(
        {k: v.half() if v.is_floating_point() else v for k, v in trained.net.state_dict().items()},
        tmp_path / "w.pt",
    )
    other = fresh()
    load_weights(other, tmp_path / "w.pt")
    assert other.classifier.weight.dtype == torch.float32
    torch.testing.assert_close(
        other.classifier.weight, trained.classifier.weight.half().float(), rtol=0, atol=0
    )


def refuse(path: Path, message: str) -> None:
    other, before = fresh(), fresh()
    with pytest.raises(UserError, match=message) as caught:
        load_weights(other, path)
    assert "\n" not in str(caught.value)
    assert_same(other, before)


def test_weights_of_another_network_name_the_keys(tmp_path: Path) -> None:
    save_weights(create_backbone("cifar/resnet14", 4), tmp_path / "w.safetensors")
    refuse(
        tmp_path / "w.safetensors",
        r"expected the weights of cifar/resnet8, got 36 keys unexpected "
        r"\(layer1\.1\.bn1\.bias, layer1\.1\.bn1\.num_batches_tracked, layer1\.1\.bn1\.running_mean, …\)\.",
    )
    state = fresh().net.state_dict()
    state["head.weight"] = state.pop("fc.weight")
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    torch.save(state, tmp_path / "w.pt")
    refuse(
        tmp_path / "w.pt",
        r"1 keys missing \(fc\.weight\); 1 keys unexpected \(head\.weight\); "
        r"1 keys of another shape \(conv1\.weight is 16x1x3x3 for 16x3x3x3\)",
    )


def test_another_width_is_not_taken_for_another_number_of_classes(tmp_path: Path) -> None:
    state: dict[str, Tensor] = dict(fresh().net.state_dict())
    state["fc.weight"] = torch.zeros(4, 32)
    torch.save(state, tmp_path / "w.pt")
    refuse(tmp_path / "w.pt", r"1 keys of another shape \(fc\.weight is 4x32 for 4x64\)")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "none.safetensors", "weights: expected a file, found none at")
    refuse(tmp_path, "weights: expected a file, found none at")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"no weights in here"])
def test_an_unreadable_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refuse(tmp_path / name, "expected a .safetensors file or a state dict saved by torch")


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "w.pt")
    refuse(tmp_path / "w.pt", "a pickle of the Python object argparse.Namespace")


@pytest.mark.parametrize(
    ("content", "kind"), [({"epoch": 3}, "dict"), ([1, 2], "list"), (torch.ones(2), "Tensor")]
)
def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path, content: object, kind: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    refuse(
        tmp_path / "w.pt", rf"expected a state dict \(names to tensors\), got a {kind} holding something else"
    )
