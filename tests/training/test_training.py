from __future__ import annotations

import copy
import csv
import dataclasses
import json
import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning
import pytest
import torch
from started import Started
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.config import DataConfig, TrainingConfig
from gendd.data import Data, Mixing, load_data, train_loader
from gendd.errors import UserError
from gendd.methods import KD, GenDD, KDConfig, LinearProbe, Method, StepOutput, Supervised
from gendd.methods.feature_mse import FeatureMSE
from gendd.models import Backbone, create_backbone
from gendd.processes import share
from gendd.student import Student
from gendd.training import (
    FitResult,
    LightningMethod,
    beta2,
    choose_monitor,
    derive_seed,
    fit,
    learning_rate_factor,
    overruns,
    parameter_groups,
    resolve_device,
    resolve_precision,
)
from gendd.training.callbacks import Progress
from gendd.training.device import strides_over_one_position
from gendd.training.trainer import make_loggers

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = 128
DATA = DataConfig(train_images=IMAGES, batch_size=64, validation=0.05)
STEPS = IMAGES // 64


def settings(**changes: Any) -> TrainingConfig:
    defaults: dict[str, Any] = {
        "epochs": 2,
        "lr": 1e-2,
        "warmup_epochs": 0.5,
        "loggers": [],
        "device": "cpu",
        "precision": "fp32",
        "progress": False,
    }
    return TrainingConfig(**{**defaults, **changes})


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(DATA)


