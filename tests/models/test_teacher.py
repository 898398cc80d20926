from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from gendd.config import ModelConfig
from gendd.errors import UserError
from gendd.models import build_teacher, create_backbone, save_weights, teacher_class_names
from gendd.student import Student

NAME = "cifar/resnet8x0.25"


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """Weights of seven classes."""
    path = tmp_path / "w.safetensors"
    save_weights(create_backbone(NAME, 7, 1), path)
    return str(path)


@pytest.fixture
def pretrained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Simulate timm weights with as many classes as the first entry; no downloads, each build is recorded."""
    create = timm.create_model
    built: list[Any] = [1000]

    def created(name: str, pretrained: bool = False, **given: Any) -> Any:
        net = create(name, **given)
        net.pretrained_cfg["num_classes"] = built[0]
        built.append((pretrained, given["num_classes"]))
        return net

    monkeypatch.setattr(timm, "create_model", created)
    return built


def test_a_weights_file_keeps_its_classes(weights: str) -> None:
    for classes in (None, 7):
        teacher = build_teacher(ModelConfig(NAME, weights, classes=classes), 10, 1)
        assert teacher.num_classes == 7
        again = build_teacher(ModelConfig(NAME, weights), 7, 1)
        images = torch.rand(2, 1, 8, 8)
        assert torch.equal(teacher.eval()(images)[1], again.eval()(images)[1])


def test_classes_are_checked_against_the_weights(weights: str) -> None:
    with pytest.raises(UserError, match="has 7 classes, not the expected 5"):
        build_teacher(ModelConfig(NAME, weights, classes=5), 10, 1)


def test_without_weights_the_classes_are_the_data_s() -> None:
    assert build_teacher(ModelConfig(NAME), 10, 1).num_classes == 10


def test_without_classes_of_the_data_the_weights_tell_them(weights: str, pretrained: list[Any]) -> None:
    assert build_teacher(ModelConfig(NAME, weights), 0, 1).num_classes == 7
    config = ModelConfig("timm/test_resnet", pretrained=True)
    assert build_teacher(config, 0, 3).num_classes == 1000
    assert pretrained[1:] == [(True, 1), (True, 1000)]
    pretrained[0] = 0
    assert build_teacher(config, 0, 3).num_classes == 0
    assert build_teacher(ModelConfig(NAME, classes=4), 0, 1).num_classes == 4
    assert build_teacher(ModelConfig(NAME), 0, 1, create_backbone(NAME, 5, 1)).num_classes == 5


def test_classes_that_nothing_tells(weights: str) -> None:
    with pytest.raises(UserError) as caught:
        build_teacher(ModelConfig(NAME), 0, 1)
    assert str(caught.value) == (
        f"teacher.weights: expected weights for {NAME} that determine its classes, as the images don't, got "
        "none; give a file, or name the classes with data.classes."
    )
    with pytest.raises(UserError, match="expected the weights of timm/test_vit, got "):
        build_teacher(ModelConfig("timm/test_vit", weights), 0, 1)


def test_a_classifier_may_be_left_out(weights: str) -> None:
    teacher = build_teacher(ModelConfig(NAME, weights, classifier=False, mean=[0.1], std=[0.2]), 10, 1).eval()
    whole = build_teacher(ModelConfig(NAME, weights, mean=[0.1], std=[0.2]), 10, 1).eval()
    assert not teacher.has_classifier and teacher.num_classes == 0
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(teacher(images)[0], whole(images)[0])
    assert teacher.feature_dim == whole.feature_dim == 16


def test_a_pretrained_teacher_keeps_its_classes(pretrained: list[Any]) -> None:
    config = ModelConfig("timm/test_resnet", pretrained=True)
    assert build_teacher(config, 10, 3).num_classes == 1000
    assert pretrained[1:] == [(True, 10), (True, 1000)]
    del pretrained[1:]
    assert build_teacher(config, 1000, 3).num_classes == 1000
    assert pretrained[1:] == [(True, 1000)]
    with pytest.raises(UserError, match=r"classes: expected 1000 or null for the trained timm/test_resnet"):
        build_teacher(ModelConfig("timm/test_resnet", pretrained=True, classes=5), 10, 3)


def test_pretrained_weights_without_a_classifier_make_none(pretrained: list[Any]) -> None:
    pretrained[0] = 0
    teacher = build_teacher(ModelConfig("timm/test_resnet", pretrained=True), 10, 3).eval()
    assert not teacher.has_classifier
    assert teacher(torch.rand(1, 3, 32, 32))[0].shape == (1, teacher.feature_dim)


def test_names_of_a_run_are_those_of_its_data(tmp_path: Path, weights: str) -> None:
    names = ["a", "b", "c", "é"]
    Student(create_backbone(NAME, 4, 1), info={"class_names": names}).save(tmp_path / "run" / "student")
    assert teacher_class_names(ModelConfig(NAME, str(tmp_path / "run")), 4) == names
    assert teacher_class_names(ModelConfig(NAME, str(tmp_path / "run")), 5) is None
    assert teacher_class_names(ModelConfig(NAME, weights), 7) is None
    assert teacher_class_names(ModelConfig(NAME), 4) is None


def test_names_of_timm_s_weights_are_imagenet_s() -> None:
    names = teacher_class_names(ModelConfig("timm/resnet18", pretrained=True), 1000)
    assert names is not None
    assert (names[0], names[1], names[-1]) == ("tench", "goldfish", "toilet tissue")
    assert teacher_class_names(ModelConfig("timm/resnet18", pretrained=True), 10) is None
