from __future__ import annotations

import argparse
import io
import pickle
import shlex
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from gendd.errors import UserError
from gendd.models import Backbone, create_backbone, load_weights, save_weights, weights, wrap
from gendd.models.weights import OtherClassesError, read_checkpoint


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


@pytest.mark.parametrize("wrapper", ["plain", "model", "state_dict", "module", "nested", "net"])
def test_wrappers_are_removed(trained: Backbone, tmp_path: Path, wrapper: str) -> None:
    state: dict[str, Any] = dict(trained.net.state_dict())
    if wrapper in ("module", "nested"):
        state = {f"module.{key}": value for key, value in state.items()}
    if wrapper in ("model", "state_dict", "net"):
        state = {wrapper: state, "epoch": 3}
    if wrapper == "nested":
        state = {"state_dict": {"model": state}}
    torch.save(state, tmp_path / "w.pth")
    other = fresh()
    load_weights(other, tmp_path / "w.pth")
    assert_same(other, trained)


@pytest.mark.parametrize(
    "prefix",
    [
        "model.",
        "net.",
        "backbone.",
        "student.",
        "network.",
        "module.model.",
        "model.module.",
        "model._orig_mod.",
    ],
)
def test_what_a_trainer_put_before_every_key_is_removed(
    trained: Backbone, tmp_path: Path, prefix: str
) -> None:
    state = {f"{prefix}{key}": value for key, value in trained.net.state_dict().items()}
    # as Lightning writes it
    content = {"epoch": 3, "state_dict": state, "loops": {"fit_loop": {}}, "hyper_parameters": {"lr": 0.1}}
    torch.save(content, tmp_path / "w.ckpt")
    other = fresh()
    load_weights(other, tmp_path / "w.ckpt")
    assert_same(other, trained)
    fewer = create_backbone("cifar/resnet8", 3)
    with pytest.raises(OtherClassesError, match="has 4 classes, not the expected 3"):
        load_weights(fewer, tmp_path / "w.ckpt")


def test_a_prefix_that_is_the_networks_own_stays(tmp_path: Path) -> None:
    def network(name: str) -> Backbone:
        net = nn.Sequential(
            OrderedDict({name: nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 4))})
        )
        return wrap(net, in_channels=3, input_size=2)

    one, other = network("model"), network("model")
    for prefix in ("", "model."):
        state = {f"{prefix}{key}": value for key, value in one.net.state_dict().items()}
        torch.save(state, tmp_path / "w.pt")
        load_weights(other, tmp_path / "w.pt")
        assert_same(other, one)


def test_a_prefix_of_another_networks_keys_is_told_as_it_is(tmp_path: Path) -> None:
    torch.save({"state_dict": {"model.a.weight": torch.zeros(1)}}, tmp_path / "w.ckpt")
    with pytest.raises(UserError, match=r"1 keys unexpected \(model\.a\.weight\)"):
        load_weights(fresh(), tmp_path / "w.ckpt")


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