def network(name: str = "cifar/resnet8x0.25", seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return create_backbone(name, 10, in_channels=1)


def gendd(student: str = "cifar/resnet8x0.25", **changes: Any) -> GenDD:
    teacher = network("cifar/resnet8x0.5", seed=1)
    torch.manual_seed(2)
    small: dict[str, Any] = {"token_width": 16, "repeats": 2, "head_width": 16, "head_depth": 1, "mixup": 0.5}
    small["map_weight"] = 0.0
    return GenDD(network(student), teacher, **{**small, **changes})


def run(
    method: Method, data: Data, folder: Path, config: TrainingConfig | None = None, **more: Any
) -> FitResult:
    return fit(method, data, config or settings(), DATA, seed=0, folder=folder, **more)


def checkpoint(folder: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=False)
    return loaded


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    """A checkpoint's weights by the method's names."""
    state = checkpoint(folder, name)["state_dict"]
    return {key.removeprefix("method."): value for key, value in state.items() if key.startswith("method.")}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class Stopping(Supervised):
    """Calls a function once, at the start of a step."""

    def __init__(self, backbone: Backbone, step: int, action: Any) -> None:
        super().__init__(backbone)
        self.step, self.action, self.steps = step, action, 0

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        out = super().forward(images, labels, generator=generator)
        self.steps += 1
        if self.steps - 1 == self.step:
            return self.action(out) or out
        return out


# --- schedules ---


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
@pytest.mark.parametrize("warmup, last", [(2.0, 19), (0.5, 4), (0.1, 0)])
def test_the_warmup_is_linear_and_reaches_the_full_rate(schedule: Any, warmup: float, last: int) -> None:
    config = settings(epochs=10, warmup_epochs=warmup, schedule=schedule)
    factors = [learning_rate_factor(step, 10, config) for step in range(last + 2)]
    assert factors[last] == 1.0 and factors[last + 1] == 1.0
    assert factors[: last + 1] == [(step + 1) / (last + 1) for step in range(last + 1)]


def test_the_cosine_goes_from_one_to_the_smallest_rate() -> None:
    config = settings(epochs=10, lr=2e-3, min_lr=2e-4, warmup_epochs=2.0)
    assert learning_rate_factor(20, 10, config) == 1.0
    assert learning_rate_factor(60, 10, config) == pytest.approx(0.1 + 0.9 * 0.5)
    assert learning_rate_factor(40, 10, config) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert learning_rate_factor(100, 10, config) == pytest.approx(0.1)
    assert learning_rate_factor(500, 10, config) == pytest.approx(0.1)


def test_without_warmup_the_first_step_has_the_full_rate() -> None:
    assert learning_rate_factor(0, 10, settings(warmup_epochs=0.0)) == 1.0


def test_the_steps_decay_at_their_milestones() -> None:
    config = settings(epochs=10, schedule="step", milestones=[3, 5], warmup_epochs=0.0)
    came = [learning_rate_factor(step, 10, config) for step in (0, 29, 30, 49, 50, 99)]
    assert came == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_steps_decay_by_gamma() -> None:
    config = settings(epochs=10, schedule="step", milestones=[3, 5], warmup_epochs=0.0, gamma=0.2)
    came = [learning_rate_factor(step, 10, config) for step in (29, 30, 50)]
    assert came == pytest.approx([1, 0.2, 0.04])


def test_the_warmup_is_a_tenth_unless_told() -> None:
    config = settings(epochs=20, warmup_epochs=None, schedule="constant")
    came = [learning_rate_factor(step, 2, config) for step in (0, 3, 4, 39)]
    assert came == [1 / 4, 1, 1, 1]


def test_beta2_rises_on_a_half_cosine() -> None:
    config = settings(beta2=(0.95, 0.999))
    assert beta2(0, 101, config) == pytest.approx(0.95, abs=1e-15)
    assert beta2(50, 101, config) == pytest.approx((0.95 + 0.999) / 2)
    assert beta2(25, 101, config) == pytest.approx(0.999 - 0.049 * (1 + math.sqrt(0.5)) / 2)
    assert beta2(100, 101, config) == 0.999 and beta2(500, 101, config) == 0.999
    assert beta2(0, 1, config) == pytest.approx(0.95, abs=1e-15)


# --- small parts ---


def test_decay_spares_vectors_biases_and_the_head() -> None:
    method = gendd()
    decayed, plain = parameter_groups(method, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    chosen = {names[id(parameter)] for parameter in decayed["params"]}
    assert chosen == {
        name
        for name, parameter in method.backbone.named_parameters(prefix="backbone")
        if parameter.ndim > 1 and not name.endswith("bias")
    }
    assert chosen and not any(".bn" in name for name in chosen)
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_decay_of_all_spares_the_head_alone() -> None:
    method = gendd()
    decayed, plain = parameter_groups(method, 0.05, decay_all=True)
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    assert {names[id(parameter)] for parameter in decayed["params"]} == {
        f"backbone.{name}" for name, _ in method.backbone.named_parameters()
    }
    assert {names[id(parameter)] for parameter in plain["params"]} == {
        f"generator.{name}" for name, _ in method.generator.named_parameters()
    }
    (every,) = parameter_groups(Supervised(network()), 0.05, decay_all=True)
    assert len(every["params"]) == len(list(network().parameters())) and every["weight_decay"] == 0.05


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    method = Supervised(network())
    method.requires_grad_(False)
    assert parameter_groups(method, 0.1) == []
    method.backbone.classifier.bias.requires_grad_(True)
    (group,) = parameter_groups(method, 0.1)
    assert group["weight_decay"] == 0.0 and len(group["params"]) == 1


def test_a_seed_depends_on_every_part() -> None:
    # the first 8 bytes of SHA-256, without the lowest bit
    assert derive_seed() == 0xE3B0C44298FC1C14 >> 1
    assert derive_seed("abc") == 0xBA7816BF8F01CFEA >> 1
    assert derive_seed(0, "step", 1) == derive_seed(0, "step", 1)
    assert len({derive_seed(*parts) for parts in [(0, 1), (1, 0), (0, 1, 0), ("0", "step"), (0,)]}) == 5
    torch.Generator().manual_seed(derive_seed("any"))


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(UserError, match=f"got '{name}'; use 'auto' or 'cpu'"):
            resolve_device(name)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")


def test_the_precision_is_bf16_only_where_the_device_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda, mps = (torch.device(name) for name in ("cpu", "cuda", "mps"))
    for name in ("fp32", "bf16", "fp16"):
        assert resolve_precision(name, cuda) == name
    assert resolve_precision("bf16", cpu) == "bf16"
    with pytest.raises(UserError, match="expected fp32 or bf16 on a CPU, got 'fp16'"):
        resolve_precision("fp16", cpu)
    assert resolve_precision("auto", mps) == "fp32"
    units = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    for name in units:
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert resolve_precision("auto", cpu) == "fp32"
    for name in units:
        with monkeypatch.context() as patch:
            patch.setattr(torch.cpu, name, lambda: True)
            assert resolve_precision("auto", cpu) == "bf16"
    for able, wanted in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able, **_: able)
        assert resolve_precision("auto", cuda) == wanted
    for name in units:
        monkeypatch.delattr(torch.cpu, name)
    assert resolve_precision("auto", cpu) == "fp32"


def test_what_is_watched(data: Data) -> None:
    def module(method: Method, labels: bool) -> LightningMethod:
        return LightningMethod(method, data, settings(), DataConfig(labels=labels), 0, False)

    assert module(gendd(), True).monitor == "val/mean"
    assert set(module(gendd(), True).accuracy) == {"linear", "mean"}
    assert module(Supervised(network()), True).monitor == "val/linear"
    for readout, monitor in (("linear", "val/linear"), ("sample", "val/mean")):
        chosen = LightningMethod(gendd(), data, settings(), DataConfig(), 0, False, cast(Any, readout))
        assert chosen.monitor == monitor
    assert module(gendd(), False).monitor == "val/agreement"


def headless(name: str = "cifar/resnet8x0.5") -> Backbone:
    """A teacher without a classifier."""
    whole = network(name, seed=1)
    return Backbone(whole.net, name=name, in_channels=1, mean=[0.5], std=[0.25], classifier=False)


def taught(teacher: str, labels: bool, **changes: Any) -> GenDD:
    """GenDD with a teacher of the ``same`` classes, of ``other`` ones, or of ``none``."""
    network_ = (
        headless()
        if teacher == "none"
        else create_backbone("cifar/resnet8x0.5", 10 if teacher == "same" else 15, in_channels=1)
    )
    classes = 15 if teacher == "other" and not labels else 10
    small: dict[str, Any] = {"token_width": 16, "repeats": 2, "head_width": 16, "head_depth": 1}
    # after so few steps BatchNorm's running averages don't match the maps behind the estimate
    small["residual"] = False
    student = create_backbone("cifar/resnet8x0.25", classes, in_channels=1)
    return GenDD(student, network_, labels=labels, **{**small, **changes})


@pytest.mark.parametrize(
    "teacher, labels, changes, found",
    [
        ("same", True, {}, {"auto": "mean", "top1": "mean", "agreement": "agreement"}),
        ("same", False, {}, {"auto": "agreement", "top1": None, "agreement": "agreement"}),
        ("other", False, {}, {"auto": "agreement", "top1": None, "agreement": "agreement"}),
        # the means predict the data's classes, the teacher's classifier its own
        ("other", True, {"centres": "means"}, {"auto": "mean", "top1": "mean", "agreement": None}),
        ("other", True, {}, {"auto": "linear", "top1": "linear", "agreement": None}),
        ("none", True, {"centres": "means"}, {"auto": "mean", "top1": "mean", "agreement": None}),
        ("none", True, {}, {"auto": "linear", "top1": "linear", "agreement": None}),
        ("none", False, {}, {"auto": "diffusion", "top1": None, "agreement": None}),
    ],
)
def test_what_chooses_the_checkpoint(
    teacher: str, labels: bool, changes: dict[str, Any], found: dict[str, str | None]
) -> None:
    method = taught(teacher, labels, **changes)
    for monitor, wanted in {**found, "diffusion": "diffusion"}.items():
        if wanted is not None:
            assert choose_monitor(method, cast(Any, monitor), labels, 10) == f"val/{wanted}"
            continue
        with pytest.raises(UserError, match=r"^training\.monitor: expected .*diffusion for this teacher"):
            choose_monitor(method, cast(Any, monitor), labels, 10)


def test_a_baseline_is_judged_by_what_it_has() -> None:
    assert choose_monitor(Supervised(network()), "diffusion", True, 10) == "val/linear"
    assert choose_monitor(Supervised(network()), "agreement", True, 10) == "val/linear"
    kl = KD(network(), network("cifar/resnet8x0.5", 1), KDConfig(1.0, 1.0))
    assert choose_monitor(kl, "diffusion", False, 10) == "val/agreement"
    assert choose_monitor(kl, "agreement", True, 10) == "val/agreement"
    # without a metric the last weights are kept
    assert choose_monitor(Supervised(network()), "auto", False, 10) is None
    silent = FeatureMSE(network(), create_backbone("cifar/resnet8x0.5", 10, in_channels=1, classifier=False))
    with pytest.raises(UserError, match="expected a readout of the data's or the teacher's classes"):
        choose_monitor(silent, "auto", False, 10)


@pytest.mark.parametrize("teacher", ["same", "none"])
def test_the_smallest_diffusion_loss_chooses(teacher: str, data: Data, tmp_path: Path) -> None:
    unlabelled = DataConfig(**{**vars(DATA), "labels": False})
    torch.manual_seed(3)
    method = taught(teacher, False)
    config = settings(
        epochs=3, lr=0.02, loggers=["csv"], monitor="auto" if teacher == "none" else "diffusion"
    )
    result = fit(method, data, config, unlabelled, seed=0, folder=tmp_path)
    with (tmp_path / "logs" / "version_0" / "metrics.csv").open() as file:
        losses = [float(row["val/diffusion"]) for row in csv.DictReader(file) if row["val/diffusion"]]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert result.monitor == "val/diffusion" and result.best == pytest.approx(min(losses))
    # validation always uses the same noise, so the chosen weights reproduce the logged loss
    assert data.val is not None
    images = data.val.images(range(len(data.val))).float() / 255
    seed = derive_seed(0, "validation", 0, 0)
    again = method.diffusion_loss(images, None, torch.Generator().manual_seed(seed))
    assert float(again) == pytest.approx(min(losses), rel=1e-4)


def test_a_diffusion_loss_is_printed_as_it_is(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(taught("same", True), data, tmp_path, settings(epochs=1, monitor="diffusion"))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "val/diffusion" in line]
    assert next(part for part in line.split(" · ") if part.startswith("val/diffusion")).count("%") == 0
    assert "val/linear" in line and "val/mean" in line


def test_a_logger_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning.pytorch.loggers as loggers

    def missing(**_: Any) -> None:
        raise ModuleNotFoundError("wandb")

    monkeypatch.setattr(loggers, "WandbLogger", missing)
    with pytest.raises(UserError, match=r"not installed\. Run: pip install 'gendd\[wandb\]'"):
        make_loggers(["wandb"], tmp_path)


# --- fit ---


@dataclass
class Done:
    method: GenDD
    result: FitResult
    folder: Path
    config: TrainingConfig


@pytest.fixture(scope="module")
def done(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Four epochs of GenDD in one go."""
    folder = tmp_path_factory.mktemp("done")
    config = settings(epochs=4, loggers=["csv", "tensorboard"])
    method = gendd()
    return Done(method, run(method, data, folder, config), folder, config)


def logged(folder: Path) -> list[dict[str, str]]:
    with open(folder / "logs" / "version_0" / "metrics.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_training_lowers_the_loss_and_logs_it(done: Done) -> None:
    rows = logged(done.folder)
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(losses) == 4 and losses[-1] < losses[0]
    for row in rows:
        if row["train/loss"]:
            parts = float(row["train/diffusion"]) + float(row["train/probe"])
            assert parts == pytest.approx(float(row["train/loss"]), rel=1e-5)
    accuracies = [float(row["val/mean"]) for row in rows if row["val/mean"]]
    assert len(accuracies) == 4 and max(accuracies) == pytest.approx(done.result.best)
    rates = [float(row["lr"]) for row in rows if row["lr"]]
    # logged after the last step of an epoch, with that step's learning rate
    wanted = [1e-2 * learning_rate_factor(2 * epoch + 1, STEPS, done.config) for epoch in range(4)]
    assert rates == pytest.approx(wanted)
    assert all(float(row["images/s"]) > 0 for row in rows if row["images/s"])


def test_tensorboard_holds_the_same(done: Done) -> None:
    events = EventAccumulator(str(next((done.folder / "logs" / "tensorboard").iterdir())))
    events.Reload()
    scalars = [event.value for event in events.Scalars("val/mean")]
    rows = [float(row["val/mean"]) for row in logged(done.folder) if row["val/mean"]]
    assert scalars == pytest.approx(rows, rel=1e-5)
    assert {"train/loss", "train/diffusion", "train/probe", "val/linear", "lr"} <= set(
        events.Tags()["scalars"]
    )


def test_the_result_and_the_files(done: Done) -> None:
    assert done.result.steps == 4 * STEPS and done.result.monitor == "val/mean"
    assert done.result.best is not None and 0 <= done.result.best <= 1 and done.result.seconds > 0
    files = sorted(path.name for path in (done.folder / "checkpoints").iterdir())
    written = {"best.ckpt", "best.ckpt.sha256", "last.ckpt", "last.ckpt.sha256", "last.previous.ckpt"}
    assert set(files) == written | {"finished.json"}
    assert FitResult(**json.loads((done.folder / "checkpoints" / "finished.json").read_text())) == done.result


def test_no_teacher_is_in_a_checkpoint(done: Done) -> None:
    own = set(done.method.state_dict())
    for name in ("best", "last"):
        assert set(checkpoint(done.folder, name)["state_dict"]) == {f"method.{key}" for key in own}
    assert not any("teacher" in key for key in own)


def test_the_best_weights_are_those_of_the_method(done: Done, data: Data) -> None:
    assert same(done.method.state_dict(), weights(done.folder, "best"))
    assert not done.method.training
    assert data.val is not None and data.val.labels is not None
    images = data.val.images(torch.arange(len(data.val))).float() / 255
    with torch.no_grad():
        right = done.method.student()(images).argmax(-1) == data.val.labels
    assert right.float().mean().item() == pytest.approx(done.result.best)


def test_the_last_checkpoint_knows_the_ramp_and_the_decay(done: Done) -> None:
    groups = checkpoint(done.folder, "last")["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert all(group["betas"] == (0.9, 0.999) for group in groups)


def test_training_again_gives_the_same_weights(done: Done, data: Data, tmp_path: Path) -> None:
    method = gendd()
    torch.manual_seed(99)
    result = run(method, data, tmp_path, done.config)
    assert same(method.state_dict(), done.method.state_dict()) and result.best == done.result.best
    other = gendd()
    fit(other, data, done.config, DATA, seed=1, folder=tmp_path / "other")
    assert not same(other.state_dict(), done.method.state_dict())


@pytest.mark.parametrize(
    ("name", "size", "found"),
    [
        ("cifar/resnet8", 8, False),
        ("cifar/resnet8", 4, False),
        ("cifar/resnet8", 2, True),
        ("timm/test_resnet", 32, False),
        ("timm/test_resnet", 8, True),
    ],
)
def test_strided_convolutions_on_one_position_are_found(name: str, size: int, found: bool) -> None:
    backbone = network(name)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.train()
    assert strides_over_one_position(backbone, 1, size) is found
    assert backbone.net.training and same(before, backbone.state_dict())
    assert not any(part._forward_pre_hooks for part in backbone.modules())


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_networks_too_deep_for_bf16_on_a_cpu_train_in_fp32(
    precision: Any, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = []
    for folder, asked in (("one", precision), ("other", "fp32")):
        method = Supervised(network("timm/test_resnet"))
        run(method, data, tmp_path / folder, settings(epochs=1, precision=asked))
        weights.append(method.state_dict())
    assert same(*weights)
    assert ("training in fp32: bf16 gradients" in capsys.readouterr().err) == (precision == "bf16")


@pytest.mark.parametrize("memory_format", [True, False])
def test_statistics_are_taken_before_the_first_step(memory_format: bool, data: Data, tmp_path: Path) -> None:
    method = gendd(centres="means")
    assert not bool(method.prepared)
    run(method, data, tmp_path, settings(epochs=1, channels_last=memory_format))
    assert bool(method.prepared) and method.generator.feature_scale.ne(1).any()
    convolution = method.backbone.net.get_submodule("layer1.0.conv1").weight
    assert isinstance(convolution, Tensor)
    # not where it would corrupt memory
    expected = memory_format and not overruns(method, torch.device("cpu"))
    assert convolution.is_contiguous(memory_format=torch.channels_last) == expected


def test_every_step_has_its_own_images_and_draws(data: Data, tmp_path: Path) -> None:
    seen: list[tuple[Tensor, int]] = []

    class Watched(Supervised):
        def forward(
            self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
        ) -> StepOutput:
            assert generator is not None
            seen.append((images, generator.initial_seed()))
            return super().forward(images, labels)

    fit(Watched(network()), data, settings(), DATA, seed=3, folder=tmp_path)
    wanted = [batch.images for epoch in range(2) for batch in train_loader(data, DATA, seed=3, epoch=epoch)]
    assert len(seen) == len(wanted) == 2 * STEPS
    assert all(torch.equal(images, batch) for (images, _), batch in zip(seen, wanted, strict=True))
    assert [key for _, key in seen] == [derive_seed(3, "step", step, 0) for step in range(2 * STEPS)]


def test_without_labels_the_agreement_chooses(data: Data, tmp_path: Path) -> None:
    unlabelled = DataConfig(**{**vars(DATA), "labels": False})
    for method in (gendd(), KD(network(), network("cifar/resnet8x0.5", 1), KDConfig(1.0, 1.0))):
        folder = tmp_path / type(method).__name__
        result = fit(method, data, settings(epochs=1), unlabelled, seed=0, folder=folder)
        assert result.monitor == "val/agreement" and result.best is not None


@pytest.mark.parametrize("epochs, every", [(3, 2), (1, 5), (2, 1)])
def test_without_validation_the_last_weights_stay(epochs: int, every: int, tmp_path: Path) -> None:
    config = DataConfig(train_images=IMAGES, batch_size=64, validation=0.0)
    method = Supervised(network())
    result = fit(
        method,
        load_data(config),
        settings(epochs=epochs, checkpoint_every=every),
        config,
        seed=0,
        folder=tmp_path,
    )
    assert result.monitor is None and result.best is None and result.steps == epochs * STEPS
    assert checkpoint(tmp_path, "last")["global_step"] == epochs * STEPS
    assert same(method.state_dict(), weights(tmp_path, "last"))
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_the_learning_rate_steps_in_training(data: Data, tmp_path: Path) -> None:
    config = settings(
        epochs=3, schedule="step", milestones=[1, 2], warmup_epochs=0.0, loggers=["csv"], checkpoint_every=3
    )
    run(Supervised(network()), data, tmp_path, config)
    rates = [float(row["lr"]) for row in logged(tmp_path) if row["lr"]]
    assert rates == pytest.approx([1e-2, 1e-3, 1e-4])


def test_gradients_are_clipped(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, closure: Any = None) -> Any:
        loss = closure()
        squares = [
            parameter.grad.square().sum()
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norms.append(float(torch.stack(squares).sum().sqrt()))
        return step(self, lambda: loss)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    run(Supervised(network()), data, tmp_path / "free", settings(epochs=1))
    free = list(norms)
    norms.clear()
    run(Supervised(network()), data, tmp_path / "clipped", settings(epochs=1, clip_grad_norm=1e-2))
    assert min(free) > 2e-2 and norms == pytest.approx([1e-2] * STEPS, rel=1e-2)


def test_the_average_of_the_weights_is_what_is_saved(data: Data, tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    class Watched(Supervised):
        def forward(
            self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
        ) -> StepOutput:
            seen.append(copy.deepcopy({name: value.detach() for name, value in self.named_parameters()}))
            return super().forward(images, labels, generator=generator)

    method = Watched(network())
    result = run(method, data, tmp_path, settings(epochs=2, ema=0.6, lr=1e-3))
    raw = checkpoint(tmp_path, "last")["current_model_state"]
    # before each step, and after the last one; the average starts as the weights after the first step
    path = [*seen[1:], {name: raw[f"method.{name}"] for name in seen[0]}]
    average = path[0]
    averages = [average]
    for updates, state in enumerate(path[1:], 1):
        decay = min(0.6, (1 + updates) / (10 + updates))
        average = {name: decay * average[name] + (1 - decay) * state[name] for name in average}
        averages.append(average)
    assert len(averages) == 2 * STEPS
    last = weights(tmp_path, "last")
    for name, value in averages[-1].items():
        torch.testing.assert_close(last[name], value, rtol=1e-5, atol=1e-7)
    assert not torch.equal(path[-1]["backbone.net.conv1.weight"], last["backbone.net.conv1.weight"])
    # the checkpoint chosen by validating the average holds the average of its epoch
    epoch = checkpoint(tmp_path, "best")["epoch"]
    best = weights(tmp_path, "best")
    for name, value in averages[STEPS * (epoch + 1) - 1].items():
        torch.testing.assert_close(best[name], value, rtol=1e-5, atol=1e-7)
    assert same(method.state_dict(), best)
    assert data.val is not None and data.val.labels is not None
    images = data.val.images(torch.arange(len(data.val))).float() / 255
    with torch.no_grad():
        right = method.student()(images).argmax(-1) == data.val.labels
    assert right.float().mean().item() == pytest.approx(result.best)


def test_averaging_leaves_the_statistics_alone(data: Data, tmp_path: Path) -> None:
    plain, averaged = gendd(centres="means"), gendd(centres="means")
    run(plain, data, tmp_path / "plain", settings(epochs=1))
    run(averaged, data, tmp_path / "averaged", settings(epochs=1, ema=0.9))
    assert bool(averaged.prepared)
    for name in ("feature_mean", "feature_scale"):
        torch.testing.assert_close(getattr(averaged.generator, name), getattr(plain.generator, name))
    torch.testing.assert_close(averaged.centres, plain.centres)


def test_lines_are_printed_without_a_bar(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(Supervised(network()), data, tmp_path, settings(epochs=2), title="a title")
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("a title: epoch ")]
    assert [line.split(" · ")[0] for line in lines] == ["a title: epoch 1/2", "a title: epoch 2/2"]
    assert all("cross_entropy" in line and "val/linear" in line and "images/s" in line for line in lines)
    assert out == ""


# --- a loss that is not a number ---


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("validation", [0.0, 0.05])
def test_a_loss_that_is_not_finite_stops_the_run(step: int, validation: float, tmp_path: Path) -> None:
    def spoil(out: StepOutput) -> StepOutput:
        return StepOutput(
            out.loss * math.nan, out.logits, {"good": out.loss.detach(), "bad": out.loss * math.nan}
        )

    config = DataConfig(**{**vars(DATA), "validation": validation})
    method = Stopping(network(), step, spoil)
    with pytest.raises(UserError) as error:
        fit(method, load_data(config), settings(), config, seed=0, folder=tmp_path)
    message = str(error.value)
    assert f"not finite at step {step} (part 'bad')" in message and "\n" not in message
    kept = tmp_path / "checkpoints" / "last.ckpt"
    # a bad last step of an epoch is noticed before the epoch's checkpoint is written
    assert kept.exists() == (step >= STEPS)
    if kept.exists():
        assert checkpoint(tmp_path, "last")["global_step"] == STEPS
        state = weights(tmp_path, "last")
        assert all(bool(value.isfinite().all()) for value in state.values())
        Supervised(network()).load_state_dict(state)


def test_a_rate_far_too_high_names_the_diffusion(data: Data, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"not finite at step \d+ \(part 'diffusion'\).* Go on from .* lower training\.lr"
    ):
        run(gendd(), data, tmp_path, settings(epochs=4, lr=1e30, warmup_epochs=0.0))


# --- sgd, by hand ---


@pytest.mark.parametrize("decay_all", [False, True])
def test_sgd_is_torchs(decay_all: bool, tmp_path: Path) -> None:
    config = DataConfig(train_images=3 * 64, batch_size=64, validation=0.0)
    data = load_data(config)
    method, reference = Supervised(network()), Supervised(network()).train()
    training = settings(
        epochs=1,
        optimizer="sgd",
        lr=0.2,
        momentum=0.8,
        weight_decay=0.1,
        decay_all=decay_all,
        warmup_epochs=2 / 3,
        channels_last=False,
    )
    fit(method, data, training, config, seed=0, folder=tmp_path)
    vectors = [value for value in reference.parameters() if value.ndim < 2]
    matrices = [value for value in reference.parameters() if value.ndim >= 2]
    optimiser = torch.optim.SGD(
        [
            {"params": matrices, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0.1 if decay_all else 0.0},
        ],
        lr=0.2,
        momentum=0.8,
    )
    batches = train_loader(data, config, seed=0, epoch=0)
    for batch, rate in zip(batches, [0.1, 0.2, 0.2], strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        assert batch.labels is not None
        F.cross_entropy(reference.backbone(batch.images)[1], batch.labels).backward()
        optimiser.step()
    wanted = reference.state_dict()
    assert method.state_dict().keys() == wanted.keys()
    for name, value in method.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=2e-4, atol=2e-5, msg=name)
    groups = checkpoint(tmp_path, "last")["optimizer_states"][0]["param_groups"]
    assert all(group["momentum"] == 0.8 and not group["nesterov"] for group in groups)
    assert not any("betas" in group for group in groups)


# --- accumulation ---


class Plain(nn.Module):
    """A network without BatchNorm, so that a batch is the sum of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 8 * 8, 10)

    def forward_features(self, x: Tensor, /) -> Tensor:
        return self.conv(x).relu().flatten(1)

    def forward_head(self, x: Tensor, /, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Module:
        return self.fc


def plain() -> Backbone:
    torch.manual_seed(4)
    return Backbone(Plain(), name="plain", in_channels=1, mean=[0.5], std=[0.25])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_two_halves_accumulated_are_one_batch(optimizer: str, tmp_path: Path) -> None:
    data = load_data(DataConfig(train_images=256, validation=0.0))
    found = []
    for batch_size, accumulate in ((128, 1), (64, 2)):
        config = DataConfig(train_images=256, validation=0.0, batch_size=batch_size)
        method = Supervised(plain())
        folder = tmp_path / str(batch_size)
        training = settings(
            epochs=2, lr=1e-2, optimizer=optimizer, accumulate=accumulate, clip_grad_norm=0.5, loggers=["csv"]
        )
        result = fit(method, data, training, config, seed=0, folder=folder)
        saved = checkpoint(folder, "last")["optimizer_states"][0]["param_groups"]
        rates = [row["lr"] for row in logged(folder) if row["lr"]]
        found.append((method.state_dict(), result.steps, saved, rates))
    (whole, steps, groups, rates), (parts, same_steps, same_groups, same_rates) = found
    assert steps == same_steps == 4 and rates == same_rates
    assert [group["lr"] for group in groups] == [group["lr"] for group in same_groups]
    assert [group.get("betas") for group in groups] == [group.get("betas") for group in same_groups]
    start = plain().state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5, msg=name)
        assert not torch.equal(value, start[name.removeprefix("backbone.")])


def test_what_is_left_over_of_a_step_is_dropped(tmp_path: Path) -> None:
    config = DataConfig(train_images=5 * 16, validation=0.0, batch_size=16)
    data = load_data(config)
    method = Stopping(plain(), -1, None)
    result = fit(
        method, data, settings(epochs=3, accumulate=2, precision="fp32"), config, seed=0, folder=tmp_path
    )
    assert (result.steps, method.steps) == (3 * 2, 3 * 4)
    # fewer batches than accumulated per step make one smaller step
    whole, parts = (Supervised(plain()) for _ in range(2))
    for method, accumulate in ((whole, 5), (parts, 50)):
        folder = tmp_path / str(accumulate)
        training = settings(epochs=1, accumulate=accumulate)
        assert fit(method, data, training, config, seed=0, folder=folder).steps == 1
    assert same(whole.state_dict(), parts.state_dict())


def test_every_part_of_a_step_has_its_own_draws(data: Data, tmp_path: Path) -> None:
    seeds: list[int] = []

    class Watched(Supervised):
        def forward(
            self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
        ) -> StepOutput:
            assert generator is not None
            seeds.append(generator.initial_seed())
            return super().forward(images, labels)

    config = DataConfig(train_images=IMAGES, batch_size=32, validation=0.05)
    fit(Watched(network()), data, settings(accumulate=2), config, seed=3, folder=tmp_path)
    wanted = []
    for step in range(2 * 2):
        wanted += [derive_seed(3, "step", step, 0), derive_seed(3, "step", step, 0, "part", 1)]
    assert seeds == wanted and len(set(seeds)) == 8


def test_an_accumulating_run_goes_on_as_if_nothing_had_been(data: Data, tmp_path: Path) -> None:
    def stop(_: StepOutput) -> None:
        raise ZeroDivisionError

    config = DataConfig(
        **{**vars(DATA), "batch_size": 16, "mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1}
    )
    training = settings(epochs=3, accumulate=3, optimizer="sgd")
    # in the middle of the second epoch's first step
    with pytest.raises(ZeroDivisionError):
        fit(Stopping(network(), 7, stop), data, training, config, seed=0, folder=tmp_path / "broken")
    resumed, plain = Supervised(network()), Supervised(network())
    result = fit(resumed, data, training, config, seed=0, folder=tmp_path / "broken", resume=True)
    fit(plain, data, training, config, seed=0, folder=tmp_path / "plain")
    assert same(resumed.state_dict(), plain.state_dict()) and result.steps == 3 * (IMAGES // 48)


# --- mixing ---


class Seeing(Supervised):
    """Keeps the images and labels it was given."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        self.seen.append((images.clone(), labels))
        target = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
        return super().forward(images, target, generator=generator)


MIXED = DataConfig(**{**vars(DATA), "mixup": 0.3, "cutmix": 1.0, "label_smoothing": 0.1})


def test_a_method_sees_batches_mixed_by_seed_epoch_and_batch(data: Data, tmp_path: Path) -> None:
    method = Seeing(network())
    fit(method, data, settings(), MIXED, seed=3, folder=tmp_path)
    mixing = Mixing.from_config(MIXED, 10)
    seen = iter(method.seen)
    for epoch in range(2):
        for index, batch in enumerate(train_loader(data, MIXED, seed=3, epoch=epoch)):
            # the loader's own labels are unchanged
            assert batch.labels is not None and batch.labels.dtype == torch.int64
            key = torch.Generator().manual_seed(derive_seed(3, "mixing", epoch, 0, index))
            images, labels = mixing(batch.images, batch.labels, key)
            given, soft = next(seen)
            assert labels is not None and soft is not None and soft.shape == (64, 10)
            assert torch.equal(given, images) and torch.equal(soft, labels)
            assert not torch.equal(given, batch.images)
            torch.testing.assert_close(soft.sum(-1), torch.ones(64))
    assert next(seen, None) is None


def test_processes_mix_what_one_would(data: Data) -> None:
    module = LightningMethod(Supervised(network()), data, settings(), MIXED, 0, False)
    size = MIXED.batch_of(len(data.train))
    whole = next(iter(train_loader(data, MIXED, seed=0, epoch=0)))
    mixed, labels = module._mixed(whole, 0)
    assert labels is not None and not torch.equal(mixed, module._mixed(whole, 1)[0])
    half = dataclasses.replace(MIXED, batch_size=size // 2)
    for rank in range(2):
        batch = next(iter(train_loader(data, half, seed=0, epoch=0, rank=rank, world_size=2)))
        own, own_labels = module._mixed(batch, 0)
        places = share(size, rank, 2)
        assert own_labels is not None
        torch.testing.assert_close(own, mixed[places], rtol=0, atol=0)
        torch.testing.assert_close(own_labels, labels[places], rtol=0, atol=0)


def test_without_labels_images_are_mixed_and_labels_stay_unseen(data: Data, tmp_path: Path) -> None:
    module = LightningMethod(gendd(), data, settings(), MIXED, 0, False)
    unlabelled = DataConfig(**{**vars(MIXED), "labels": False})
    blind = LightningMethod(gendd(), data, settings(), unlabelled, 0, False)
    batch = next(iter(train_loader(data, MIXED, seed=0, epoch=0)))
    images, labels = blind._mixed(batch, 0)
    assert labels is None and torch.equal(images, module._mixed(batch, 0)[0])
    assert not torch.equal(images, batch.images)
    result = fit(gendd(), data, settings(epochs=1), unlabelled, seed=0, folder=tmp_path)
    assert result.monitor == "val/agreement"


@pytest.mark.parametrize("kind", ["gendd", "kd", "means"])
def test_methods_train_on_mixed_labels(kind: str, data: Data, tmp_path: Path) -> None:
    if kind == "kd":
        method: Method = KD(network(), network("cifar/resnet8x0.5", 1))
    else:
        method = gendd(contraction=0.5, centres="means" if kind == "means" else "classifier")
    result = fit(method, data, settings(epochs=1), MIXED, seed=0, folder=tmp_path / "mixed")
    assert result.steps == STEPS
    if isinstance(method, GenDD):
        # statistics and class means are computed without mixing
        other = gendd(contraction=0.5, centres=method.config.centres)
        fit(other, data, settings(epochs=1), DATA, seed=0, folder=tmp_path / "unmixed")
        assert torch.equal(other.centres, method.centres)
        assert torch.equal(other.generator.feature_mean, method.generator.feature_mean)
        assert not same(other.state_dict(), method.state_dict())


def test_teacher_and_student_see_the_same_mixed_images(data: Data, tmp_path: Path) -> None:
    method = KD(network(), network("cifar/resnet8x0.5", 1))
    assert method.teacher is not None
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    for name, network_ in (("student", method.backbone), ("teacher", method.teacher.backbone)):
        network_.register_forward_pre_hook(
            lambda module, inputs, name=name: seen[name].append(inputs[0].clone())
        )
    config = DataConfig(**{**vars(MIXED), "validation": 0.0})
    fit(method, load_data(config), settings(epochs=1), config, seed=0, folder=tmp_path)
    assert len(seen["student"]) == len(seen["teacher"]) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(seen["student"], seen["teacher"], strict=True))


def test_validation_is_not_varied(data: Data) -> None:
    varied = DataConfig(**{**vars(MIXED), "randaugment": "rand-p1.0", "color_jitter": 0.4, "erase_prob": 1.0})
    shown = []
    for config in (DATA, varied):
        module = LightningMethod(Supervised(network()), data, settings(), config, 0, False)
        module._trainer = cast(Any, type("T", (), {"world_size": 1, "global_rank": 0}))
        shown.append(list(module.val_dataloader()))
    for first, second in zip(*shown, strict=True):
        assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)


# --- what is trained ---


def test_a_backbone_left_in_eval_mode_trains(data: Data, tmp_path: Path) -> None:
    backbone = network()
    run(Supervised(backbone), data, tmp_path / "first", settings(epochs=1))
    assert not backbone.training
    modes: list[bool] = []

    class Watched(Supervised):
        def forward(
            self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
        ) -> StepOutput:
            modes.append(all(module.training for module in self.modules()))
            return super().forward(images, labels)

    run(Watched(backbone), data, tmp_path / "second", settings(epochs=1))
    assert modes == [True] * STEPS


def test_a_linear_probe_trains_its_classifier_alone(data: Data, tmp_path: Path) -> None:
    backbone = network()
    before = copy.deepcopy(backbone.state_dict())
    training = settings(epochs=3, optimizer="sgd", lr=3.0, weight_decay=0.0, warmup_epochs=0.0)
    result = run(LinearProbe(backbone), data, tmp_path, training)
    assert result.monitor == "val/linear" and result.best is not None
    after = backbone.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {"net.fc.weight", "net.fc.bias"}
    groups = checkpoint(tmp_path, "last")["optimizer_states"][0]["param_groups"]
    assert sum(len(group["params"]) for group in groups) == 2


# --- interruption ---


def test_ctrl_c_reaches_the_caller_and_keeps_the_checkpoint(done: Done, data: Data, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    method = Stopping(network(), STEPS + 1, lambda _: os.kill(os.getpid(), signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            run(method, data, tmp_path)
        # a second Ctrl-C works too
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert checkpoint(tmp_path, "last")["global_step"] == STEPS
    assert not (tmp_path / "checkpoints" / "finished.json").exists()
    plain, resumed = Supervised(network()), Supervised(network())
    run(plain, data, tmp_path / "plain")
    result = run(resumed, data, tmp_path, resume=True)
    assert same(plain.state_dict(), resumed.state_dict()) and result.steps == 2 * STEPS


def killed(folder: Path) -> None:
    """Train until the process is killed, within the third epoch."""

    class Killed(GenDD):
        steps = 0

        def forward(self, *args: Any, **more: Any) -> StepOutput:
            self.steps += 1
            if self.steps > 2 * STEPS + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(*args, **more)

    torch.set_num_threads(1)
    method = gendd()
    method.__class__ = Killed
    run(method, load_data(DATA), folder, settings(epochs=4))


def test_a_killed_run_goes_on_as_if_nothing_had_been(done: Done, data: Data, tmp_path: Path) -> None:
    code, said = Started(tmp_path / "said", killed, tmp_path).ended()
    assert code == -signal.SIGKILL, said
    assert checkpoint(tmp_path, "last")["global_step"] == 2 * STEPS
    method = gendd()
    torch.manual_seed(123)
    result = run(method, data, tmp_path, settings(epochs=4), resume=True)
    assert same(method.state_dict(), done.method.state_dict())
    assert same(weights(tmp_path, "last"), weights(done.folder, "last"))
    assert (result.best, result.steps) == (done.result.best, done.result.steps)
    mine, theirs = (checkpoint(folder, "last")["optimizer_states"][0] for folder in (tmp_path, done.folder))
    assert [group["lr"] for group in mine["param_groups"]] == [
        group["lr"] for group in theirs["param_groups"]
    ]


def test_a_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(epochs=3)
    plain, resumed = gendd(), gendd()
    run(plain, data, tmp_path, config)
    last = tmp_path / "checkpoints" / "last.ckpt"
    whole = bytearray(last.read_bytes())
    whole[len(whole) // 2] ^= 1
    last.write_bytes(whole)
    (tmp_path / "checkpoints" / "finished.json").unlink()
    run(resumed, data, tmp_path, config, resume=True)
    assert "last.ckpt is damaged: going on from the one before it" in capsys.readouterr().err
    assert same(plain.state_dict(), resumed.state_dict())


def test_a_damaged_best_checkpoint_is_told_before_the_rest_is_trained(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(Supervised(network()), data, tmp_path)
    best = tmp_path / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:-1])
    (tmp_path / "checkpoints" / "finished.json").unlink()
    with pytest.raises(UserError, match=r"best\.ckpt' is damaged; start again"):
        run(Supervised(network()), data, tmp_path, resume=True)
    assert "best.ckpt is damaged: the training can end only if a later epoch is better" in (
        capsys.readouterr().err
    )


def test_an_averaged_run_goes_on_too(data: Data, tmp_path: Path) -> None:
    def stop(_: StepOutput) -> None:
        raise ZeroDivisionError

    config = settings(epochs=3, ema=0.8)
    with pytest.raises(ZeroDivisionError):
        run(Stopping(network(), STEPS, stop), data, tmp_path / "broken", config)
    resumed, plain = Supervised(network()), Supervised(network())
    run(resumed, data, tmp_path / "broken", config, resume=True)
    run(plain, data, tmp_path / "plain", config)
    assert same(resumed.state_dict(), plain.state_dict())


def test_a_finished_run_is_only_loaded(done: Done, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gendd.training.trainer._fit", lambda *_: pytest.fail("trained again"))
    method = gendd()
    assert run(method, data, done.folder, done.config, resume=True) == done.result
    assert same(method.state_dict(), done.method.state_dict()) and not method.training


def test_there_need_be_nothing_to_resume(data: Data, tmp_path: Path) -> None:
    assert run(Supervised(network()), data, tmp_path, settings(epochs=1), resume=True).steps == STEPS


def test_a_new_run_forgets_the_old_one(data: Data, tmp_path: Path) -> None:
    def stop(_: StepOutput) -> None:
        raise ZeroDivisionError

    run(Supervised(network(seed=5)), data, tmp_path)
    with pytest.raises(ZeroDivisionError):
        run(Stopping(network(), 0, stop), data, tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("finished", [False, True])
def test_a_checkpoint_of_another_network_is_refused(finished: bool, data: Data, tmp_path: Path) -> None:
    run(Supervised(network()), data, tmp_path)
    if not finished:
        (tmp_path / "checkpoints" / "finished.json").unlink()
    with pytest.raises(UserError, match="expected one of this configuration, got another's") as error:
        run(Supervised(network("cifar/resnet8x0.5")), data, tmp_path, resume=True)
    assert "\n" not in str(error.value) and "ckpt" in str(error.value)


def test_another_method_cannot_go_on_from_a_checkpoint(data: Data, tmp_path: Path) -> None:
    run(Supervised(network()), data, tmp_path)
    (tmp_path / "checkpoints" / "finished.json").unlink()
    with pytest.raises(UserError, match="expected one of this configuration, got another's"):
        run(gendd(), data, tmp_path, settings(epochs=4), resume=True)


def test_other_errors_of_a_step_are_not_dressed_up(data: Data, tmp_path: Path) -> None:
    def fail(_: StepOutput) -> None:
        raise RuntimeError("of the user's own")

    with pytest.raises(RuntimeError, match="of the user's own"):
        run(Stopping(network(), 0, fail), data, tmp_path)


def test_the_student_of_a_fit_predicts(done: Done) -> None:
    student = done.method.student()
    assert isinstance(student, Student) and isinstance(student.backbone, nn.Module)
    with torch.no_grad():
        assert student(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.filterwarnings("ignore:GPU available but not used")
def test_the_bar_counts_epochs_from_one() -> None:
    bar = Progress()
    bar._trainer = lightning.Trainer(
        max_epochs=3, logger=False, enable_checkpointing=False, accelerator="cpu"
    )
    assert [bar._get_train_description(epoch).strip() for epoch in range(3)] == [
        "Epoch 1/3",
        "Epoch 2/3",
        "Epoch 3/3",
    ]
