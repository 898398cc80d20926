from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from conftest import Finished

import gendd
from gendd.report.model_card import card as text_of
from gendd.report.model_card import write_card
from gendd.run import Run


def test_the_card_of_a_run_states_its_figures(digits_run: Finished) -> None:
    text = (digits_run.folder / "student" / "README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["library_name"] == "gendd"
    assert fields["pipeline_tag"] == "image-classification"
    assert "gendd" in fields["tags"]
    metrics = Run.open(digits_run.folder).metrics
    assert "# cifar/resnet8x0.25 trained on digits" in body
    assert "(B, 1, 8, 8)" in body
    table = [line for line in body.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table] == [
        "| readout",
        "| linear",
        "| mean (default)",
        "| sample",
        "| teacher",
    ]
    for line, name in zip(table[1:4], ("linear", "mean", "sample"), strict=True):
        figures = metrics["student"]["readouts"][name]
        assert line.endswith(
            f"| {figures['top1']:.2f} % | {figures['top5']:.2f} % | {figures['multiply_adds']:,} "
            f"| {figures['parameters']:,} |"
        )
    assert f"{metrics['teacher']['top1']:.2f} %" in table[4]
    assert "200 images, 3 epochs, seed 0, with labels, fp32 on cpu" in body


def card(path: Path, method: str, **changes: Any) -> str:
    figures = {"top1": 50.0, "top5": None, "multiply_adds": 1000, "parameters": 200}
    metrics: dict[str, Any] = {
        "run": {
            "test_images": 1234,
            "train_images": 5678,
            "epochs": 3,
            "seed": 0,
            "labels_used": False,
            "precision": "fp32",
            "device": "cpu",
            "versions": {"gendd": "1", "torch": "2"},
        },
        "teacher": {"name": "big", **figures},
        "student": {
            "name": "small",
            "readouts": {"linear": figures},
            "readout": "linear",
            "train_seconds": 1.6,
        },
        **changes,
    }
    student = gendd.Student(gendd.create_backbone("cifar/resnet8x0.25", 3), info={"method": method})
    write_card(path, student, metrics)
    return path.read_text(encoding="utf-8")


def test_where_a_student_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    assert "Distilled from big by Generative Distribution Distillation" in card(path, "gendd")
    assert "Distilled from big through its logits (KL distillation)." in card(path, "kl")
    alone = card(path, "supervised", teacher=None)
    assert "Trained on labels alone." in alone and "| teacher |" not in alone


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    text = card(tmp_path / "README.md", "kl")
    assert (
        "| linear (default) | a linear classifier on the student's feature | 50.00 % | – | 1,000 | 200 |"
        in text
    )
    assert "On 1,234 test images." in text
    assert "5,678 images, 3 epochs, seed 0, without labels, fp32 on cpu, 2 s. gendd 1, torch 2." in text


def test_a_probe_is_told_with_what_it_saw(tmp_path: Path) -> None:
    figures = {"top1": 50.0, "top5": None, "multiply_adds": 1000, "parameters": 200}
    probe = {"kept": "refitted", "target": "teacher", "images": 4321, "labels_seen_by": None}
    own = {"name": "small", "readouts": {"linear": figures}, "readout": "linear", "train_seconds": 1.6}

    def told(**changes: Any) -> str:
        found = probe | {"trained_along": {"top1": 48.5}} | changes
        return card(tmp_path / "README.md", "gendd", student=own | {"probe": found})

    text = told()
    assert (
        "The linear readout was fitted afterwards, to the teacher's predictions of 4,321 images (the one "
        "trained along had 48.50 % top-1)." in text
    )
    assert "seed 0, without labels, fp32" in text
    assert "to the predictions of readout mean of 4,321 images." in told(
        target="mean", trained_along={"top1": None}
    )
    assert "seed 0, without labels but for the linear readout, fp32" in told(labels_seen_by="readout")
    assert "fitted afterwards" not in told(kept="trained")


# --- what the Hub reads ---


def fields(text: str) -> dict[str, Any]:
    """The front matter, as the Hub's own client reads it."""
    found: dict[str, Any] = huggingface_hub.ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    assert found == yaml.safe_load(text.split("---\n")[1])
    return found


def informed(**info: Any) -> gendd.Student:
    backbone = gendd.create_backbone("cifar/resnet8x0.25", 3)
    return gendd.Student(backbone, info={"data": "digits", "method": "kl", "teacher": "big", **info})


def test_the_front_matter_of_a_run(digits_run: Finished) -> None:
    found = fields((digits_run.folder / "student" / "README.md").read_text(encoding="utf-8"))
    own = json.loads((digits_run.folder / "metrics.json").read_text())["student"]
    (model,) = found.pop("model-index")
    (result,) = model["results"]
    assert model["name"].startswith("cifar/resnet8") and result["dataset"]["name"] == "digits"
    assert result["metrics"][0]["value"] == round(own["readouts"][own["readout"]]["top1"], 2)
    assert found == {
        "license": "unknown",
        "library_name": "gendd",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "knowledge-distillation", "gendd"],
    }


def test_what_is_known_is_in_the_front_matter() -> None:
    text = text_of(informed(data="cifar10", license="Apache-2.0", base_model="timm/x", base_license="mit"))
    found = fields(text)
    assert found["license"] == "apache-2.0" and "license_name" not in found
    assert found["datasets"] == ["uoft-cs/cifar10"] and found["base_model"] == "timm/x"
    assert "- This model: Apache-2.0." in text
    assert "- Weights it started from, timm/x: mit." in text


def test_a_licence_that_the_hub_does_not_know() -> None:
    found = fields(text_of(informed(license="My own: licence")))
    assert found["license"] == "other" and found["license_name"] == "my-own:-licence"


def test_licences_that_were_not_stated_are_said_to_be() -> None:
    text = text_of(informed())
    assert "- This model: not stated." in text and "- Its teacher big: not stated." in text
    assert "Weights it started from" not in text
    assert "- Its teacher big: cc-by-nc-4.0." in text_of(informed(teacher_license="cc-by-nc-4.0"))
    assert "teacher" not in text_of(informed(teacher=None, method="supervised")).split("## Limits")[0]


def test_a_card_without_figures() -> None:
    text = text_of(informed(class_names=["cat", "dog", "é: x"], image_size=8))
    assert "## Figures" not in text and "Training data: digits." in text
    assert "(B, 3, 8, 8)" in text and "3 classes: cat, dog, é: x." in text
    assert "Nothing was measured" in text and "What the teacher gets wrong" in text
    bare = text_of(gendd.Student(gendd.create_backbone("cifar/resnet8x0.25", 3)))
    assert "does not tell how it was trained" in bare and "Training data: not stated." in bare
    assert "(B, 3, H, W)" in bare and "classes:" not in bare


@pytest.mark.parametrize(
    "name, given", [("module/Mine", ", backbone=Mine(…))"), ("path/to/own.py:made", ", backbone=made(…))")]
)
def test_networks_that_have_to_be_given_are_told(name: str, given: str) -> None:
    student = informed()
    student.backbone.name = name
    assert f'gendd.load("path/to/this/folder"{given}' in text_of(student)
