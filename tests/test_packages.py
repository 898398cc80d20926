"""Packaging and installation: wheel and sdist, the container image, and the ``make`` setup."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from pathlib import Path

import pytest

from gendd.cli import main

ROOT = Path(__file__).parents[1]
INDEX = "https://download.pytorch.org/whl/"

whole = pytest.mark.skipif(not (ROOT / "Makefile").is_file(), reason="Makefile is not beside tests/")


def call(*words: str | Path, cwd: Path = ROOT) -> str:
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
    return folder


@pytest.mark.slow
def test_the_packages_are_well_formed(built: Path) -> None:
    files = sorted(built.iterdir())
    assert [file.name.rpartition("-")[2] for file in files] == ["any.whl", files[1].name.rpartition("-")[2]]
    assert "FAILED" not in call(sys.executable, "-m", "twine", "check", "--strict", *files)
    with tarfile.open(files[1]) as packed:
        names = {Path(*Path(name).parts[1:]).as_posix() for name in packed.getnames()}
    assert {"README.md", "LICENSE", "tests/conftest.py", "src/gendd/released/reference.npz"} <= names


@pytest.mark.slow
def test_the_wheel_works_alone(built: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    # dependencies come from the test environment; gendd itself is installed from the wheel
    home = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    needed = sysconfig.get_path("purelib")
    (home / "needed.pth").write_text(f"import site; site.addsitedir({needed!r})\n", encoding="utf-8")
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", next(built.glob("*.whl")))
    where = call(python, "-P", "-c", "import gendd; print(gendd.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(home)
    gendd = python.with_name("gendd")
    assert "imagenet/resnet34_resnet18" in call(gendd, "recipes", cwd=tmp_path)
    assert call(gendd, "verify", cwd=tmp_path).endswith("agrees\n")
    settings = ("--data.train_images=64", "--training.epochs=1", "--teacher_training.epochs=1")
    call(gendd, "distill", "--out", "run", *settings, cwd=tmp_path)
    assert (tmp_path / "run" / "report.html").is_file()


@whole
def test_the_image_is_made_of_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert [step for step, _ in steps[:3]] == ["ARG", "FROM", "ARG"]
    arguments = dict(value.split("=") for step, value in steps if step == "ARG")
    assert arguments == {"BASE": "python:3.12-slim", "TORCH": "cpu"} and steps[1][1] == "${BASE}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Programming Language :: Python :: {arguments['BASE'][7:11]}" in project["classifiers"]
    runs = [shlex.split(value) for step, value in steps if step == "RUN"]
    assert runs[0][:2] == runs[1][:2] == ["pip", "install"]
    assert runs[0][-1] == INDEX + "${TORCH}" and "--build-arg TORCH=cu126" in text
    (extras,) = re.findall(r"\.\[(.*)\]", runs[1][-1])
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    copied = [name for step, value in steps if step == "COPY" for name in value.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    # the files that the build reads are copied
    needed = [project["readme"], "LICENSE", "pyproject.toml", "src"]
    assert set(needed) <= set(copied)
    (entry,), (words,) = (json.loads(value) for step, value in steps if step in ("ENTRYPOINT", "CMD"))
    assert project["scripts"][entry] == "gendd.cli:main"
    assert main([words]) == 0 and capsys.readouterr().out.startswith("usage: gendd")


STAND_IN = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *urllib*) exit {reached};; esac
"""


@whole
@pytest.mark.skipif(shutil.which("make") is None or sys.platform != "linux", reason="make, on Linux")
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("gpu", "reached", "light"), [(False, True, True), (False, False, False), (True, True, False)]
)
def test_make_takes_the_light_wheels_where_there_is_no_gpu(
    gpu: bool, reached: bool, light: bool, tmp_path: Path
) -> None:
    log, tools = tmp_path / "log", tmp_path / "tools"
    for python in (tmp_path / "python", tmp_path / "venv" / "bin" / "python"):
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(STAND_IN.format(log=log, reached=int(not reached)), encoding="utf-8")
        python.chmod(0o755)
    tools.mkdir()
    for name in ("sh", "uname", "grep", "touch", *(["true"] if gpu else [])):
        found = shutil.which(name)
        assert found is not None
        (tools / ("nvidia-smi" if name == "true" else name)).symlink_to(found)
    make = shutil.which("make")
    assert make is not None
    words = [make, "--directory", ROOT, "setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={tmp_path / 'python'}"]
    done = subprocess.run([*map(str, words)], env={"PATH": str(tools)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installed = [line for line in log.read_text(encoding="utf-8").splitlines() if "pip install" in line]
    assert any(line.endswith(f"torch torchvision --index-url {INDEX}cpu") for line in installed) == light
    assert installed[-1].endswith("--editable .") and (tmp_path / "venv" / ".installed").is_file()


@whole
def test_the_readme_tells_of_the_light_wheels() -> None:
    command = f"pip install torch torchvision --index-url {INDEX}cpu"
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