def test_a_pickle_with_code_is_refused_with_the_way_out(trained: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "it's w.pt"
    torch.save({"model": trained.net.state_dict(), "args": Fraction(1, 2)}, path)
    refuse(path, "a pickle of the Python object fractions.Fraction besides")
    with pytest.raises(UserError) as caught:
        load_weights(fresh(), path)
    words = shlex.split(str(caught.value)[str(caught.value).index("python -c") :])
    assert words[:2] == ["python", "-c"] and len(words) == 3
    exec(words[2])
    other = fresh()
    load_weights(other, tmp_path / "it's w.tensors.pt")
    assert_same(other, trained)


def test_the_way_out_takes_a_pickled_network(trained: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(trained.net, path)
    with pytest.raises(UserError) as caught:
        load_weights(fresh(), path)
    exec(shlex.split(str(caught.value)[str(caught.value).index("python -c") :])[2])
    other = fresh()
    load_weights(other, tmp_path / "w.tensors.pt")
    assert_same(other, trained)


class Gadget:
    """An object whose pickle runs code on loading."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit",)


def test_code_is_not_run_inside_of_what_is_allowed(tmp_path: Path) -> None:
    torch.save({"model": {}, "opt": argparse.Namespace(lr=Gadget())}, tmp_path / "w.pt")
    refuse(tmp_path / "w.pt", "a pickle of the Python object exec besides")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_harmless_content_beside_the_state_dict(trained: Backbone, tmp_path: Path, legacy: bool) -> None:
    optimizer = torch.optim.AdamW(trained.net.parameters())
    trained(torch.rand(2, 3, 8, 8))[1].sum().backward()
    optimizer.step()
    content = {
        "epoch": 240,
        "model": trained.net.state_dict(),
        "best_acc": numpy.float64(74.3),
        "loss": numpy.float32(0.5),
        "steps": numpy.int64(3),
        "accuracy": torch.tensor(74.3),
        "optimizer": optimizer.state_dict(),
        "opt": argparse.Namespace(learning_rate=0.05, best=numpy.float64(1)),
        "history": [{"lr": 0.1}, None, "text", (1, True)],
    }
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    other = fresh()
    load_weights(other, tmp_path / "w.pth")
    assert_same(other, trained)
    state, beside = read_checkpoint(tmp_path / "w.pth")
    assert set(state) == set(trained.net.state_dict())
    assert (beside["epoch"], beside["opt"].learning_rate, "model" in beside) == (240, 0.05, False)


def test_scalars_of_numpy_1_are_read_too() -> None:
    scalar = pickle.dumps(numpy.float64(1), protocol=2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in scalar
    with torch.serialization.safe_globals(weights._HARMLESS):
        unpickler = torch._weights_only_unpickler.Unpickler(io.BytesIO(scalar), encoding="ascii")
        assert not isinstance(unpickler.load(), numpy.generic)


@pytest.mark.parametrize("name", ["linear", "classifier", "classifier.0", "head"])
def test_the_classifier_may_have_another_name(trained: Backbone, tmp_path: Path, name: str) -> None:
    state = dict(trained.net.state_dict())
    for suffix in ("weight", "bias"):
        state[f"{name}.{suffix}"] = state.pop(f"fc.{suffix}")
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pt")
    other = fresh()
    load_weights(other, tmp_path / "w.pt")
    assert_same(other, trained)


def test_the_networks_own_classifier_may_have_another_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained, other = (create_backbone("timm/test_efficientnet", 3) for _ in range(2))
    assert trained.classifier_name == "classifier"
    renamed = {key.replace("classifier.", "fc."): value for key, value in trained.net.state_dict().items()}
    torch.save(renamed, tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    assert_same(other, trained)


def test_another_classifier_is_renamed_only_where_nothing_else_differs(tmp_path: Path) -> None:
    state: dict[str, Tensor] = dict(fresh().net.state_dict())
    for suffix in ("weight", "bias"):
        state[f"linear.{suffix}"] = state.pop(f"fc.{suffix}")
    torch.save(state | {"extra": torch.zeros(1)}, tmp_path / "w.pt")
    refuse(tmp_path / "w.pt", r"2 keys missing \(fc\.weight, fc\.bias\); 3 keys unexpected \(extra, linear\.")
    torch.save(
        state | {"linear.weight": torch.zeros(7, 64), "linear.bias": torch.zeros(7)}, tmp_path / "w.pt"
    )
    refuse(tmp_path / "w.pt", r"its cifar/resnet8 has 7 classes, not the expected 4")


@pytest.mark.parametrize(
    ("content", "kind"), [({"epoch": 3}, "dict"), ([1, 2], "list"), (torch.ones(2), "Tensor")]
)
def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path, content: object, kind: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    refuse(
        tmp_path / "w.pt", rf"expected a state dict \(names to tensors\), got a {kind} holding something else"
    )


def test_what_trainers_save_beside_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = create_backbone("cifar/resnet8x0.25", 3).net
    state = network.state_dict()
    other = {key: value + 1 for key, value in state.items()}
    below = {f"model.{key}": value for key, value in state.items()}
    saved: dict[str, Any] = {
        "ema": {"state_dict": other, "state_dict_ema": state, "epoch": 3},
        "average alone": {"model_ema": state},
        "swa": torch.optim.swa_utils.AveragedModel(network).state_dict(),
        "lightning": {"state_dict": {**below, "criterion.weight": torch.ones(3)}},
    }
    for name, content in saved.items():
        file = tmp_path / f"{name}.pt"
        torch.save(content, file)
        backbone = create_backbone("cifar/resnet8x0.25", 3)
        load_weights(backbone, file)
        assert all(torch.equal(value, state[key]) for key, value in backbone.net.state_dict().items()), name
        said = capsys.readouterr().err
        assert ("took 'state_dict_ema', the average of the weights, and not 'state_dict'" in said) == (
            name == "ema"
        )
    load_weights(backbone, f"{tmp_path / 'ema.pt'}::state_dict")
    assert torch.equal(backbone.net.state_dict()["fc.bias"], other["fc.bias"])
    with pytest.raises(
        UserError, match=r"expected one of 'state_dict', 'state_dict_ema' after .*, got 'ema'"
    ):
        load_weights(backbone, f"{tmp_path / 'ema.pt'}::ema")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    backbone = create_backbone("cifar/resnet8x0.25", 3)
    before = {key: tensor.clone() for key, tensor in backbone.net.state_dict().items()}
    state = {key: tensor.clone() for key, tensor in before.items()}
    state["conv1.weight"][0, 0, 0, 0] = value
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(
        UserError, match=r"NaN or infinity in 1 of \d+ tensors \(conv1\.weight\); give an earlier"
    ):
        load_weights(backbone, tmp_path / "odd.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.net.state_dict().items())
