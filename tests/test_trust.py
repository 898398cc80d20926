"""Code named by someone else's folder or file is never run without consent."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, Finished
from PIL import Image
from runs import distil, untimed

import gendd
from gendd.cli import main
from gendd.config import DataConfig
from gendd.data.survey import survey
from gendd.data.tars import find_tars
from gendd.errors import UserError
from gendd.files import check_code
from gendd.methods import GenDD
from gendd.run import Run

Capture = pytest.CaptureFixture[str]
NETWORK = """
from pathlib import Path
Path({marker!r}).touch()
from gendd.models import create_backbone

def net(num_classes, in_channels):
    return create_backbone("cifar/resnet8x0.25", num_classes, in_channels=in_channels).net
"""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that the code creates as soon as it runs."""
    return tmp_path / "was-run"


@pytest.fixture
def stranger(small_run: Path, tmp_path: Path, marker: Path) -> Path:
    """A finished run whose student, method and teacher come from a Python file in its folder."""
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    code = run / "net.py"
    code.write_text(NETWORK.format(marker=str(marker)), encoding="utf-8")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["student"]["name"] = config["teacher"]["name"] = f"{code}:net"
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    described = json.loads((run / "student" / "config.json").read_text(encoding="utf-8"))
    described["backbone"]["name"] = f"{code}:net"
    (run / "student" / "config.json").write_text(json.dumps(described), encoding="utf-8")
    return run


