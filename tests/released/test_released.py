from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gendd
from gendd.cli import main
from gendd.config import GenDDConfig, ModelConfig
from gendd.deploy.export import export
from gendd.diffusion import ancestral
from gendd.errors import UserError
from gendd.models import Backbone, build_model, create_backbone, save_weights
from gendd.released.checkpoints import head_state, read_released
from gendd.released.importing import import_released
from gendd.released.student import released_student
from gendd.released.verify import PUBLIC_REFERENCE
from gendd.run import Run, distill, evaluate_run
from gendd.student.generator import FeatureGenerator, GuidedDenoiser

SHARED = Path(__file__).parents[3] / "shared" / "parity" / "gendd_reference.npz"
CLASSES, WIDTH, TOKEN = 10, 32, 16
TEACHER = "cifar/resnet8x0.5"
STUDENT = "cifar/resnet8x0.25"

State = dict[str, Tensor]


class Vector(nn.Module):
    """The student of the recorded numbers: a Linear layer and a ReLU on images of one pixel."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.l = nn.Linear(inputs, width)
        self.fc = nn.Linear(width, classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return F.relu(self.l(x.flatten(1)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Module:
        return self.fc


def recorded(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        pytest.skip(f"the authors' numbers are not beside the checkout: {path}")
    with np.load(path) as archive:
        return {name: torch.from_numpy(np.asarray(archive[name])) for name in archive.files}


def vector(arrays: dict[str, Tensor]) -> Backbone:
    width, inputs = arrays["state/model.l.weight"].shape
    classes = arrays["state/model.fc.weight"].shape[0]
    return Backbone(
        Vector(inputs, width, classes),
        name="vector",
        in_channels=inputs,
        mean=[0.0] * inputs,
        std=[1.0] * inputs,
    )


def names_of_the_head() -> dict[str, str]:
    """Map our parameter names of a head of two blocks to the released code's."""
    with np.load(PUBLIC_REFERENCE) as archive:
        prefix = "state/diffloss.net."
        released = [name.removeprefix(prefix) for name in archive.files if name.startswith(prefix)]
    ours = [next(iter(head_state({name: torch.zeros(1)}))) for name in released]
    return dict(zip(ours, released, strict=True))


def checkpoint(stage: int = 2, projected: bool = True, student: str = STUDENT) -> tuple[State, Backbone]:
    """A checkpoint as the released code saves it, and its student."""
    torch.manual_seed(0)
    backbone = create_backbone(student, CLASSES, in_channels=1)
    state = {f"model.{key}": value for key, value in backbone.net.state_dict().items()}
    state["classifier.weight"] = torch.randn(CLASSES, WIDTH)
    state["classifier.bias"] = torch.randn(CLASSES)
    if stage == 1:
        if projected:
            state["proj.weight"] = torch.randn(WIDTH, backbone.feature_dim)
            state["proj.bias"] = torch.randn(WIDTH)
        return state, backbone
    config = GenDDConfig(token_width=TOKEN, head_width=24, head_depth=2, learned_variance=True)
    generator = FeatureGenerator(backbone.feature_dim, WIDTH, config)
    head = generator.head.state_dict()
    for ours, released in names_of_the_head().items():
        state[f"diffloss.net.{released}"] = torch.randn_like(head[ours]) / 10
    state["cls_projector.0.weight"] = torch.rand(backbone.feature_dim)
    state["cls_projector.0.bias"] = torch.rand(backbone.feature_dim)
    state["cls_centers"] = state["classifier.weight"]
    state["chunk_idx"] = torch.arange(WIDTH // TOKEN)[None]
    return state, backbone


def write(folder: Path, content: Any) -> Path:
    path = folder / "released.pth.tar"
    torch.save(content, path)
    return path


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_near(ours: Tensor, reference: Tensor) -> None:
    """Assert equality up to 1e-5 of the largest entry, as entries cross zero."""
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5 * float(reference.abs().max()))


