"""The tables in the docs match the committed results, and the scripts measure what they claim."""

from __future__ import annotations

import csv
import importlib
import math
import re
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import gendd
from gendd.config import DataConfig, GenDDConfig, ReadoutConfig, RunConfig, merge, read_yaml, to_dict
from gendd.data import ImageSet, load_data
from gendd.recipes import is_base, recipe_path, recipes
from gendd.student.generator import FeatureGenerator

ROOT = Path(__file__).parents[1]


def test_tables_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    monkeypatch.setenv("DATA", "DATA")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("tables").main()
    assert ended.value.code == 0, "run: python benchmarks/tables.py"


def test_every_recipe_is_measured_as_it_is() -> None:
    with (ROOT / "benchmarks" / "results" / "recipes.csv").open(newline="") as stream:
        rows = {row["recipe"]: row for row in csv.DictReader(stream)}
    names = {name for name in recipes() if not is_base(name)}
    assert set(rows) == names - {"demo", "digits", "published", "linear_probe"}
    for name, row in rows.items():
        values = to_dict(RunConfig())
        merge(values, read_yaml(recipe_path(name)))
        batch, repeats = values["data"]["batch_size"] or 128, values["gendd"]["repeats"]
        assert int(row["batch"]) == batch
        if values["method"] == "gendd":
            tokens = int(row["tokens"])
            assert int(row["rows"]) == batch * tokens * (repeats or max(2, math.ceil(8 / tokens)))