def refused(capsys: Capture, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    said = capsys.readouterr().err
    # lines before the error don't belong to it
    return said.splitlines()[-1]


def test_no_command_runs_the_code_of_a_folder(
    stranger: Path, marker: Path, tmp_path: Path, capsys: Capture
) -> None:
    image = tmp_path / "image.png"
    Image.new("L", (8, 8)).save(image)
    run, out = str(stranger), str(tmp_path / "out")
    commands = [
        ["predict", run, str(image)],
        ["evaluate", run],
        ["probe", run],
        ["export", run, "--to", "safetensors"],
        ["distill", "--teacher", run, "--out", out],
        ["distill", "--student", run, "--out", out],
        ["distill", "--out", run, "--resume"],
        ["distill", "--config", str(stranger / "config.yaml"), "--out", out],
    ]
    for words in commands:
        message = refused(capsys, *words)
        assert "net.py:net', which was not run" in message and "--trust-code" in message, words
    with pytest.raises(UserError, match="which was not run"):
        gendd.load(stranger)
    assert not marker.exists() and not Path(out).exists()


def test_code_runs_where_it_is_trusted_or_named(
    stranger: Path, marker: Path, tmp_path: Path, capsys: Capture
) -> None:
    image = tmp_path / "image.png"
    Image.new("L", (8, 8)).save(image)
    assert main(["predict", str(stranger), str(image), "--trust-code"]) == 0
    assert marker.exists() and "image.png: " in capsys.readouterr().out
    marker.unlink()
    with gendd.trusted_code():
        assert gendd.load(stranger).readouts == ("linear", "mean", "sample")
    with gendd.trusted_code([f"{stranger / 'net.py'}:net"]):
        gendd.load(stranger)
    assert marker.exists()
    with gendd.trusted_code(["other.py:net"]), pytest.raises(UserError, match="which was not run"):
        gendd.load(stranger)


def test_a_comparison_names_no_code_unasked(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "compare.yaml"
    file.write_text("methods: {mine: {method: 'own.py:Mine'}}\n", encoding="utf-8")
    assert "'own.py:Mine', which was not run" in refused(capsys, "compare", str(file), "--dry-run")


@pytest.mark.parametrize("key", ["path", "test_path"])
def test_shell_commands_are_refused(
    key: str, small_run: Path, marker: Path, tmp_path: Path, capsys: Capture
) -> None:
    command = f"pipe:touch {marker}"
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["data"] |= {"name": "webdataset", "path": "shards", key: command}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for words in (["evaluate", str(run)], ["probe", str(run)]):
        assert "pipe:touch" in refused(capsys, *words)
    option = f"--data.{key}={command}"
    words = ["distill", "--data", "webdataset", "--data.path=shards", option, "--out", str(tmp_path / "new")]
    assert "which was not run" in refused(capsys, *words)
    assert not marker.exists()


def test_a_file_whose_name_is_a_command_is_a_file(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pipe:touch was-run;"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "0.jpg")
    with tarfile.open(folder / "0.tar", "w") as tar:
        tar.add(tmp_path / "0.jpg", "0.jpg")
    for value in (folder.name, "*/0.tar"):
        (found,) = find_tars(value, "data.path")
        assert os.path.isabs(found)
        assert len(survey([found], 0)[0]) == 1
    assert not marker.exists()


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_a_checkpoint_that_is_a_program(
    digits_run: object, tmp_path: Path, marker: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    words = ["distill", "--out", str(run), "--student", "cifar/resnet8x0.25", "--method", "supervised"]
    words += ["--training.epochs=1", "--training.progress=false", "--data.train_images=64", "--baselines=[]"]
    assert main(words) == 0
    (run / "metrics.json").unlink()
    (checkpoints,) = run.rglob("checkpoints")
    (checkpoints / "finished.json").unlink()
    last = checkpoints / "last.ckpt"
    last.write_bytes(b"PK\x03\x04 cut short")
    assert "last.ckpt' is damaged, and there is no other" in refused(capsys, *words, "--resume")
    last.write_bytes(pickle.dumps(Bomb(marker)))
    (checkpoints / "last.ckpt.sha256").unlink()
    assert "last.ckpt': expected tensors and plain values" in refused(capsys, *words, "--resume")
    assert not marker.exists()


def pictures(folder: Path, count: int = 3) -> list[Path]:
    """Small pictures of two classes, in ``train/`` and ``test/``."""
    paths = [
        folder / part / name / f"{number}.png"
        for part in ("train", "test")
        for name in ("a", "b")
        for number in range(count)
    ]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return paths


def planted_image(folder: Path, bomb: bytes, marker: Path) -> list[str]:
    pictures(folder)
    (folder / "train" / "a" / "0.png").write_bytes(bomb)
    return ["folder", f"--data.path={folder}"]


def planted_file(folder: Path, bomb: bytes, marker: Path) -> list[str]:
    pictures(folder)
    (folder / "dataset.py").write_text(NETWORK.format(marker=str(marker)), encoding="utf-8")
    (folder / "train" / "a" / "net.pkl").write_bytes(bomb)
    return ["folder", f"--data.path={folder}"]


def planted_list(folder: Path, bomb: bytes, marker: Path) -> list[str]:
    lines = [f"{path} {path.parent.name}" for path in pictures(folder)]
    for number, line in enumerate((f"pipe:touch {marker} a", f"{folder / 'net.py'}:net a")):
        (folder / f"list{number}.txt").write_text("\n".join([*lines, line]), encoding="utf-8")
    return ["list", f"--data.path={folder / 'list0.txt'}", f"--data.test_path={folder / 'list1.txt'}"]


def planted_parquet(folder: Path, bomb: bytes, marker: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [path.read_bytes() for path in pictures(folder)]
    # a type of its own, as pyarrow once unpickled it
    named = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": bomb}
    fields = [pa.field("image", pa.binary(), metadata=named), pa.field("label", pa.int64())]
    labels = pa.array([number % 2 for number in range(len(rows))])
    table = pa.table([pa.array(rows, pa.binary()), labels], pa.schema(fields, metadata={"pandas": bomb}))
    for part in ("train", "test"):
        pq.write_table(table, folder / f"{part}.parquet")
    return [
        "parquet",
        f"--data.path={folder / 'train.parquet'}",
        f"--data.test_path={folder / 'test.parquet'}",
    ]


def planted_tar(folder: Path, bomb: bytes, marker: Path) -> list[str]:
    paths = pictures(folder)
    for part in ("train", "test"):
        (folder / "shards" / part).mkdir(parents=True)
        with tarfile.open(folder / "shards" / part / "0.tar", "w") as tar:
            for number, path in enumerate(path for path in paths if path.parts[-3] == part):
                tar.add(path, f"{number}.png")
                members = {
                    "cls": str(number % 2).encode(),
                    "pyd": bomb,
                    "pickle": bomb,
                    "pth": bomb,
                    "npz": bomb,
                }
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return ["webdataset", f"--data.path={folder / 'shards'}"]


@pytest.mark.parametrize(
    ("plant", "code"),
    [(planted_image, 2), (planted_file, 0), (planted_list, 2), (planted_parquet, 0), (planted_tar, 0)],
)
def test_images_of_a_stranger_run_nothing(
    plant: Callable[[Path, bytes, Path], list[str]],
    code: int,
    small_run: Path,
    tmp_path: Path,
    marker: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GENDD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    name, *words = plant(tmp_path / "images", pickle.dumps(Bomb(marker)), marker)
    quick = [
        "--training.epochs=1",
        "--training.progress=false",
        "--training.loggers=[]",
        "--readout.name=linear",
    ]
    words = ["train", "--student=cifar/resnet8x0.25", f"--data.name={name}", *words, *quick]
    assert main([*words, f"--out={tmp_path / 'run'}"]) in (0, 2)
    assert main(["predict", str(small_run), str(tmp_path / "images")]) in (0, 2)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".bin", ".ckpt"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_weights_that_are_a_program(
    role: str, suffix: str, tmp_path: Path, marker: Path, capsys: Capture
) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(pickle.dumps(Bomb(marker)))
    networks = ["--teacher=cifar/resnet8x0.5", "--student=cifar/resnet8x0.25", f"--{role}.weights={file}"]
    assert str(file) in refused(capsys, "distill", "--data=digits", *networks, f"--out={tmp_path / 'run'}")
    assert not marker.exists()


def test_a_repository_of_the_hub_runs_nothing(
    stranger: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *args, **options: str(stranger / "student")
    )
    image = tmp_path / "image.png"
    Image.new("L", (8, 8)).save(image)
    assert "which was not run" in refused(capsys, "predict", "someone/student", str(image))
    with pytest.raises(UserError, match="which was not run"):
        gendd.load("someone/student")
    assert not marker.exists()


def test_a_cache_that_someone_wrote_into_runs_nothing(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("GENDD_CACHE", str(cache))
    words = ["--baselines=[]", "--training.cache_teacher=1"]
    distil(tmp_path / "first", *words)
    planted = [path for path in cache.rglob("*") if path.is_file()]
    assert {path.suffix for path in planted} >= {".npy", ".safetensors", ".json"}
    for path in planted:
        path.write_bytes(pickle.dumps(Bomb(marker)))
    code = main(["distill", "--out", str(tmp_path / "second"), *TINY, *words])
    assert code in (0, 2) and not marker.exists()


def test_a_file_that_ends_the_process_is_a_mistake(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "net.py"
    file.write_text("def net(num_classes):\n    raise SystemExit(0)\n", encoding="utf-8")
    words = ["train", "--student", f"{file}:net", "--out", str(tmp_path / "run")]
    assert "expected a function that returns a network; SystemExit: 0" in refused(capsys, *words)
    file.write_text("raise SystemExit(0)\n", encoding="utf-8")
    assert "expected a Python file that can be imported; SystemExit: 0" in refused(capsys, *words)


def test_an_image_that_pillow_would_give_to_another_program(tmp_path: Path) -> None:
    from gendd.data.decoding import decode

    eps = tmp_path / "image.eps"
    Image.new("RGB", (8, 8)).save(eps)
    with pytest.raises(UserError, match="Expected an image, got here"):
        decode(eps.read_bytes(), "here", 3)


def test_plain_values_are_no_code() -> None:
    check_code({"name": "cifar/resnet20", "path": "folder/of.py/images", "n": [1, None, "a.py"]}, "here")
    assert DataConfig(path="pipe:cat a.tar").path is not None  # given in the caller's own Python code


def test_nothing_of_slurm_s_is_written_or_gone_on_from(
    digits_run: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {
        "NTASKS": "1",
        "JOB_NAME": "job",
        "JOB_ID": "1",
        "PROCID": "0",
        "LOCALID": "0",
        "NODEID": "0",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.chdir(tmp_path)
    held = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    forward, steps = GenDD.forward, 0

    def warned(self: GenDD, *args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        os.kill(os.getpid(), signal.SIGUSR1)
        if steps == 3:
            raise KeyboardInterrupt
        return forward(self, *args, **options)

    monkeypatch.setattr(GenDD, "forward", warned)
    try:
        distil(tmp_path / "run", "--baselines=[]", code=130)
        assert not list(tmp_path.rglob("hpc_ckpt*"))
        for folder in (tmp_path, tmp_path / "run", tmp_path / "run" / "checkpoints"):
            folder.mkdir(exist_ok=True)
            (folder / "hpc_ckpt_1.ckpt").write_bytes(pickle.dumps({"state_dict": {}}))
        assert main(["distill", "--resume", "--out", str(tmp_path / "run")]) == 0
    finally:
        signal.signal(signal.SIGUSR1, held)
    first = Run.open(digits_run.folder).metrics
    assert untimed(Run.open(tmp_path / "run").metrics["student"]) == untimed(first["student"])
