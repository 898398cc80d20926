from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import bare, make_student
from torch import Tensor, nn

import gendd
from gendd.cli import main
from gendd.config import ReadoutName
from gendd.deploy import deploy
from gendd.deploy.export import Exported, Format, check, exporter, to_torch
from gendd.deploy.export.check import deviation
from gendd.deploy.export.source import Network, Source
from gendd.errors import UserError
from gendd.run import Run
from gendd.student import Student

ExportOf = Callable[[str, ReadoutName], Exported]
READOUTS: tuple[ReadoutName, ...] = ("linear", "mean", "sample")


def digits(count: int) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))


def student_of(run: Path) -> Student:
    student = gendd.load(run)
    student.settings = dataclasses.replace(student.settings, steps=2, sampler="dpm-solver")
    return student


def sized(student: Student, size: int = 8) -> Student:
    student.info["image_size"] = size
    return student


def run_file(result: Exported, images: Tensor) -> Tensor:
    """Logits of an exported file, run without what exported it."""
    if result.format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    if result.format == "torch-export":
        return torch.as_tensor(torch.export.load(result.path).module()(images))
    return torch.as_tensor(deploy(gendd.load(result.path), seed=3)(images))


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("to", ["onnx", "torch-export", "safetensors"])
def test_a_file_gives_the_student_s_logits_for_any_number_of_images(
    to: str, readout: ReadoutName, exported: ExportOf, small_run: Path
) -> None:
    result = exported(to, readout)
    suffix = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ""}[to]
    assert result.path == small_run / "export" / f"student-{readout}{suffix}"
    assert result.readout == readout and result.checked_on == "64 test images" and result.notes == ()
    assert 0 <= result.deviation < 1e-5
    deployed = deploy(student_of(small_run), readout, seed=3)
    for count in (1, 7):
        expected = deployed(digits(count))
        found = run_file(result, digits(count))
        assert found.shape == (count, 10) and found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    files = [result.path] if suffix else list(result.path.iterdir())
    assert result.bytes == sum(file.stat().st_size for file in files)
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in files)


def test_what_a_file_says_of_itself(exported: ExportOf, small_run: Path) -> None:
    import onnx

    result = exported("onnx", "sample")
    model = onnx.load(result.path)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["class_names"]) == gendd.load(small_run).class_names()
    assert (told["image_size"], told["channels"], told["framing"]) == ("8", "1", "1.0")
    assert (told["readout"], told["seed"], told["network"]) == ("sample", "3", "cifar/resnet8x0.25")
    assert told["input"].startswith("images: float32 (B, 1, 8, 8) in [0, 1], gray")
    assert next(entry.version for entry in model.opset_import if entry.domain == "") >= 17
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": ["batch", 1, 8, 8], "logits": ["batch", 10]}
    extra = {to_torch.METADATA: ""}
    torch.export.load(exported("torch-export", "sample").path, extra_files=extra)
    assert json.loads(extra[to_torch.METADATA]) == told
    assert "seed" not in {entry.key for entry in onnx.load(exported("onnx", "mean").path).metadata_props}


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_a_file_tells_nothing_of_the_machine_it_was_made_on(to: str, exported: ExportOf) -> None:
    content = exported(to, "mean").path.read_bytes()
    for place in (str(Path(torch.__file__).parent), str(Path(exporter.__file__).parents[1])):
        assert place.encode() not in content


def test_the_folder_of_the_linear_readout_has_no_head(exported: ExportOf, small_run: Path) -> None:
    folder = exported("safetensors", "linear").path
    loaded = gendd.load(folder)
    assert loaded.generator is None and loaded.readouts == ("linear",)
    with pytest.raises(UserError, match=r"has linear \(it has no generator\), got 'sample'"):
        loaded.readout = "sample"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| linear (default) |" in card and "| mean" not in card and "| teacher |" in card
    whole = exported("safetensors", "sample").path
    assert gendd.load(whole).settings == dataclasses.replace(student_of(small_run).settings, name="sample")