# --- numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [PUBLIC_REFERENCE, SHARED], ids=["shipped", "authors"])
def test_the_student_computes_what_the_released_code_did(path: Path, tmp_path: Path) -> None:
    arrays = recorded(path)
    state = {
        name.removeprefix("state/"): value for name, value in arrays.items() if name.startswith("state/")
    }
    file = write(tmp_path, {"model": {f"module.{key}": value for key, value in state.items()}})
    student = released_student(file, vector(arrays))
    generator = student.generator
    assert generator is not None and student.classifier is not None
    d, width, token_width, _, head_width, _, depth, _ = (int(n) for n in arrays["config"])
    assert (generator.condition_width, generator.feature_width) == (d, width)
    config = generator.config
    assert (config.token_width, config.head_width, config.head_depth) == (token_width, head_width, depth)
    assert (config.prediction, config.learned_variance, config.standardise) == ("epsilon", True, False)

    for group, guidance in (("sample/cfg1.0", 1.0), ("sample/cfg2.0", 2.0)):
        noise = arrays[f"{group}/step_noise"]
        schedule = generator.schedule.respace(len(noise))
        condition, token = arrays[f"{group}/cond"], arrays[f"{group}/token_index"]
        denoise = GuidedDenoiser(
            generator.head, condition.unsqueeze(0), token, schedule, guidance, generator.prediction
        )
        with torch.no_grad():
            start = arrays[f"{group}/init_noise"][: noise.shape[1]]
            made = ancestral(denoise, start, schedule, step_noise=noise)
        assert_near(made, arrays[f"{group}/out"])

    images = arrays["full/hard/images"][:, :, None, None]
    with torch.no_grad():
        features = student.features(images)
        probe = student.logits(features, "linear")
        mean = student.logits(features, "mean")
        expected = F.linear(
            generator.mean(F.layer_norm(features, (d,), *norm(state))),
            state["classifier.weight"],
            state["classifier.bias"],
        )
    assert_near(probe, arrays["full/hard/probe_logits"])
    assert_near(mean, expected)


def norm(state: State) -> tuple[Tensor, Tensor]:
    return state["cls_projector.0.weight"], state["cls_projector.0.bias"]


def test_the_released_names_are_all_renamed() -> None:
    renamed = list(names_of_the_head())
    assert len(set(renamed)) == len(renamed)
    assert not any(word in key for key in renamed for word in ("embed", "adaLN", "in_ln", "proj", "layer"))


# --- folders ----------------------------------------------------------------------------------------


def wrapped(state: State, form: str) -> Any:
    if form == "imagenet":
        ddp = {f"module.{key}": value for key, value in state.items()}
        return {"epoch": 100, "arch": "resnet18", "state_dict": ddp, "best_acc1": torch.tensor(72.4)}
    if form == "cifar":
        return {"epoch": 240, "model": state, "best_acc": np.float64(72.4)}
    return state


@pytest.mark.parametrize("form", ["plain", "cifar", "imagenet"])
def test_stage_2_becomes_a_run(form: str, tmp_path: Path) -> None:
    state, backbone = checkpoint()
    run = import_released(write(tmp_path, wrapped(state, form)), STUDENT, TEACHER, out=tmp_path / "run")
    student = gendd.load(tmp_path / "run")
    assert student.readouts == ("linear", "mean", "sample")
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            student.logits(student.features(images), "linear"), backbone.eval()(images)[1]
        )
        assert student.classifier is not None
        torch.testing.assert_close(student.classifier.weight, state["classifier.weight"])
    settings = student.settings
    assert (settings.name, settings.sampler, settings.steps) == ("sample", "ddpm", 100)
    assert (settings.guidance, settings.num_samples) == (2.0, 5)

    assert Run.open(tmp_path / "run") == run
    epoch = {"plain": None, "cifar": 240, "imagenet": 100}[form]
    assert run.metrics["run"]["imported"] == {"file": "released.pth.tar", "stage": 2, "epoch": epoch}
    readouts = run.metrics["student"]["readouts"]
    assert {name: values["top1"] for name, values in readouts.items()} == dict.fromkeys(student.readouts)
    assert readouts["sample"]["steps"] == 100
    config = run.config
    assert (config.method, config.data.name, config.teacher.name) == ("gendd", "cifar10", TEACHER)
    gendd_settings = config.gendd
    assert (gendd_settings.token_width, gendd_settings.head_width, gendd_settings.head_depth) == (
        TOKEN,
        24,
        2,
    )
    assert (gendd_settings.contraction, gendd_settings.repeats) == (0.9, 30)


