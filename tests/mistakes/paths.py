"""Invalid paths, wherever a path is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mistakes.case import Case, Made, Place


def _fifo(place: Place) -> str:
    os.mkfifo(place.folder / "fifo.png")
    return str(place.folder / "fifo.png")


def _loop(place: Place) -> str:
    (place.folder / "loop").symlink_to(place.folder / "loop")
    return str(place.folder / "loop")


def _closed(place: Place) -> str:
    """A file in an inaccessible folder."""
    path = Path(place.write("closed/file", "x"))
    path.parent.chmod(0)
    return str(path)


_ODD: dict[str, Callable[[Place], str]] = {
    "missing": lambda place: str(place.folder / "missing"),
    "missing below a file": lambda place: place.write("file", "x") + "/below",
    "empty text": lambda _: "",
    "an empty file": lambda place: place.write("empty", ""),
    "bytes": lambda place: place.write("bytes", bytes(range(256)) * 9),
    "an empty folder": lambda place: str(place.folder),
    "a FIFO": _fifo,
    "/dev/zero": lambda _: "/dev/zero",
    "/dev/null": lambda _: "/dev/null",
    "300 characters": lambda place: str(place.folder / ("x" * 300)),
    "5000 characters": lambda _: "x/" * 2500,
    "NUL": lambda place: f"{place.folder}/a\0b",
    "a newline": lambda place: f"{place.folder}/a\nb",
    "not UTF-8": lambda place: f"{place.folder}/" + os.fsdecode(b"caf\xe9"),
    "a surrogate": lambda _: "caf\ud800",
    "no user's": lambda _: "~nobody-of-this-name/x",
    "a link to itself": _loop,
    "closed": _closed,
}


def _set(name: str, key: str = "path") -> Callable[[Place, str], list[str]]:
    return lambda place, path: place.distill(f"--data={name}", f"--data.{key}={path}")


_SETS = ("folder", "list", "parquet", "hf", "webdataset", "cifar10", "fashion-mnist")
_TAKEN: dict[str, Callable[[Place, str], list[str]]] = {
    "--config": lambda place, path: place.distill("--config", path),
    "--out": lambda _, path: ["distill", "--out", path, "--data.train_images=99999"],
    "--teacher": lambda place, path: place.distill("--teacher", path),
    "--student": lambda place, path: place.distill("--student", path),
    "--student.weights": lambda place, path: place.distill(f"--student.weights={path}"),
    "--teacher.weights": lambda place, path: place.distill(f"--teacher.weights={path}"),
    "--student FILE.py": lambda place, path: place.distill("--student", f"{path}.py:network"),
    **{name: _set(name) for name in _SETS},
    "data.test_path": lambda place, path: place.distill(
        "--data=folder", f"--data.path={place.images}", f"--data.test_path={path}"
    ),
    "data.classes": lambda place, path: place.distill(
        "--data=folder", f"--data.path={place.images}", f"--data.classes={path}"
    ),
    "data.root": lambda place, path: place.distill(
        "--data=list", f"--data.path={place.write('a.txt', 'a.png 0')}", f"--data.root={path}"
    ),
    "evaluate": lambda _, path: ["evaluate", path],
    "probe": lambda _, path: ["probe", path],
    "export": lambda _, path: ["export", path, "--to", "safetensors"],
    "export --out": lambda place, path: ["export", str(place.run), "--to", "onnx", "--out", path],
    "predict": lambda place, path: ["predict", path, str(place.images)],
    "predict's images": lambda place, path: ["predict", str(place.run), path],
    "compare": lambda _, path: ["compare", path, "--dry-run"],
    "import-released": lambda place, path: [
        *("import-released", path, "--student=cifar/resnet20", "--teacher=cifar/resnet56"),
        *("--out", str(place.folder / "out")),
    ],
    "verify": lambda _, path: ["verify", "--reference", path],
}  # fmt: skip
# paths that are valid there, or mean none
_GOOD = {
    ("--out", "missing"),
    ("export --out", "an empty folder"),
    ("--out", "an empty folder"),
    ("--out", "a newline"),
    ("--out", "no user's"),
    ("data.root", "empty text"),
    ("predict's images", "a newline"),
}
# for these each path, for the others every third one
_ALL = ("--config", "--out", "predict's images", "--student.weights")
_QUICK = ("evaluate", "predict", "predict's images", "compare")


def cases() -> Iterator[Case]:
    for number, (taker, words) in enumerate(_TAKEN.items()):
        for column, (name, path) in enumerate(_ODD.items()):
            if (taker, name) in _GOOD or (taker not in _ALL and (number + column) % 3):
                continue

            def make(
                place: Place,
                words: Callable[[Place, str], list[str]] = words,
                path: Callable[[Place], str] = path,
            ) -> Made:
                return words(place, path(place))

            quick = taker in _QUICK and (number + column) % 6 == 0 and name != "closed"
            yield Case("paths", f"{taker}: {name}", make, quick, unprivileged=name == "closed")
