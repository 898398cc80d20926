from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from conftest import Finished
from test_export import ExportOf

import gendd
from gendd.cli import main
from gendd.data import Data, load_data
from gendd.deploy.export import Exported, int8
from gendd.errors import UserError
from gendd.run import Run


def run_data(run: Run) -> Data:
    return load_data(dataclasses.replace(run.config.data, in_memory=False))


@pytest.fixture(scope="module")
def quantized(small_run: Path) -> Exported:
    return gendd.export(small_run, "onnx", readout="linear", quantize="int8", calibration=48)


def test_an_int8_file_is_scored_beside_its_float_one(quantized: Exported, small_run: Path) -> None:
    assert quantized.path == small_run / "export" / "student-linear-int8.onnx"
    assert quantized.deviation < 1e-5 and quantized.quantized is not None
    model = onnx.load(quantized.path)
    kinds = {node.op_type for node in model.graph.node}
    assert "QuantizeLinear" in kinds and "DequantizeLinear" in kinds
    channelwise = [each for each in model.graph.initializer if each.dims and each.name.endswith("_scale")]
    assert any(each.dims[0] > 1 for each in channelwise)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told["readout"] == "linear" and told["image_size"] == "8" and "int8" in told["quantization"]

    test = run_data(Run(small_run)).test
    images = test.images(range(len(test))).float() / 255
    session = onnxruntime.InferenceSession(str(quantized.path), providers=["CPUExecutionProvider"])
    said = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]).argmax(-1)
    student = gendd.load(small_run)
    student.readout = "linear"
    with torch.no_grad():
        plain = student(images).argmax(-1)
    figures = quantized.quantized
    assert figures.images == len(test) and figures.bytes == quantized.bytes
    assert figures.agreement == pytest.approx(100 * float((said == plain).float().mean()), abs=0.3)
    assert test.labels is not None
    assert figures.top1 == pytest.approx(100 * float((said == test.labels).float().mean()), abs=0.3)
    right = Run(small_run).metrics["student"]["readouts"]["linear"]["top1"]
    assert figures.fp32_top1 == pytest.approx(right, abs=0.3)
    assert figures.fp32_bytes > 0 and figures.agreement > 80
    assert [entry.name for entry in quantized.path.parent.iterdir() if "fp32" in entry.name] == []


def test_the_figures_are_printed(quantized: Exported) -> None:
    figures = quantized.quantized
    assert figures is not None
    lines = str(quantized).splitlines()
    assert lines[2] == f"fp32   top-1 {figures.fp32_top1:.2f} %   {figures.fp32_bytes / 1e6:.2f} MB"
    assert lines[3] == f"int8   top-1 {figures.top1:.2f} %   {figures.bytes / 1e6:.2f} MB"
    assert lines[4] == f"agreement {figures.agreement:.2f} % of {figures.images:,} test images"


def test_without_labels_there_is_the_agreement(
    quantized: Exported, exported: ExportOf, small_run: Path
) -> None:
    data = run_data(Run(small_run))
    unlabelled = dataclasses.replace(data, test=dataclasses.replace(data.test, labels=None))
    figures = int8._scored(exported("onnx", "linear").path, quantized.path, unlabelled, False)
    assert figures.top1 is None and figures.fp32_top1 is None
    assert quantized.quantized is not None and figures.agreement == quantized.quantized.agreement
    assert str(figures).startswith("fp32   0.")


def test_training_images_are_looked_at_as_they_are(small_run: Path) -> None:
    data = run_data(Run(small_run))
    reader = int8._Calibration(data, 40, False)
    found = []
    while (batch := reader.get_next()) is not None:
        found.append(torch.from_numpy(batch["images"]))
    picked = torch.linspace(0, len(data.train) - 1, 40).round().long()
    assert not isinstance(data.train, gendd.data.Shards)
    assert torch.equal(torch.cat(found), data.train.images(picked).float() / 255)


def test_logits_that_are_no_numbers_are_no_file(exported: ExportOf, small_run: Path, tmp_path: Path) -> None:
    source = exported("onnx", "linear").path
    model = onnx.load(source)
    for each in model.graph.initializer:
        if list(each.dims) == [10]:  # the classifier's bias
            each.CopyFrom(onnx.numpy_helper.from_array(torch.full((10,), torch.nan).numpy(), each.name))
    broken = tmp_path / "broken.onnx"
    onnx.save(model, broken)
    with pytest.raises(UserError, match="expected finite logits, got others"):
        int8._scored(source, broken, run_data(Run(small_run)), False)


def test_a_graph_that_cannot_be_quantised_is_told(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("Incomplete symbolic shape inference\nat node 3")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", refuse)
    with pytest.raises(UserError, match=r"\(Incomplete symbolic shape inference\); export it without"):
        gendd.export(small_run, "onnx", readout="linear", quantize="int8", out=tmp_path / "new" / "s.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_command_needs_the_run(
    digits_run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = gendd.load(digits_run.folder).save(tmp_path / "alone")
    assert main(["export", str(folder), "--to", "onnx", "--quantize", "int8"]) == 2
    assert (
        "expected a run with its training images to calibrate on, found none (no run beside the student)"
        in capsys.readouterr().err
    )
    assert not (folder / "export").exists()
