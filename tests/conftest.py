"""Shared fixtures; above all a tiny finished run on digits, made once through the command line."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from gendd.config import DataConfig, ReadoutName
    from gendd.deploy.export import Exported

# before torch is imported, so that sums have the same order here and in processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
# a shell that runs the tests in the background ignores Ctrl-C, nohup SIGHUP, and child processes inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

TINY = [
    "--teacher.name=cifar/resnet8x0.5",
    "--student.name=cifar/resnet8x0.25",
    "--data.train_images=200",
    "--data.validation_images=all",
    "--data.batch_size=32",
    "--teacher_training.epochs=4",
    "--teacher_training.lr=0.02",
    "--teacher_training.precision=fp32",
    "--teacher_training.loggers=[csv]",
    "--teacher_training.progress=false",
    "--training.epochs=3",
    "--training.lr=0.02",
    "--training.precision=fp32",
    "--training.loggers=[csv]",
    "--training.progress=false",
    "--gendd.head_width=32",
    "--gendd.repeats=2",
    "--gendd.token_width=32",
    "--readout.name=mean",
    "--readout.num_samples=2",
    "--readout.steps=4",
]


# the longest tests start first, so that no worker is left with one at the end
LONG = (
    *("test_processes.py", "test_cli.py", "test_export.py", "test_compare_runs.py", "test_shards.py"),
    *("test_teacher_cache.py", "test_snippets.py", "test_other_teachers.py", "test_resume.py"),
    *("test_recipe_runs.py", "test_probing.py", "test_released.py", "test_training.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@dataclass(frozen=True)
class Finished:
    """A run finished by ``gendd distill``, and its output."""

    folder: Path
    code: int
    out: str
    err: str


def load_fails(config: DataConfig, *words: str) -> None:
    """Assert that loading the images fails with a one-line error that contains the words."""
    from gendd.data import load_data
    from gendd.errors import UserError

    with pytest.raises(UserError) as caught:
        load_data(config)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread in PyTorch."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Cache trained teachers for the session, separately from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENDD_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """GenDD with all of its baselines, including the training of the teacher."""
    from gendd.cli import main

    folder = tmp_path_factory.mktemp("runs") / "digits"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        # another test of this worker may have had the same teacher
        words = ["--baselines=[supervised,kl,kd]", "--fresh-teacher"]
        code = main(["distill", "--out", str(folder), *TINY, *words])
    return Finished(folder, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def small_run(digits_run: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of that run without its training, to write into."""
    folder = tmp_path_factory.mktemp("small") / "digits"
    shutil.copytree(digits_run.folder / "student", folder / "student")
    for name in ("config.yaml", "metrics.json"):
        shutil.copy(digits_run.folder / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def exported(small_run: Path) -> Callable[[str, ReadoutName], Exported]:
    """Export a readout of the run, once for all tests; with two steps of dpm-solver for ``sample``."""
    from gendd.deploy.export import export

    made: dict[tuple[str, ReadoutName], Exported] = {}

    def get(to: str, readout: ReadoutName) -> Exported:
        if (to, readout) not in made:
            fewer: dict[str, Any] = {"steps": 2, "sampler": "dpm-solver"} if readout == "sample" else {}
            made[to, readout] = export(small_run, to, readout=readout, seed=3, **fewer)
        return made[to, readout]

    return get


@pytest.fixture(autouse=True)
def _no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing reports, which takes longer than the runs, except in fixtures and marked tests."""
    if request.node.get_closest_marker("report") is None:
        monkeypatch.setattr("gendd.report.write_report", lambda content, path: None)


@pytest.fixture
def digit_files(tmp_path: Path) -> Callable[[int], list[str]]:
    """Writes the first test digits as PNG files."""
    from gendd.config import DataConfig
    from gendd.data import load_data

    def write(count: int) -> list[str]:
        pixels = load_data(DataConfig()).test.images(range(count))
        paths = [tmp_path / f"digit{index}.png" for index in range(count)]
        for path, image in zip(paths, pixels[:, 0].numpy(), strict=True):
            Image.fromarray(image).save(path)
        return [str(path) for path in paths]

    return write
