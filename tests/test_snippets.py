"""The commands and snippets of README and docs, page by page, in a folder with the files they name.

Commands are parsed by the real parser and run; trainings that don't set their length use few images and one
epoch. A comment before a fence marks exceptions: ``<!-- slow: why -->`` is run by ``make test-slow``;
``<!-- needs: what -->`` is only parsed. A fence whose first line is ``# NAME.py`` or ``# NAME.yaml`` is
written to that file.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import gendd
from gendd.cli import main
from gendd.cli.parsing import COMMANDS
from gendd.config import from_dict, keys
from gendd.config.registry import names, settings_type

ROOT = Path(__file__).parents[1]

if not (ROOT / "docs").is_dir():
    pytest.skip("docs/ is not beside tests/", allow_module_level=True)

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
MARKS = ("slow", "needs")
_FENCE = re.compile(r"(?:^<!-- ([^>]*) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# library functions that commands call after parsing
LIBRARY = {
    "gendd.run.execute": ("distill", "train"),
    "gendd.run.fill_cache": ("cache",),
    "gendd.run.evaluate_run": ("evaluate",),
    "gendd.run.profile_run": ("profile",),
    "gendd.run.probe_run": ("probe",),
    "gendd.deploy.predict.predict": ("predict",),
    "gendd.deploy.export.export": ("export",),
    "gendd.deploy.hub.push_to_hub": ("push",),
    "gendd.released.import_released": ("import-released",),
    "gendd.compare.compare": ("compare",),
    "gendd.released.verify.verify": ("verify",),
}
SMALL = [
    "--training.epochs=1",
    "--training.loggers=[csv]",
    "--training.progress=false",
    "--data.train_images=64",
    "--data.workers=0",
    "--overwrite",
]
SMALL_DISTILLED = [
    "--teacher_training.epochs=1",
    "--teacher_training.progress=false",
    "--gendd.head_width=32",
    "--readout.steps=2",
    "--readout.num_samples=1",
]


@dataclass(frozen=True)
class Fence:
    """A fenced block of a page."""

    language: str
    code: str
    mark: str | None
    line: int

    @property
    def file(self) -> str | None:
        """The file that it is."""
        found = re.match(r"# (\S+\.(?:py|yaml))\n", self.code)
        return found[1] if found else None


def fences(page: Path) -> Iterator[Fence]:
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        mark = (found[1] or "").partition(":")[0]
        line = text.count("\n", 0, found.start()) + 1
        yield Fence(found[2], found[3], mark if mark in MARKS else None, line)


def command_lines(code: str) -> Iterator[list[str]]:
    """Yield the arguments of every command of a block, without comments and ellipses."""
    for line in code.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if word != "…"]
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        if words:
            yield words


class ParsedError(Exception):
    """Raised in place of what a command would do."""


def parse(words: list[str]) -> None:
    """Parse a command with the real parser, stopping at its call of the library."""
    assert words[0] in COMMANDS, f"no command {words[0]!r}"
    reached = [name for name, commands in LIBRARY.items() if words[0] in commands]
    with pytest.MonkeyPatch.context() as patch:
        for name in reached:
            home, _, function = name.rpartition(".")
            __import__(home)
            real = getattr(sys.modules[home], function)

            def stand_in(*given: Any, _real: Callable[..., Any] = real, **named: Any) -> Any:
                inspect.signature(_real).bind(*given, **named)
                raise ParsedError

            patch.setattr(name, stand_in)
        # what a page calls a run or a comparison need not be here
        for name in ("runs.check_file", "runs.check_run", "scoring.check_run"):
            patch.setattr(f"gendd.cli.{name}", lambda *given: None)
        if reached:
            with pytest.raises(ParsedError):
                assert main(words) == 0, f"gendd {shlex.join(words)}"
        else:
            assert main(words) == 0, f"gendd {shlex.join(words)}"


def run(words: list[str]) -> None:
    """Run a command; a training uses few images and one epoch unless it sets its length."""
    if words[0] in ("distill", "train", "cache") and "--training.epochs" not in words:
        words = [*words, *SMALL, *([] if words[0] == "train" else SMALL_DISTILLED)]
    assert main(words) == 0, f"gendd {shlex.join(words)}"


def other(words: list[str], runs: bool) -> None:
    """Check a command of another program: the files it names exist; Python files are run."""
    if words[0] == "export":
        os.environ.update(word.split("=", 1) for word in words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"gendd\[(\w+)\]", " ".join(words))) <= set(extras)
    elif words[0] == "python":
        assert Path(words[1]).is_file(), words[1]
        if runs:
            subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True)
    elif words[0] == "source":
        assert words[1] == ".venv/bin/activate"
    else:
        assert not runs, f"{words[0]} is not run here; mark the fence with what it needs"


def check_yaml(fence: Fence) -> None:
    """A configuration or the file of a comparison."""
    from gendd.compare.reading import read_plan
    from gendd.config import RunConfig, extended

    if fence.file is not None:
        with gendd.trusted_code():
            assert read_plan(Path(fence.file)).methods
    else:
        from_dict(extended(yaml.safe_load(fence.code)), RunConfig)


def go_through(page: Path, slow: bool) -> None:
    """Parse and run the fences of a page, those marked slow too if asked to."""
    scope: dict[str, Any] = {"gendd": gendd, "torch": torch, "images": torch.rand(2, 1, 8, 8)}
    if any(fence.language == "python" for fence in fences(page)):
        scope["student"] = gendd.load("runs/first")
    for fence in fences(page):
        runs = fence.mark is None or (slow and fence.mark == "slow")
        where = f"{page.name}:{fence.line}"
        if fence.file is not None:
            Path(fence.file).write_text(fence.code, encoding="utf-8")
        if fence.language == "yaml":
            check_yaml(fence)
        elif fence.language == "python":
            code = compile(fence.code, where, "exec")
            if runs and fence.file is None:
                exec(code, scope)
        elif fence.language == "sh":
            for words in command_lines(fence.code):
                if words[0] != "gendd":
                    other(words, runs)
                elif runs:
                    run(words[1:])
                else:
                    parse(words[1:])
        else:
            assert fence.language == "text", f"{where}: {fence.language} is not known here"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as files in folders of their classes."""
    from gendd.config import DataConfig
    from gendd.data import load_data

    folder = tmp_path_factory.mktemp("pictures")
    data = load_data(DataConfig())
    for part, images, count in (("train", data.train, 120), ("test", data.test, 40)):
        pixels = images.images(range(count))[:, 0].numpy()
        for index, label in enumerate(images.labels[:count].tolist()):
            (folder / part / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index]).save(folder / part / str(label) / f"{index}.png")
    return folder