def test_an_import_of_imagenet_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, _ = checkpoint(student="timm/test_resnet")
    file = write(tmp_path, wrapped(state, "imagenet"))
    words = ["import-released", str(file), "--student", "timm/test_resnet", "--teacher", TEACHER]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"next: gendd evaluate {tmp_path / 'run'}"
    student = gendd.load(tmp_path / "run")
    assert (student.info["image_size"], student.info["framing"]) == (224, 0.875)
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        f"gendd: The run at {str(tmp_path / 'run')!r} was imported without images to score it on; import it "
        "again with --data.name, --data.path and another --out.\n"
    )
    assert export(tmp_path / "run", "timm").path.is_file()


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    ("network", "words", "size", "framing"),
    [
        ("timm/test_resnet", [], 224, 0.875),
        ("timm/test_resnet", ["--data.image_size", "160"], 160, 0.875),
        ("timm/test_resnet", ["--data.image_size=64"], 64, 1.0),
        ("timm/test_vit", [], 160, 0.875),
        (STUDENT, [], 32, 1.0),
        (STUDENT, ["--data.image_size", "48"], 48, 1.0),
    ],
)
def test_the_image_size_needs_no_images(
    network: str, words: list[str], size: int, framing: float, stage: int, tmp_path: Path
) -> None:
    state, _ = checkpoint(stage, student=network)
    file, out = write(tmp_path, state), tmp_path / "run"
    command = ["import-released", str(file), "--student", network, "--teacher", TEACHER, "--out", str(out)]
    assert main([*command, *words]) == 0
    run = Run.open(out)
    assert (run.student().info["image_size"], run.student().info["framing"]) == (size, framing)
    assert run.config.data.image_size == (size if words else None)
    assert run.metrics["student"]["readouts"]["linear"]["top1"] is None
    folder = export(run, "safetensors", readout="linear").path
    assert gendd.load(folder).info["image_size"] == size


def test_a_network_of_ones_own_tells_its_image_size_or_is_given_it(tmp_path: Path) -> None:
    state, backbone = checkpoint(1, student="timm/test_resnet")
    file = write(tmp_path, state)
    own = Backbone(backbone.net, name="own", in_channels=1, mean=[0.5], std=[0.5])
    assert "image_size" not in released_student(file, own).info
    run = import_released(file, own, TEACHER, out=tmp_path / "run", data={"image_size": 96})
    info = json.loads((run.folder / "student" / "config.json").read_text(encoding="utf-8"))["info"]
    assert (info["image_size"], info["framing"]) == (96, 0.875)


def test_an_import_is_exported(tmp_path: Path) -> None:
    state, backbone = checkpoint()
    run = import_released(write(tmp_path, {"model": state}), STUDENT, TEACHER, out=tmp_path / "run")
    images = torch.rand(5, 1, 32, 32)
    with torch.no_grad():
        student = run.student()
        features = student.features(images)
        expected = {name: student.logits(features, name) for name in student.readouts[:2]}
    torch.testing.assert_close(expected["linear"], backbone.eval()(images)[1])
    for readout, logits in expected.items():
        file = export(run, "onnx", readout=readout).path
        (found,) = onnxruntime.InferenceSession(str(file)).run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits, rtol=1e-4, atol=1e-4)
        folder = export(run, "safetensors", readout=readout).path
        with torch.no_grad():
            torch.testing.assert_close(gendd.load(folder)(images), logits, rtol=1e-4, atol=1e-4)


def test_stage_1_of_cifar_is_normalised_as_it_was(tmp_path: Path) -> None:
    backbone = create_backbone("cifar/mobilenetv2", 100)
    state = {f"model.{key}": value for key, value in backbone.net.state_dict().items()}
    state |= {"classifier.weight": torch.zeros(100, 64), "classifier.bias": torch.zeros(100)}
    state |= {"proj.weight": torch.zeros(64, 1280), "proj.bias": torch.zeros(64)}
    run = import_released(
        write(tmp_path, {"model": state}), "cifar/mobilenetv2", "cifar/wrn_16_1", out=tmp_path / "run"
    )
    config = run.config
    assert (config.method, config.data.name, config.readout.name) == ("supervised", "cifar100", "linear")
    assert config.teacher.mean == config.student.mean == [0.5071, 0.4867, 0.4408]
    student = gendd.load(tmp_path / "run")
    assert student.backbone.name == "cifar/MobileNetV2"
    assert student.backbone.input_std == [0.2675, 0.2565, 0.2761]
    assert student.info["image_size"] == 32


@pytest.mark.parametrize("projected", [True, False])
def test_stage_1_gives_its_own_logits_and_starts_stage_2(projected: bool, tmp_path: Path) -> None:
    # no projection if both features have the same width
    name = STUDENT if projected else TEACHER
    state, backbone = checkpoint(1, projected, name)
    run = import_released(write(tmp_path, {"model": state}), name, TEACHER, out=tmp_path / "run")
    images = torch.rand(3, 1, 8, 8)
    student = run.student()
    with torch.no_grad():
        feature = backbone.eval().features(images)
        if projected:
            feature = F.linear(feature, state["proj.weight"], state["proj.bias"])
        expected = F.linear(feature, state["classifier.weight"], state["classifier.bias"])
        torch.testing.assert_close(student(images), expected, rtol=1e-4, atol=1e-5)
    assert student.readouts == ("linear",)
    assert run.metrics["run"]["imported"]["stage"] == 1
    started = build_model(ModelConfig(name, weights=str(tmp_path / "run")), CLASSES, 1).eval()
    torch.testing.assert_close(started.features(images), backbone.features(images), rtol=0, atol=0)


