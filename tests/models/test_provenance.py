from __future__ import annotations

from pathlib import Path

import pytest
from helpers import make_student

from gendd.config import ModelConfig
from gendd.models.provenance import origin, provenance


def test_timm_tells_of_its_weights() -> None:
    config = ModelConfig("timm/resnet18.a1_in1k", pretrained=True)
    assert origin(config) == {"repository": "timm/resnet18.a1_in1k", "license": "apache-2.0"}
    assert origin(ModelConfig("timm/resnet18.a1_in1k")) == {}
    assert origin(ModelConfig("torchvision/resnet18", pretrained=True)) == {}


def test_repositories_of_the_hub_are_their_names() -> None:
    assert origin(ModelConfig("hf/someone/network", pretrained=True)) == {"repository": "someone/network"}
    assert origin(ModelConfig("hf/./folder", pretrained=True)) == {}


def test_a_run_tells_of_its_student(tmp_path: Path) -> None:
    student = make_student()
    config = ModelConfig("cifar/resnet8x0.5", weights=str(tmp_path / "run"))
    assert origin(config) == {}
    student.info |= {"base_model": "timm/x", "base_license": "mit"}
    student.save(tmp_path / "run" / "student")
    assert origin(config) == {"repository": "timm/x", "license": "mit"}
    student.info["license"] = "cc-by-4.0"
    student.save(tmp_path / "run" / "student")
    assert origin(config) == {"repository": "timm/x", "license": "cc-by-4.0"}


@pytest.mark.parametrize("stated, told", [(None, "apache-2.0"), ("mine", "mine")])
def test_what_the_user_states_comes_first(stated: str | None, told: str) -> None:
    teacher = ModelConfig("timm/resnet18.a1_in1k", pretrained=True, license=stated)
    assert provenance(ModelConfig("cifar/resnet8"), teacher) == {"teacher_license": told}
    student = ModelConfig("timm/resnet18.a1_in1k", pretrained=True, license=stated)
    started = {"base_model": "timm/resnet18.a1_in1k", "base_license": "apache-2.0"}
    assert provenance(student, None) == started | ({} if stated is None else {"license": stated})
