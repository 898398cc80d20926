"""Runs whose teacher or student is the user's own network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import images
from torch import Tensor, nn

import gendd
from gendd.data import load_data
from gendd.errors import UserError
from gendd.models import Frozen, save_weights
from gendd.student import load

TRAINING = {"epochs": 1, "precision": "fp32", "loggers": ["csv"], "progress": False}
SETTINGS: dict[str, Any] = {
    "data": {"train_images": 100, "batch_size": 50},
    "training": TRAINING,
    "teacher_training": TRAINING,
    "gendd": {"head_width": 16, "repeats": 1, "token_width": 8},
    "readout": {"num_samples": 1, "steps": 2},
}
NETS = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes=10, in_channels=1):
        conv = nn.Conv2d(in_channels, 8, 3)
        super().__init__(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.append(nn.Linear(8, num_classes))
"""


class Net(nn.Module):
    """A network that does not expose its feature."""

    def __init__(self, width: int = 8, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.body(x).mean((2, 3)))


def made(**given: int) -> Net:
    torch.manual_seed(0)
    return Net(**given).eval()


def distil(folder: Path, **given: Any) -> gendd.Run:
    return gendd.distill(out=folder, **{**SETTINGS, **given})


def test_modules_are_distilled_saved_and_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, student = made(width=12), made()
    before = copy.deepcopy([teacher.state_dict(), student.state_dict()])
    run = distil(tmp_path / "run", teacher=teacher, student=student, baselines=["kl"])
    torch.testing.assert_close([teacher.state_dict(), student.state_dict()], before, rtol=0, atol=0)
    assert "teacher module/Net: feature = input of last (Linear), D 12, K 10\n" in capsys.readouterr().err
    assert (run.config.teacher.name, run.config.student.name) == ("module/Net", "module/Net")
    with pytest.raises(UserError) as caught:
        gendd.load(run.folder)
    assert "module/Net: expected an architecture known by name" in str(caught.value)
    assert "gendd.load(path, backbone=module)" in str(caught.value)
    with pytest.raises(UserError, match="expected the network it was saved with"):
        gendd.load(run.folder, backbone=made(width=9))
    network = made()
    loaded = gendd.load(run.folder, backbone=network)
    shared = {id(p) for p in network.parameters()} - {id(p) for p in network.last.parameters()}
    assert shared <= {id(p) for p in loaded.parameters()} and loaded.readouts == ("linear", "mean", "sample")
    torch.testing.assert_close(run.student(backbone=made())(images(2)), loaded(images(2)), rtol=0, atol=0)
    # trained from the weights it had
    assert not torch.equal(network.body[0].weight, student.body[0].weight)
    again = load(loaded.save(tmp_path / "again"), backbone=made())
    torch.testing.assert_close(again(images(2)), loaded(images(2)), rtol=0, atol=0)
    card = (run.folder / "student" / "README.md").read_text()
    assert 'gendd.load("path/to/this/folder", backbone=Net(…))' in card


def test_a_wrapped_module_keeps_what_it_was_wrapped_with(tmp_path: Path) -> None:
    teacher = gendd.wrap(made(channels=3), mean=[0.5] * 3, std=[0.2] * 3, in_channels=1, input_size=12)
    student = gendd.wrap(made(), feature="body", mean=[0.3], std=[0.4], in_channels=1)
    run = distil(tmp_path / "run", teacher=teacher, student=student, method="kl")
    config = run.config
    assert (config.teacher.mean, config.teacher.input_size, config.teacher.channels) == ([0.5] * 3, 12, 3)
    assert (config.student.feature, config.student.std) == ("body", [0.4])
    loaded = gendd.load(run.folder, backbone=made())
    assert loaded.backbone.config() == student.config()


def test_a_module_for_other_images_or_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Teacher: module/Net: expected a network of images of 1 channels"):
        distil(tmp_path / "run", teacher=gendd.wrap(made(channels=3)))
    with pytest.raises(UserError, match="expected a teacher with the student's 10 classes, got one with 7"):
        distil(tmp_path / "run", teacher=made(classes=7), method="kd")
    with pytest.raises(UserError, match=r"student\.feature: expected a module before the classifier"):
        distil(tmp_path / "run", teacher=made(), student={"feature": "layer1"})
    # pretraining of a network passed in does not matter
    tuned = gendd.create_backbone("timm/test_resnet", 10, 1)
    assert tuned.pretrained_classes == 1000
    distil(tmp_path / "tuned", teacher=tuned, student="cifar/resnet8x0.25", method="kl")
    assert not (tmp_path / "run").exists()


