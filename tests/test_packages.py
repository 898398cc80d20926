"""What is published: wheel and sdist are well-formed, and the wheel works where it alone is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
    # what gendd needs is that of the environment of the tests; gendd itself is the wheel
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