def test_every_network_that_was_seen_gives_its_own_logits_and_learns() -> None:
    with (ROOT / "benchmarks" / "results" / "families.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    seen = [row for row in rows if not row["note"]]
    assert all(float(row["difference"]) <= 1e-5 and row["step"] == "yes" for row in seen)
    assert all(re.search("left out|not done in", row["note"]) for row in rows if row not in seen)
    assert {row["library"] for row in seen} == {"timm", "torchvision", "hf"}


# --- the CSVs ---


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("records")


def test_rows_of_a_key_are_replaced_and_the_others_kept(records: ModuleType, tmp_path: Path) -> None:
    path, fields = tmp_path / "found.csv", ["case", "seed", "top1"]
    assert records.read(path) == []
    elsewhere = {"case": "c", "seed": 0, "versions": "torch 1", "machine": "another", "date": "2020-01-01"}
    records.append(path, fields, [elsewhere])
    for case, seed, top1 in [("a", 0, 1.5), ("a", 1, 2.5), ("b", 0, 3.5), ("a", 0, 4.5)]:
        key = {"case": case, "seed": seed}
        records.replace(path, fields, key, [{**key, "top1": top1}])
    kept, *rows = records.read(path)
    # a row that stays has the circumstances of its own measurement
    assert kept == {name: str(value) for name, value in elsewhere.items()} | {"top1": ""}
    found = [(row["case"], row["seed"], row["top1"]) for row in rows]
    assert found == [("a", "1", "2.5"), ("b", "0", "3.5"), ("a", "0", "4.5")]


def test_a_row_that_does_not_fit_leaves_the_file_as_it_was(records: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    records.append(path, ["case", "top1"], [{"case": "a", "top1": 1}, {"case": "b"}])
    before = path.read_bytes()
    there = records.read(path)
    assert [(row["case"], row["top1"]) for row in there] == [("a", "1"), ("b", "")]
    assert all(
        row["machine"] and row["date"] and f"torch {torch.__version__}" in row["versions"] for row in there
    )
    with pytest.raises(ValueError, match="agreement"):
        records.replace(path, ["case", "top1"], {"case": "a"}, [{"case": "a", "agreement": 2}])
    with pytest.raises(ValueError, match="agreement"):
        records.append(path, ["case", "top1"], [{"case": "c", "top1": 1}, {"agreement": 2}])
    with pytest.raises(ValueError, match="move it away"):
        records.append(path, ["case", "agreement"], [{"case": "c", "agreement": 2}])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- uncertainty ---


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[ModuleType, ModuleType]:
    """benchmarks/uncertainty.py and tables.py, with a separate results folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    measuring, tables = importlib.import_module("uncertainty"), importlib.import_module("tables")
    monkeypatch.setattr(measuring, "RESULTS", tmp_path / "uncertainty.csv")
    monkeypatch.setattr(measuring, "SAMPLES", (2, 3))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return measuring, tables


def saved_pair(folder: Path, channels: int) -> Path:
    """Save students with random weights in a run folder: one trained on labels alone, one generative."""
    for method in ("supervised", "gendd"):
        torch.manual_seed(0)
        backbone = gendd.create_backbone("cifar/resnet8x0.25", 10, in_channels=channels)
        if method == "supervised":
            gendd.Student(backbone).save(folder / "supervised-0")
            continue
        settings = GenDDConfig(token_width=8, head_width=16, head_depth=1, timesteps=20, zero_init=False)
        generator = FeatureGenerator(backbone.feature_dim, 16, settings)
        student = gendd.Student(backbone, generator, nn.Linear(16, 10), ReadoutConfig(steps=2))
        student.save(folder / "gendd-0" / "student")
    (folder / "notes-0").mkdir()
    return folder


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_uncertainty_of_digits(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring, tables = scripts
    assert tables.calibrated("digits") == tables.detected("digits") == "Not measured yet."
    monkeypatch.setattr(measuring, "DIGITS", ("supervised", "gendd"))
    folder = saved_pair(tmp_path / "students", 1)
    measuring.main(["digits", str(folder), "--seeds", "1", "--images", "60"])
    found = rows_of(tmp_path / "uncertainty.csv")
    told = [(row["method"], row["readout"], row["n"]) for row in found if not row["score"]]
    generated = [("gendd", "linear", ""), ("gendd", "mean", ""), *(("gendd", "mixture", n) for n in "23")]
    assert told == [("supervised", "linear", ""), *generated]
    # a softmax score of each, and four scores for either number of samples, for each out-of-distribution set
    scored = [row for row in found if row["score"]]
    assert len(scored) == 2 * (1 + 4 + 2 * 4)
    assert {row["out"] for row in scored} == {"uniform noise", "shifted 3 px"}
    assert {row["images"] for row in found} == {"60"}

    test = load_data(DataConfig()).test
    assert test.labels is not None
    taken = torch.linspace(0, len(test) - 1, 60).round().long()
    pixels = test.images(taken).float() / 255
    moved = torch.cat([torch.zeros(60, 1, 8, 3), pixels[..., :5]], dim=-1)
    student = gendd.load(folder / "supervised-0")
    with torch.no_grad():
        said = student(pixels).softmax(-1)
        confidence = torch.cat([said.max(-1).values, student(moved).softmax(-1).max(-1).values])
    assert float(found[0]["top1"]) == pytest.approx(
        100 * float((said.argmax(-1) == test.labels[taken]).float().mean()), abs=0.006
    )
    (own,) = (
        float(row["auroc"])
        for row in scored
        if row["method"] == "supervised" and row["out"] == "shifted 3 px"
    )
    assert own == pytest.approx(roc_auc_score([1] * 60 + [0] * 60, confidence.numpy()), abs=1e-5)

    # students with rows are not measured again
    measuring.main(["digits", str(folder), "--seeds", "1", "--images", "60"])
    assert rows_of(tmp_path / "uncertainty.csv") == found
    calibrated, detected = tables.calibrated("digits").splitlines(), tables.detected("digits").splitlines()
    assert len(calibrated) == 2 + 5 and len(detected) == 2 + 13
    assert calibrated[2].startswith(f"| student alone (cross-entropy) | linear | {found[0]['top1']} |")
    assert detected[0] == "| method | score | uniform noise | shifted 3 px |"
    assert f"{100 * own:.1f} /" in detected[2].split("|")[4]
    assert any(line.startswith("| GenDD | mutual information · 3 samples |") for line in detected)


def test_uncertainty_of_cifar(scripts: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    measuring, tables = scripts
    folder = saved_pair(tmp_path / "students", 3)
    for prefix in ("train", "t10k"):
        pixels = bytes([0, 0, 8, 3]) + struct.pack(">3I", 4, 28, 28) + bytes(range(196)) * 16
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(pixels)
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 4, 0, 1, 2, 3]))
    pixels = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels, torch.arange(8), channels=3, size=32)
    measuring.measure("cifar10", measuring.trained.students(folder), images, 6, str(tmp_path))
    found = rows_of(tmp_path / "uncertainty.csv")
    sets = ["uniform noise", "Fashion-MNIST", "Gaussian noise", "blur"]
    assert list(dict.fromkeys(row["out"] for row in found if row["out"])) == sets
    assert {row["images"] for row in found} == {"6"}
    assert tables.detected("cifar10").startswith(f"| method | score | {' | '.join(sets)} |")
    assert measuring.clothes(str(tmp_path), 2).shape == (2, 3, 32, 32)


# --- exports ---


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """benchmarks/exports.py, with a separate results folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    measuring, tables = importlib.import_module("exports"), importlib.import_module("tables")
    monkeypatch.setattr(measuring, "RESULTS", tmp_path / "exports.csv")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return measuring


def saved_timm(folder: Path) -> Path:
    torch.manual_seed(0)
    backbone = gendd.create_backbone("timm/test_resnet", 10, in_channels=1)
    return gendd.Student(backbone, info={"image_size": 32}).save(folder)


def test_exports_of_every_format_are_measured(exports: ModuleType, tmp_path: Path) -> None:
    tables = importlib.import_module("tables")
    assert tables.exports() == "Not measured yet."
    place, data = saved_timm(tmp_path / "timm"), load_data(DataConfig(image_size=32))
    for _ in range(2):  # students with rows are not measured again
        exports.measure("digits", iter([("timm", place)]), data, 40)
        found = rows_of(tmp_path / "exports.csv")
        assert [row["format"] for row in found] == [
            "onnx",
            "onnx int8",
            "safetensors",
            "timm",
            "torch-export",
        ]
    assert {(row["readout"], row["images"], row["test_images"]) for row in found} == {("linear", "40", "40")}
    assert all(float(row["deviation"]) < 1e-4 for row in found if row["format"] != "onnx int8")
    assert 1e-4 < float(found[1]["deviation"]) < 1
    assert int(found[1]["bytes"]) < 0.5 * int(found[0]["bytes"])
    assert data.test.labels is not None
    taken = torch.linspace(0, len(data.test) - 1, 40).round().long()
    with torch.no_grad():
        said = gendd.load(place)(data.test.images(taken).float() / 255).argmax(-1)
    right = 100 * float((said == data.test.labels[taken]).double().mean())
    assert {float(row["fp32_top1"]) for row in found} == {right} == {float(found[0]["top1"])}
    lines = tables.exports().splitlines()
    assert len(lines) == 2 + 5
    assert lines[2].startswith("| digits | `timm/test_resnet` | linear | onnx | ")


def test_a_file_that_deviates_is_seen(
    exports: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = gendd.load(saved_timm(tmp_path / "timm"))
    monkeypatch.setattr(exports, "formats", lambda: ("safetensors",))
    monkeypatch.setattr(exports, "opened", lambda found: lambda images: 1.25 * student(images))
    data = load_data(DataConfig(image_size=32))
    images, labels = exports.taken(data.test, 8)
    (row,) = exports.rows(student, images, data, labels)
    assert row["deviation"] == "2.5e-01"