def test_networks_of_a_file_are_trained_cached_and_reloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GENDD_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "nets.py"
    file.write_text(NETS)
    name = f"{file}:Net"
    run = distil(tmp_path / "run", teacher=name, student=name)
    (cached,) = (tmp_path / "cache" / "teachers").iterdir()
    assert "nets.py-Net-digits" in cached.name
    with gendd.trusted_code():
        assert gendd.load(run.folder)(images(2)).shape == (2, 10)
    capsys.readouterr()
    distil(tmp_path / "second", teacher=name, student=name, method="kl")
    assert f"teacher {name}: cached, trained " in capsys.readouterr().err
    file.write_text(NETS.replace("ReLU", "GELU"))
    distil(tmp_path / "third", teacher=name, student=name, method="kl")
    assert f"teacher {name}: training" in capsys.readouterr().err


def test_a_repository_on_the_hub_decides_on_no_file_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    backbone = gendd.create_backbone(f"{tmp_path}/nets.py:Net", 10, 1)
    folder = gendd.Student(backbone).save(tmp_path / "student")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(folder))
    with pytest.raises(UserError, match=r"names code, .*nets\.py:Net', which was not run"):
        gendd.load("someone/student")
    assert gendd.load("someone/student", backbone=backbone.net)(images(2)).shape == (2, 10)


def test_a_teacher_of_another_size_type_and_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = gendd.create_backbone("timm/test_vit", 10, input_size=32)
    save_weights(network, tmp_path / "vit.safetensors")
    teacher = {
        "name": "timm/test_vit",
        "weights": str(tmp_path / "vit.safetensors"),
        "channels": 3,
        "input_size": 32,
        "dtype": "bf16",
    }
    seen: list[Frozen] = []

    def frozen(backbone: Any, **given: Any) -> Frozen:
        seen.append(Frozen(backbone, **given))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gendd.run.teacher.Frozen", frozen)
        run = distil(tmp_path / "run", teacher=teacher, student={"name": "cifar/resnet8x0.25"})
    assert run.metrics["student"]["readouts"]["mean"]["top1"] >= 0
    (used,) = seen
    assert {value.dtype for value in used.backbone.net.patch_embed.parameters()} == {torch.bfloat16}  # type: ignore[union-attr]
    feature, logits = used(images(2))
    assert feature.dtype == logits.dtype == torch.float32 and not used.training
    torch.testing.assert_close(
        feature, network.eval()(images(2).expand(-1, 3, -1, -1))[0], rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"student": {"dtype": "bf16"}},
            "student.dtype: expected fp32 (only the frozen teacher has another)",
        ),
        ({"student": {"compile": True}}, "student.compile: expected false (only the frozen teacher has"),
        ({"student": {"classifier": False}}, "student.classifier: expected true (only the frozen teacher"),
        ({"teacher": {"dtype": "fp8"}}, "teacher.dtype: expected one of fp32, bf16, got fp8."),
        ({"teacher": {"input_size": 0}}, "teacher.input_size: expected a positive integer up to 16,384"),
        ({"teacher": {"classifier": False}}, "teacher.classifier: expected true for a teacher that is"),
        ({"teacher": {"feature": "layer4"}}, "Teacher: cifar/resnet20: expected feature to name one of"),
    ],
)
def test_a_setting_that_cannot_work_is_named(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        distil(tmp_path / "run", **given)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_embeddings_of_a_data_set_s_images_are_taken_as_they_are(tmp_path: Path) -> None:
    data = load_data(gendd.DataConfig(train_images=20))
    teacher = Frozen(gendd.wrap(made(), classifier=False, in_channels=data.channels))
    feature, logits = teacher(data.test.images(range(3)).float() / 255)
    assert (feature.shape, logits.shape) == ((3, 8), (3, 0))