def test_the_options_in_the_file_are_the_settings(tmp_path: Path) -> None:
    state, _ = checkpoint()
    options = argparse.Namespace(
        smooth=0.7,
        beta=0.5,
        diffusion_batch_mul=20,
        cond_drop_prob=0.0,
        epochs=240,
        learning_rate=2e-3,
        weight_decay=0.01,
        batch_size=32,
        warmup_epochs=50,
        lr_decay_epochs=[150, 180],
        cos=False,
        model_s="resnet8",
    )
    file = write(tmp_path, {"model": state, "opt": options})
    config = import_released(file, STUDENT, TEACHER, out=tmp_path / "run", gendd={"contraction": 0.8}).config
    method, training = config.gendd, config.training
    # arguments override the file
    assert (method.contraction, method.mixup, method.repeats) == (0.8, 0.5, 20)
    # without dropout guidance is impossible
    assert (method.condition_dropout, config.readout.guidance) == (0.0, 1.0)
    assert (training.epochs, training.lr, training.weight_decay) == (240, 2e-3, 0.01)
    assert (training.warmup_epochs, training.milestones, training.schedule) == (50, [150, 180], "step")
    assert config.data.batch_size == 32
    # sizes are taken from the tensors, whatever is given
    file = write(tmp_path, {"model": state, "opt": argparse.Namespace(epochs=10, warmup_epochs=20)})
    again = import_released(file, STUDENT, TEACHER, out=tmp_path / "again", gendd={"head_width": 8}).config
    assert (again.gendd.head_width, again.training.warmup_epochs) == (24, None)


def test_an_imagenet_student_samples_in_64_steps() -> None:
    from gendd.released.checkpoints import Released
    from gendd.released.student import released_config

    state, _ = checkpoint()
    released = Released(Path("c.pt"), state, {}, None)
    config = released_config(released, "timm/resnet18", {})
    assert (config.readout.steps, config.data.name, config.student.mean) == (64, "folder", None)
    assert (config.gendd.repeats, config.gendd.contraction, config.training.beta2) == (10, 0.9, (0.96, 0.999))


SHORT = ["--readout.steps=2", "--readout.num_samples=1", "--training.device=cpu"]


def test_the_command_measures_on_the_images_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, _ = checkpoint()
    torch.manual_seed(1)
    teacher = create_backbone(TEACHER, CLASSES, in_channels=1)
    state["classifier.weight"], state["classifier.bias"] = teacher.classifier.weight, teacher.classifier.bias
    save_weights(teacher, tmp_path / "teacher.safetensors")
    file = write(tmp_path, {"model": state})
    words = [str(file), "--student", STUDENT, "--teacher", TEACHER, "--out", str(tmp_path / "run"), *SHORT]
    words += ["--teacher-weights", str(tmp_path / "teacher.safetensors"), "--data.name", "digits"]
    assert main(["import-released", *words]) == 0
    out = capsys.readouterr().out
    assert "GenDD · sample" in out and str(tmp_path / "run" / "student") in out
    run = Run.open(tmp_path / "run")
    metrics = run.metrics
    assert metrics["run"]["test_images"] == 359
    assert metrics["teacher"]["name"] == TEACHER and 0 <= metrics["teacher"]["top1"] <= 100
    for name, scores in evaluate_run(run.folder).items():
        figures = metrics["student"]["readouts"][name]
        assert (figures["top1"], figures["top5"]) == (scores["top1"], scores["top5"])
        assert 0 <= figures["agreement"] <= 100 and figures["multiply_adds"] > 0
    assert (run.config.readout.steps, run.config.data.name) == (2, "digits")
    assert run.student().info["class_names"] == [str(digit) for digit in range(10)]


def test_it_starts_a_training_and_is_not_resumed(tmp_path: Path) -> None:
    state, _ = checkpoint(1)
    out = tmp_path / "run"
    run = import_released(write(tmp_path, state), STUDENT, TEACHER, out=out, data="digits")
    message = refused(lambda: distill(run.config, out=out, resume=True))
    assert "found an imported checkpoint;" in message and f"--student.weights {out}" in message
    assert Run.open(out).metrics == run.metrics


# --- mistakes ---------------------------------------------------------------------------------------


