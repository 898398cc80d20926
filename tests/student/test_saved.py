"""The config.json of a student: invalid values are rejected before anything is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import make_student, one_line
from PIL import Image

from gendd.deploy.predict import predict
from gendd.errors import UserError
from gendd.models.described import checked as checked_network
from gendd.models.weights import saved_backbone
from gendd.student import load
from gendd.student.saved import checked


def described() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(make_student().config()))
    return values


def changed(dotted: str, value: Any) -> dict[str, Any]:
    values = described()
    *sections, last = dotted.split(".")
    inner = values
    for section in sections:
        inner = inner[section]
    inner[last] = value
    return values


def test_what_a_student_says_of_itself_is_taken() -> None:
    found = checked(described())
    assert found.backbone == described()["backbone"] and found.info["classes"][-1] == "é"
    assert found.generator is not None and found.generator.settings.token_width == 4
    assert checked({**described(), "generator": None}).generator is None
    assert checked(changed("generator.mean_time", None)).generator is not None
    # numbers written as strings are accepted
    assert checked(changed("backbone.num_classes", "5")).backbone["num_classes"] == 5


@pytest.mark.parametrize(
    "dotted, values",
    [
        ("backbone", [None, [], "cifar/resnet8"]),
        ("backbone.name", [None, 5, ["a"]]),
        ("backbone.num_classes", [None, -1, 1.5, 10**7, 10**30]),
        ("backbone.in_channels", [None, 0, 10**6]),
        ("backbone.mean", [None, 0.5, ["a"], {"": 1}, [float("nan")]]),
        ("backbone.std", [None, [0], [-1], [float("inf")]]),
        ("backbone.input_size", [0, "x", 10**6]),
        ("backbone.config", [5, [1]]),
        ("backbone.projector", [5, {"width": 4}, {"width": 4, "hidden": 0}, {"width": "x", "hidden": 4}]),
        ("generator", [5, [], {}]),
        ("generator.condition_width", [None, 0, 10**6]),
        ("generator.feature_width", [None, -1, "x"]),
        ("generator.num_classes", [0, 1.5, 10**7]),
        ("generator.mean_time", [-1, 20, 0.5]),
        ("generator.settings", [None, 5, {"head_depth": 101}]),
        ("generator.settings.residual", [True, "x"]),
        ("readout", [None, [], {"steps": 0}]),
        ("linear", [None, 1, "yes"]),
        ("info", [None, 5, []]),
        ("info.image_size", [0, 8.5, 10**6]),
        ("info.framing", [0, 1.1, "x"]),
        ("info.class_names", [5, {"a": 1}, "ab"]),
        ("info.teacher_class_names", [5, {"a": 1}, "ab"]),
    ],
)
def test_values_of_another_type_or_range_are_refused(dotted: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(UserError, match=r"^[\w.]+: expected |^expected a value of ") as caught:
            checked(changed(dotted, value))
        one_line(caught)


@pytest.mark.parametrize(
    "dotted, value",
    [
        ("backbone.num_classes", 900_000),
        ("generator.feature_width", 60_000),
        ("generator.settings.head_depth", 100),
        ("generator.settings.head_width", 60_000),
        ("generator.num_classes", 900_000),
        ("backbone.projector", {"width": 60_000, "hidden": 60_000}),
    ],
)
def test_a_network_that_its_weights_cannot_fill_is_never_built(
    dotted: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_student().save(tmp_path)
    (folder / "config.json").write_text(json.dumps(changed(dotted, value)), encoding="utf-8")
    monkeypatch.setattr("gendd.student.student.create_backbone", None)
    with pytest.raises(
        UserError, match=r"got one of at least [\d,]+ parameters for [\d,]+; restore"
    ) as caught:
        load(folder)
    one_line(caught)


@pytest.mark.parametrize("content", [b"[" * 5000, b"5", b"null", b"\xff\xfe", b"[1]"])
def test_json_of_another_shape(content: bytes, tmp_path: Path) -> None:
    folder = make_student().save(tmp_path)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"^Student '.*(restore its files|use that one)\.$") as caught:
        load(folder)
    one_line(caught)


def test_a_size_of_null_is_none(tmp_path: Path) -> None:
    student = make_student()
    student.info |= {"image_size": None, "framing": None}
    image = tmp_path / "image.png"
    Image.new("RGB", (32, 32)).save(image)
    (said,) = predict(student.save(tmp_path / "student"), [str(image)])
    assert said.error is None and len(said.classes) == 5


def test_a_network_is_checked_where_it_is_named_by_its_run_too(tmp_path: Path) -> None:
    folder = make_student().save(tmp_path / "run")
    assert saved_backbone(folder) == described()["backbone"] == checked_network(described()["backbone"])
    config = folder / "config.json"
    config.write_text(json.dumps(changed("backbone.name", 5)), encoding="utf-8")
    with pytest.raises(UserError, match=r"^Student '.*run': backbone\.name: expected text, got 5\.$"):
        saved_backbone(folder)
    config.write_text(json.dumps({"backbone": "resnet50"}), encoding="utf-8")
    assert saved_backbone(folder) is None  # from another library
    config.write_bytes(b"{")
    with pytest.raises(UserError, match="expected a readable JSON file"):
        saved_backbone(folder)