@pytest.mark.parametrize("settings", [{"sampler": "ddpm", "guidance": 2.0}, {"sampler": "ddim", "eta": 0.5}])
def test_samplers_with_noise_are_exported_with_it(settings: dict[str, Any], tmp_path: Path) -> None:
    student = sized(make_student())
    student.settings = dataclasses.replace(
        student.settings, name="sample", steps=2, num_samples=2, **settings
    )
    result = gendd.export(student, "torch-export", out=tmp_path / "s.pt2", seed=3)
    images = torch.rand(3, 3, 8, 8)
    expected = deploy(student, seed=3)(images)
    torch.testing.assert_close(run_file(result, images), expected, rtol=1e-5, atol=1e-5)
    assert (deploy(student, seed=4)(images) - expected).abs().max() > 1e-3
    # tracing has no effect on the student
    assert not torch.equal(student(images), student(images))


def test_many_steps_are_remarked_upon() -> None:
    assert to_torch.check_steps(to_torch.LARGE) is None
    assert "31 sampling steps are as many copies of the head" in str(to_torch.check_steps(to_torch.LARGE + 1))


# --- where from, where to ---


@pytest.mark.parametrize("kind", ["run", "student folder", "."])
def test_a_run_is_found_from_its_student_too(
    kind: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == ".":
        monkeypatch.chdir(small_run / "student")
    source = {"run": Run(small_run), "student folder": small_run / "student", ".": "."}[kind]
    result = gendd.export(source, "safetensors", readout="linear", out=tmp_path / "there")
    assert result.path == tmp_path / "there" and result.checked_on == "64 test images"


def test_a_student_s_folder_alone(small_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    shutil.copytree(small_run / "student", folder)
    (folder / "README.md").unlink()
    result = gendd.export(folder, "safetensors", readout="linear")
    assert result.path == folder / "export" / "student-linear"
    assert result.checked_on == "16 random images (no run beside the student)"
    assert {entry.name for entry in result.path.iterdir()} == {"config.json", "model.safetensors"}


def test_a_student_of_python_stays_as_it_is(tmp_path: Path) -> None:
    student = sized(make_student()).train()
    settings = student.settings
    result = gendd.export(student, "safetensors", readout="sample", steps=4, out=tmp_path / "s")
    assert student.training and student.backbone.training and student.settings == settings
    assert gendd.load(result.path).settings.steps == 4
    with pytest.raises(UserError, match="expected --out for a student without a folder of its own"):
        gendd.export(student, "safetensors")


def test_a_student_of_the_hub_needs_a_place(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(small_run / "student"))
    with pytest.raises(UserError, match="expected --out"):
        gendd.export("someone/student", "safetensors")
    assert gendd.export("someone/student", "safetensors", out=tmp_path / "s").readout == "mean"


def test_a_network_made_in_python_is_given_again(tmp_path: Path) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )

    backbone = gendd.wrap(network(), in_channels=1, input_size=8)
    student = Student(backbone, info={"image_size": 8}).eval()
    folder = student.save(tmp_path / "saved")
    for to in ("torch-export", "safetensors"):
        result = gendd.export(folder, to, backbone=network())
        assert result.deviation < 1e-5
    images = torch.rand(5, 1, 8, 8)
    found = torch.export.load(folder / "export" / "student-linear.pt2").module()(images)
    torch.testing.assert_close(found, student(images))


def test_nothing_is_replaced_unless_asked(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "there"
    gendd.export(small_run, "safetensors", readout="mean", out=out)
    with pytest.raises(UserError, match=r"there' exists: give another --out, or --overwrite"):
        gendd.export(small_run, "safetensors", readout="linear", out=out)
    assert gendd.load(out).readout == "mean"
    gendd.export(small_run, "safetensors", readout="linear", out=out, overwrite=True)
    assert gendd.load(out).readouts == ("linear",)
    (out / "mine.txt").touch()
    with pytest.raises(UserError, match=r"expected an exported student alone in .* found mine\.txt beside"):
        gendd.export(small_run, "safetensors", out=out, overwrite=True)
    assert {entry.name for entry in tmp_path.iterdir()} == {"there"} and (out / "mine.txt").is_file()


def test_an_export_never_replaces_the_student_it_is_made_of(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run, ignore=shutil.ignore_patterns("export"))
    before = {file.name: file.read_bytes() for file in (run / "student").iterdir()}
    for source, out in ((run, run / "student"), (run, run), (run / "student", run / "student")):
        with pytest.raises(UserError, match="expected a path other than that of the exported student"):
            gendd.export(source, "safetensors", readout="linear", out=out, overwrite=True)
    assert {file.name: file.read_bytes() for file in (run / "student").iterdir()} == before
    home = timm_student("test_resnet").save(tmp_path / "timm")
    weights = (home / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"expected a path other .* got '.*model\.safetensors'"):
        gendd.export(home, "timm", out=home / "model.safetensors", overwrite=True)
    assert (home / "model.safetensors").read_bytes() == weights


def test_a_card_has_no_figures_of_another_sampler(small_run: Path, tmp_path: Path) -> None:
    same, other = (
        gendd.export(small_run, "safetensors", readout="sample", steps=steps, out=tmp_path / str(steps))
        for steps in (gendd.load(small_run).settings.steps, 3)
    )
    assert "| sample (default) |" in (same.path / "README.md").read_text(encoding="utf-8")
    card = (other.path / "README.md").read_text(encoding="utf-8")
    assert "| sample" not in card and "| mean |" in card


def test_a_folder_is_a_place_for_a_file(small_run: Path, tmp_path: Path) -> None:
    result = gendd.export(small_run, "torch-export", readout="linear", out=tmp_path)
    assert result.path == tmp_path / "student-linear.pt2"


# --- checked ---


def test_deviation_is_in_units_of_the_largest_logit() -> None:
    expected = torch.tensor([[1.0, -4.0], [2.0, 0.0]])
    found = expected + torch.tensor([[0.0, 0.1], [-0.2, 0.0]])
    assert deviation(found, expected) == pytest.approx(0.05)
    assert deviation(100 * found, 100 * expected) == pytest.approx(0.05)
    assert deviation(found[:1], expected) == float("inf")
    assert not deviation(torch.full((2, 2), float("nan")), expected) <= 1


@pytest.mark.parametrize("error", [3e-4, float("nan")])
def test_a_file_that_deviates_is_not_kept(error: float, tmp_path: Path) -> None:
    def write(source: Source, path: Path) -> Network:
        path.write_bytes(b"something")
        return lambda images: source.deployed(images) + error * source.deployed(images).abs().max()

    own = Format("torch-export", ".pt2", write)
    with pytest.raises(UserError, match=r"to 0\.0001 of the largest, got a deviation of (nan|[3-6]\.)"):
        gendd.export(sized(make_student()), own, out=tmp_path / "new" / "s.pt2")
    assert not (tmp_path / "new").exists()


OWN_FORMAT = """
import torch
from gendd.deploy.export import Format

def write(source, path):
    torch.save(source.deployed, path)
    return torch.load(path, weights_only=False)

PICKLE = Format("pickle", ".pt", write)
"""


def test_a_format_of_one_s_own_is_one_file(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN_FORMAT, encoding="utf-8")
    out = tmp_path / "student.pt"
    words = ["export", str(small_run), "--readout", "mean", "--out", str(out)]
    assert main([*words, "--to", f"{file}:PICKLE"]) == 0
    assert "pickle, readout mean" in capsys.readouterr().out
    found = torch.load(out, weights_only=False)(digits(3))
    assert torch.equal(found, deploy(student_of(small_run), "mean")(digits(3)))
    assert main([*words, "--to", f"{file}:PICKEL"]) == 2
    assert "a gendd.deploy.export.Format 'PICKEL'" in capsys.readouterr().err


def test_the_images_of_the_check_are_random_where_the_run_s_are_gone(small_run: Path, tmp_path: Path) -> None:
    folder = moved(small_run, tmp_path, {"name": "folder", "path": "nowhere/at/all"})
    result = gendd.export(folder, "safetensors", readout="linear")
    assert result.checked_on.startswith("16 random images (the run's are not there: ")
    with pytest.raises(UserError, match=r"to calibrate on, found none \(the run's are not there: .*nowhere"):
        gendd.export(folder, "onnx", quantize="int8")
    # an imported checkpoint's run may name other images than it was trained on
    folder = moved(small_run, tmp_path / "other", {"name": "digits", "image_size": 12})
    result = gendd.export(folder, "safetensors", readout="linear")
    assert result.checked_on == "16 random images (the run's are of another shape)"
    with pytest.raises(UserError, match=r"to calibrate on, found none \(the run's are of another shape\)"):
        gendd.export(folder, "onnx", quantize="int8")


def moved(run: Path, folder: Path, data: dict[str, Any]) -> Path:
    shutil.copytree(run / "student", folder / "student")
    shutil.copy(run / "metrics.json", folder / "metrics.json")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["data"] |= data
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def test_images_are_spread_over_the_test_set(small_run: Path) -> None:
    student = sized(gendd.load(small_run))
    source = Source(student, deploy(student, "linear"), Run(small_run), 8, 0)
    images, what = check.images_of(source, 5)
    assert not isinstance(source.data, str)
    test = source.data.test
    picked = torch.linspace(0, len(test) - 1, 5).round().long()
    assert what == "5 test images"
    assert torch.equal(images, test.images(picked).float() / 255)


# --- what can't be ---


class Deciding(nn.Module):
    """A network with data-dependent control flow, which no graph can express."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.flatten(1) if float(x.sum()) > 0 else -x.flatten(1))
        return out


def test_a_network_that_cannot_be_traced(tmp_path: Path) -> None:
    student = Student(gendd.wrap(Deciding(), in_channels=1, input_size=8), info={"image_size": 8})
    with pytest.raises(
        UserError, match=r"expected a network that torch\.export can trace, got module/Deciding \("
    ) as caught:
        gendd.export(student, "torch-export", out=tmp_path / "s.pt2")
    assert "\n" not in str(caught.value) and "export it to safetensors" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"to": "onyx"}, r"expected one of .*, or path/to/file.py:NAME, got 'onyx'\. Did you mean 'onnx'\?"),
        ({"quantize": "int4", "to": "onnx"}, "expected quantize int8 or none, got 'int4'"),
        ({"quantize": "int8"}, "expected format onnx for quantize int8, got safetensors"),
        ({"calibration": 0}, "expected a positive number of calibration images, got 0"),
        ({"sampler": "dimm", "readout": "sample"}, r"known sampler, got 'dimm'\. Did you mean 'ddim'\?"),
        ({"steps": 3}, "expected readout sample for --steps, got 'mean'"),
        ({"steps": 3, "sampler": "ddim", "readout": "linear"}, "for --steps and --sampler, got 'linear'"),
        ({"readout": "maen"}, r"got 'maen'\. Did you mean 'mean'\?"),
        ({"to": "torch-export"}, r"--out: expected a file name that ends in \.pt2 for torch-export, got "),
        ({"out": "{file}"}, "--out: expected a folder for safetensors, got the file "),
        ({"out": "{file}/below"}, r"--out: expected a place to write to, got .*below' \(.+\); give another"),
        ({"to": "timm"}, r"expected a student timm/NAME, got cifar/resnet8x0\.5; export it to onnx, torch"),
        (
            {"to": "onnx", "out": "{folder}/s.onnx", "readout": "sample", "steps": 201, "timesteps": 300},
            "at most 200 sampling steps, .* got 201; give --steps 10 --sampler dpm-solver, or --readout mean",
        ),
        (
            {"quantize": "int8", "to": "onnx", "out": "{folder}/s.onnx"},
            r"calibrate on, found none \(no run beside",
        ),
    ],
)
def test_what_cannot_be_is_told_in_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    given = {"to": "safetensors", "out": "{folder}/s", **options}
    given["out"] = given["out"].format(file=file, folder=tmp_path)
    given.pop("timesteps", None)
    with pytest.raises(UserError, match=message) as caught:
        gendd.export(sized(make_student()), **given)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_students_that_cannot_be_exported(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a student that classifies, .* use its embed\(images\)"):
        gendd.export(bare(), "onnx", out=tmp_path / "s.onnx")
    student = make_student()
    del student.info["image_size"]
    with pytest.raises(UserError, match=r"side of the images in the student \(info\.image_size\)"):
        gendd.export(student, "safetensors", out=tmp_path / "s")
    with pytest.raises(UserError, match="this student has linear"):
        gendd.export(make_student(generative=False), "safetensors", readout="mean", out=tmp_path / "s")
    folder = make_student().save(tmp_path / "saved")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["info"] = {}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"images in .*saved/config\.json \(info\.image_size\), found none"):
        gendd.export(folder, "safetensors")
    run = moved(small_run, tmp_path / "run", {"name": "digits"})
    file = run / "student" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    del config["info"]["image_size"]
    file.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"images in .*run/student/config\.json \(info\.image_size\)"):
        gendd.export(run, "safetensors")
    # the size in its config.json
    config["info"]["image_size"] = 8
    file.write_text(json.dumps(config), encoding="utf-8")
    assert gendd.export(run, "safetensors").path.exists()


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"onnx needs {missing}: pip install 'gendd\[export\]'"):
        gendd.export(sized(make_student()), "onnx", out=tmp_path / "s.onnx")


# --- timm ---


def timm_student(name: str, **options: Any) -> Student:
    torch.manual_seed(0)
    backbone = gendd.create_backbone(f"timm/{name}", 5, **options)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean)
    return sized(Student(backbone).eval(), 32)


@pytest.mark.parametrize(
    "name, options, seen",
    [
        ("test_resnet", {}, (3, 32, 32)),
        ("test_resnet.r160_in1k", {"in_channels": 1, "mean": [0.3], "std": [0.2]}, (1, 32, 32)),
        ("test_vit", {"in_channels": 1, "channels": 3, "input_size": 16}, (3, 16, 16)),
    ],
)
def test_timm_loads_its_own_networks(
    name: str, options: dict[str, Any], seen: tuple[int, int, int], tmp_path: Path
) -> None:
    import timm
    from timm.data.config import resolve_data_config

    student = timm_student(name, **options)
    result = gendd.export(student, "timm", out=tmp_path / "s.safetensors")
    (call,) = result.notes
    assert call.startswith(f"timm.create_model('{name}', checkpoint_path='{result.path}', num_classes=5")
    assert result.readout == "linear" and str(result).endswith(call)
    network = eval(call, {"timm": timm}).eval()
    settings = resolve_data_config(model=network)  # type: ignore[no-untyped-call]
    assert settings["input_size"] == seen
    images = torch.rand(3, student.backbone.in_channels, 32, 32)
    if seen[1] != 32:
        images = torch.rand(3, student.backbone.in_channels, *seen[1:])
    grid = (1, seen[0], 1, 1)
    mean, std = (torch.tensor(settings[key]).reshape(grid) for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(network((images - mean) / std), student(images), rtol=1e-4, atol=1e-5)


def test_what_timm_cannot_build(tmp_path: Path) -> None:
    student = timm_student("test_resnet")
    with pytest.raises(UserError, match=r"timm: expected readout linear, .* got 'mean'; leave it out, or"):
        gendd.export(student, "timm", readout="mean", out=tmp_path / "s.safetensors")
    student.backbone.net.more = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"that timm builds, got timm/test_resnet changed \(.*more"):
        gendd.export(student, "timm", out=tmp_path / "s.safetensors")
    assert list(tmp_path.iterdir()) == []


# --- the command ---


def test_the_command_exports_and_says_what(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(small_run), "--to", "torch-export", "--readout", "linear"]
    assert main([*words, "--out", str(tmp_path / "s.pt2")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{tmp_path / 's.pt2'}   torch-export, readout linear, 0.")
    assert out[1].startswith("largest deviation from PyTorch ") and out[1].endswith(" on 64 test images")
    assert main([*words, "--out", str(tmp_path / "s.pt2")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["export", str(small_run)]) == 2
    assert "--to. See: gendd export --help" in capsys.readouterr().err


WITHOUT_HEAD = r"Readout: this student has linear \(it has no generator\), got '(mean|sample)'"


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize(
    "words, message",
    [
        ("export {headless} --to onnx --readout mean --out {out}/s.onnx", WITHOUT_HEAD),
        ("export {headless} --to torch-export --readout sample --out {out}/s.pt2", WITHOUT_HEAD),
        ("export {headless} --to safetensors --readout sample --steps 2 --out {out}/s", WITHOUT_HEAD),
        (
            "export {timm} --to timm --readout sample --out {out}/s.safetensors",
            "timm: expected readout",
        ),
        ("export {timm} --to timm --readout mean --out {out}/s.safetensors", "timm: expected readout"),
        ("export {headless} --to timm --out {out}/s.safetensors", "timm: expected a student timm/NAME"),
        ("export {headless} --to onyx --out {out}/s.onnx", "or path/to/file.py:NAME, got 'onyx'"),
        ("export {headless} --to onnx --out {out}/s.pt2", r"--out: expected a file name that ends in \.onnx"),
        ("export {headless} --to onnx --out {out}/file/s.onnx", "--out: expected a place to write to"),
        ("export {headless} --to safetensors --out {out}/file", "--out: expected a folder for safetensors"),
        ("export {headless} --to safetensors --seed one", "--seed: invalid int value"),
        ("predict {headless} {out}/digit.png --uncertainty 4", "generator"),
    ],
)
def test_the_command_s_errors_are_one_line(
    place: str,
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    homes = {"headless": make_student(generative=False), "timm": timm_student("test_resnet")}
    named = {name: str(sized(student).save(tmp_path / name)) for name, student in homes.items()}
    if place == "hub":
        monkeypatch.setattr(
            "huggingface_hub.snapshot_download", lambda name, **k: named[name.removeprefix("someone/")]
        )
    sources = {name: f"someone/{name}" for name in homes} if place == "hub" else named
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").touch()
    assert main(words.format(**sources, out=out).split()) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("gendd: ") and said.err.count("\n") == 1
    assert re.search(message, said.err)
    assert [entry.name for entry in out.iterdir()] == ["file"]


def test_a_student_of_the_hub_without_a_head_generates_nothing(
    exported: ExportOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported("safetensors", "linear").path
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: str(folder))
    student = gendd.load("someone/student")
    for ask in (student.generate, student.embed, lambda images: student.predict(images, 4)):
        with pytest.raises(UserError, match="generator"):
            ask(digits(2))
    for readout in ("mean", "sample"):
        with pytest.raises(UserError, match=WITHOUT_HEAD):
            student.readout = readout


@pytest.mark.parametrize("more", [[], ["--quantize", "int8"]])
def test_the_command_names_a_missing_package(
    more: list[str], small_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(small_run), "--to", "onnx", *more]) == 2
    said = "gendd: Export to onnx needs onnxruntime: pip install 'gendd[export]'\n"
    assert capsys.readouterr().err == said


def test_a_package_that_cannot_be_imported_is_named(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "onnxruntime.py").write_text("raise ImportError('libcudart.so.12:\\ncannot open')\n")
    monkeypatch.syspath_prepend(str(broken))
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert main(["export", str(small_run), "--to", "onnx"]) == 2
    assert capsys.readouterr().err == (
        "gendd: Export to onnx needs onnxruntime, which can't be imported (libcudart.so.12: cannot open): "
        "pip install --force-reinstall 'gendd[export]'\n"
    )


@pytest.mark.parametrize("seed", ["-1", str(2**63)])
def test_a_seed_out_of_range_is_refused(
    seed: str, small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(small_run), "--to", "torch-export", "--readout", "sample", "--seed", seed]
    assert main(words) == 2
    assert f"Export: expected a seed from 0 to 2**63 - 1, got {seed}." in capsys.readouterr().err


def test_a_run_with_exports_is_replaced_as_a_whole(
    small_run: Path, exported: ExportOf, tmp_path: Path
) -> None:
    from gendd.run.output import _check_replaceable

    exported("safetensors", "linear")
    _check_replaceable(small_run, Run(small_run).config)
