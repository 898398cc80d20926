"""A small run in a separate process that `benchmarks/faults.py` disturbs, and what it must not lose."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import signal
import sys
import tarfile
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gendd.cli import main
from gendd.config import DataConfig
from gendd.data import ImageSet, load_data
from gendd.files import write_text
from gendd.run import Run
from gendd.run.exhibits import curves
from gendd.training.module import LightningMethod

DATA = ["digits", "folder", "shards"]
_TRAINING = {"epochs": 3, "lr": 0.02, "precision": "fp32", "device": "cpu", "loggers": "[csv]"}
RUN = {
    "teacher.name": "cifar/resnet8x0.5",
    "student.name": "cifar/resnet8x0.25",
    "data.batch_size": 32,
    **{f"teacher_training.{name}": value for name, value in _TRAINING.items()},
    **{f"training.{name}": value for name, value in _TRAINING.items()},
    "training.stage1_epochs": 1,
    "gendd.head_width": 32,
    "gendd.repeats": 2,
    "gendd.token_width": 32,
    "readout.name": "mean",
    "readout.num_samples": 2,
    "readout.steps": 4,
    "baselines": "[kd]",
}
# metrics that differ between repetitions
_TIMES = {"latency_ms", "latency_quartiles_ms", "train_seconds", "loading_seconds", "images/s"}
_ASIDE = (".lock", ".replaced")


def images(kind: str, folder: Path) -> list[str]:
    """Return the options for one kind of data, after writing the digits to the folder if it needs files."""
    if kind == "digits":
        return ["--data.train_images=200"]
    data = load_data(DataConfig(train_images=300, validation=0))
    files: list[Path] = []
    for part, found in (("train", data.train), ("test", data.test)):
        assert isinstance(found, ImageSet) and found.labels is not None
        for index, image in enumerate(found.images(range(300))[:, 0].numpy()):
            file = folder / part / str(int(found.labels[index])) / f"{index:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
            files += [file] * (part == "train")
    streamed = ["--data.workers=2", "--data.in_memory=false"]
    if kind == "folder":
        return ["--data.name=folder", f"--data.path={folder}", *streamed]
    for number in range(4):
        with tarfile.open(folder / f"train-{number}.tar", "w") as tar:
            for file in files[number::4]:
                label = file.with_suffix(".cls")
                label.write_text(file.parent.name)
                tar.add(file, file.name)
                tar.add(label, label.name)
    shutil.rmtree(folder / "train")
    paths = [f"--data.path={folder}/train-*.tar", f"--data.test_path={folder / 'test'}"]
    return ["--data.name=webdataset", "--data.image_size=8", *paths, *streamed]


@dataclass
class Place:
    """Working directory of a case.

    Attributes:
        folder: Holds the run folder and the cache; output and counted calls are written beside it.
        options: Options of its data.
        overwrite: Whether it replaces an existing run.
    """

    folder: Path
    options: list[str]
    overwrite: bool = False

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def last(self) -> Path:
        return self.run / "checkpoints" / "last.ckpt"

    @property
    def calls(self) -> list[str]:
        """The counted calls; a training step is one."""
        return self._beside("calls").read_text().splitlines()

    def start(self, n: int = 0, pipe: tuple[int, int] | None = None) -> int:
        """Start or resume the run in a fork of this process, which has already imported everything.

        Args:
            n: The counted call at which to kill it; 0: none.
            pipe: Receives the output that :meth:`ended` would read: read end and write end.

        Returns:
            The process, which leads its own process group.
        """
        said, calls = (
            os.open(self._beside(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("said", "calls")
        )
        child = os.fork()
        if child:
            os.close(said)
            os.close(calls)
            return child
        code = 1
        try:
            os.setsid()
            os.dup2(said, 1)
            os.dup2(said, 2)
            if pipe is not None:
                os.close(pipe[0])
                os.dup2(pipe[1], 2)
                sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            os.environ["GENDD_CACHE"] = str(self.folder / "cache")
            self._count(calls, n)
            sys.argv[1:] = self._words()
            code = main()
            sys.stdout.flush()
            write_text(self._beside("modules"), "\n".join(sys.modules))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def ended(self, child: int) -> tuple[int, str]:
        """Return the exit code of a started process, negative if a signal killed it, and its output."""
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(ProcessLookupError):  # loader processes of a killed process
            os.killpg(child, signal.SIGKILL)
        return code, self._beside("said").read_text(errors="replace")

    def _words(self) -> list[str]:
        again = ["--resume"] if (self.run / "config.yaml").exists() else []
        again = ["--overwrite"] if self.overwrite else again
        own = (f"--{name}={value}" for name, value in RUN.items())
        return ["distill", "--out", str(self.run), *own, *self.options, *again]

    def _beside(self, name: str) -> Path:
        return self.folder.with_name(name)

    def _count(self, calls: int, n: int) -> None:
        counting = ctypes.CDLL(None)
        counting.faults_arm(f"{self.folder}/".encode(), calls, ctypes.c_long(n))
        step = LightningMethod.training_step

        def counted(self: LightningMethod, batch: Any, batch_idx: int) -> Any:
            counting.faults_event(b"step")
            return step(self, batch, batch_idx)

        LightningMethod.training_step = counted  # type: ignore[method-assign]


def outcome(folder: Path) -> dict[str, Any]:
    """Return what a finished run must not lose, and the files it left, by name."""
    runs = {"run": folder, "kd": folder / "baselines" / "kd"}
    found: dict[str, Any] = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("student/*.safetensors")
    }
    for name, place in runs.items():
        found[f"metrics of {name}"] = _untimed(Run.open(place).metrics)
    for name, place in {**runs, "stage1": folder / "stage1"}.items():
        found[f"curves of {name}"] = _untimed(curves(place))
    found["report"] = (folder / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
    left = [path.name for path in folder.rglob("*") if ".tmp" in path.name or path.name in _ASIDE]
    found["files left behind"] = sorted(left)
    return found


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(item) for key, item in value.items() if key not in _TIMES}
    return [_untimed(item) for item in value] if isinstance(value, list) else value