@pytest.fixture
def place(tmp_path: Path, small_run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the runs and images that pages name."""
    for name in ("first", "mine", "teacher"):
        shutil.copytree(small_run, tmp_path / "runs" / name)
    for name in ("examples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "path/to/images").symlink_to(pictures)
    (tmp_path / "path/to/unlabelled").mkdir()
    files = sorted(pictures.glob("train/*/*.png"))
    for number, file in enumerate(files):
        shutil.copy(file, tmp_path / "path/to/unlabelled" / f"{number}.png")
    (tmp_path / "classes.txt").write_text("".join(f"{number}\n" for number in range(10)))
    for name in ("image.png", "image.jpg"):
        shutil.copy(files[0], tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", "data")
    return tmp_path


def package(name: str) -> bool:
    """Whether a name is a module of gendd."""
    return name.startswith("gendd.") and importlib.util.find_spec(name) is not None


def few_images(distill: Callable[..., Any]) -> Callable[..., Any]:
    """``gendd.distill`` of 64 images for an epoch."""

    @functools.wraps(distill)
    def small(**given: Any) -> Any:
        given["data"] = {"name": given["data"], "train_images": 64}
        short = {"epochs": 1, "loggers": ["csv"], "progress": False}
        more = {"gendd": {"head_width": 32}, "readout": {"steps": 2, "num_samples": 1}}
        return distill(**given, training=short, teacher_training=short, overwrite=True, **more)

    return small


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_shows(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gendd, "distill", few_images(gendd.distill))
    go_through(page, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(fence.mark == "slow" for fence in fences(page))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_what_takes_longer(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gendd, "distill", few_images(gendd.distill))
    go_through(page, slow=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names(page: Path) -> None:
    """Commands and settings in running text exist."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    known = {*keys(), *(key for name in names() for key in keys(settings_type(name), f"{name}."))}
    sections = {key.split(".")[0] for key in known}
    for span in re.findall(r"`([^`\n]+)`", text):
        if re.match(r"gendd \w", span):
            assert span.split()[1] in {*COMMANDS, "COMMAND"}, span
        for key in re.findall(r"--([a-z_]+\.[a-z_]+)", span):
            assert key in known or key.startswith("attention_transfer."), span
        # `training.epochs`, `gendd.contraction 0`; gendd.distill is a function, teacher.py a file
        alone = re.fullmatch(r"([a-z_]+)(\.[a-z_]+)(:? [^=]+)?", span)
        if alone and alone[1] in sections - {"teacher", "student"} and not hasattr(gendd, alone[2][1:]):
            assert alone[1] + alone[2] in known or package(alone[1] + alone[2]), span