def test_other_checkpoints_are_refused_with_what_they_lack(tmp_path: Path) -> None:
    network = create_backbone("cifar/resnet8", 10).net.state_dict()
    message = refused(lambda: read_released(write(tmp_path, {"model": network})))
    assert (
        "expected a checkpoint of the released GenDD code, got one without model.* (the student), " in message
    )
    assert "classifier.weight; weights of a single network" in message
    state, _ = checkpoint()
    for key in ("cls_projector.0.weight", "diffloss.net.input_proj.weight", "classifier.weight"):
        part = {name: value for name, value in state.items() if name != key}
        assert f"got one without {key};" in refused(lambda part=part: read_released(write(tmp_path, part)))  # type: ignore[misc]
    assert "expected a file, found none" in refused(lambda: read_released(tmp_path / "nothing.pth"))


def test_tensors_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    state, _ = checkpoint()
    for key, value, reason in (
        ("diffloss.net.pos_embed.weight", torch.zeros(5, 24), "size mismatch for position.weight"),
        ("diffloss.net.cond_embed.weight", torch.zeros(24, 3), "size mismatch for condition.weight"),
        ("diffloss.net.time_embed.mlp.2.bias", None, 'Missing key(s) in state_dict: "time.2.bias"'),
        ("cls_projector.0.bias", None, "'cls_projector.0.bias' is missing"),
    ):
        changed = {name: tensor for name, tensor in state.items() if name != key}
        if value is not None:
            changed[key] = value
        file = write(tmp_path, changed)
        message = refused(lambda file=file: released_student(file, STUDENT))  # type: ignore[misc]
        assert "expected a stage-2 checkpoint whose tensors fit together" in message and reason in message


def test_networks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state, _ = checkpoint()
    file = write(tmp_path, {"model": state})
    out = tmp_path / "run"

    def call(student: str, teacher: str, **given: Any) -> str:
        return refused(lambda: import_released(file, student, teacher, out=out, **given))

    message = call("cifar/resnet14x0.25", TEACHER)
    assert f"{file}: expected the weights of cifar/resnet14x0.25, got 30 keys missing" in message
    assert "Unknown model 'cifar/resnt8'" in call("cifar/resnt8", TEACHER)
    assert "Teacher: expected a network of 32 features" in call(STUDENT, "cifar/resnet8")
    assert "got cifar/resnet8 of 64" in call(STUDENT, "cifar/resnet8")
    assert "Teacher: Unknown model 'resnet56'" in call(STUDENT, "resnet56")
    save_weights(create_backbone(TEACHER, CLASSES, in_channels=1), tmp_path / "other.safetensors")
    message = call(STUDENT, TEACHER, teacher_weights=tmp_path / "other.safetensors")
    assert "whose classifier the checkpoint holds, got others" in message
    assert "Unknown config key 'gendd.lambda'" in call(STUDENT, TEACHER, gendd={"lambda": 1})
    assert not out.exists()
    import_released(file, STUDENT, TEACHER, out=out)
    assert "exists: give another --out" in call(STUDENT, TEACHER)


def test_images_of_other_classes_or_channels_are_refused(tmp_path: Path) -> None:
    state, _ = checkpoint(1)
    state["model.conv1.weight"] = torch.zeros(4, 3, 3, 3)
    file = write(tmp_path, state)
    message = refused(lambda: import_released(file, STUDENT, TEACHER, out=tmp_path / "run", data="digits"))
    assert message.startswith("data: expected images of 3 channels, as the checkpoint's, got 1 in 'digits'")
    state, _ = checkpoint(1)
    state |= {"classifier.weight": torch.zeros(7, 32), "classifier.bias": torch.zeros(7)}
    state |= {"model.fc.weight": torch.zeros(7, 16), "model.fc.bias": torch.zeros(7)}
    file = write(tmp_path, state)
    message = refused(lambda: import_released(file, STUDENT, TEACHER, out=tmp_path / "run", data="digits"))
    assert message.startswith("data: expected images of 7 classes")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: CKPT, --student, --teacher. See: gendd import-released"),
        (
            ["c.pt", "--student", STUDENT, "--teacher", TEACHER, "--data.nam", "x"],
            "Unknown option '--data.nam'.",
        ),
        (
            ["c.pt", "--student", STUDENT, "--teacher", TEACHER, "--readout.steps", "x"],
            "readout.steps: expected",
        ),
        (
            ["c.pt", "--student", STUDENT, "--teacher", TEACHER],
            "weights: expected a file, found none at 'c.pt'",
        ),
    ],
)
def test_a_wrong_command_costs_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import-released", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"gendd: {message}") and captured.err.count("\n") == 1
