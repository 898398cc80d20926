"""What a run loses when it is killed, stopped, out of disk space, or its checkpoint is damaged.

A small run is first made undisturbed. Then it is disturbed, one case at a time, each in a separate process:
killed at a training step or inside a call that writes (counted by `faults.c`, which requires a C compiler),
killed while replacing a finished run, given a file system that is too small (mounted, which requires root),
its checkpoint changed between two runs, or sent signals. It is then resumed as a user would: with --resume,
or started again if it has no config.yaml yet. A case passes if the run prints one line and no traceback, and
ends bit-identical once resumed: all weights, all metrics except times, all logged curves, and no leftover
files. The report's figures, which take longer than the run, are left out. Cases that have a row are not
repeated.

    python benchmarks/faults.py kill --data digits folder shards
    python benchmarks/faults.py replace full damage
    python benchmarks/faults.py signal --data folder
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import records
from disturbed import DATA, Place, images, outcome
from rich.progress import Progress

from gendd.report import drawing

HERE = Path(__file__).parent
KEY = ["fault", "data", "seed", "case"]
FIELDS = [*KEY, "where", "code", "said", "wrong", "held"]
# environment variable with the folder of the counting library, set in the process that loads it
BASE = "FAULTS_FOLDER"


@dataclass
class Whole:
    """The undisturbed run.

    Attributes:
        folder: Folder of all cases.
        options: Options of its data.
        end: Its outcome.
        calls: The counted calls.
    """

    folder: Path
    options: list[str]
    end: dict[str, Any]
    calls: list[str]

    def numbers(self, step: bool) -> list[int]:
        """Return which of the calls, counted from 1, are training steps, or write."""
        return [n for n, call in enumerate(self.calls, 1) if call.startswith("step") == step]

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Yield the working directory of the next case."""
        folder = self.folder / "case"
        folder.mkdir()
        try:
            yield Place(folder, self.options)
        finally:
            shutil.rmtree(folder)

    def lost(self, place: Place) -> list[str]:
        """Return what differs in a finished run."""
        try:
            end = outcome(place.run)
        except Exception as error:
            return [f"can't be read: {error!r}"]
        return [name for name in {**self.end, **end} if self.end.get(name) != end.get(name)]

    def resumed(self, place: Place) -> list[str]:
        """Resume a disturbed run and return what was lost."""
        code, text = place.ended(place.start())
        return [f"resumed: {text.splitlines()[-1]}"] if code else self.lost(place)


@dataclass
class Ended:
    """How a disturbed run ended, and what was wrong."""

    where: str
    code: int
    said: list[str]
    wrong: list[str]


Act = Callable[[Place, random.Random], Ended]
Cases = Iterator[tuple[str, Act]]


def judged(code: int, expected: int, text: str, where: str, lines: int, sign: str = "gendd: ") -> Ended:
    """Check a process that should end with an exit code after this many lines that contain a sign."""
    said = [line for line in text.splitlines() if sign in line and not line.startswith("gendd: epoch ")]
    wrong = [] if code == expected else [f"exit code {code}, not {expected}"]
    wrong += ["traceback"] * ("Traceback" in text or "Exception ignored" in text)
    wrong += [f"{len(said)} lines, not {lines}"] * (len(said) != lines)
    return Ended(where, code, said, wrong)


# --- killed ---


def spread(points: list[int], count: int, pace: random.Random) -> list[int]:
    """Choose a random point from each of ``count`` equal shares of the points."""
    edges = (len(points) * index // count for index in range(count + 1))
    return [pace.choice(points[start:end]) for start, end in itertools.pairwise(edges) if start < end]


def killed(whole: Whole, count: int, pace: random.Random) -> Cases:
    """Kill inside each kind of call that writes, and at steps and calls spread over the whole run."""
    kinds: dict[str, list[int]] = {}
    for n in whole.numbers(step=False):
        call, _, path = whole.calls[n - 1].partition(" ")
        kinds.setdefault(f"{call} {Path(path).name}", []).append(n)
    points = {pace.choice(kind) for kind in pace.sample([*kinds.values()], min(len(kinds), count // 2))}
    for step in (True, False):
        points.update(spread(whole.numbers(step), count // 4, pace))
    for n in sorted(points):
        yield f"call {n}", partial(kill, whole, n)


def kill(whole: Whole, n: int, place: Place, pace: random.Random) -> Ended:
    code, text = place.ended(place.start(n))
    ended = judged(code, -signal.SIGKILL, text, place.calls[-1], 0)
    ended.wrong += whole.resumed(place)
    return ended


def replaced(whole: Whole, count: int, pace: random.Random) -> Cases:
    """Kill at each of the first calls of a run that replaces a finished one."""
    for n in range(1, count + 1):
        yield f"call {n}", partial(replace, whole, n)


def replace(whole: Whole, n: int, place: Place, pace: random.Random) -> Ended:
    shutil.copytree(whole.folder / "finished", place.folder, dirs_exist_ok=True)
    place.overwrite = True
    code, text = place.ended(place.start(n))
    ended = judged(code, -signal.SIGKILL, text, place.calls[-1], 0)
    for name in ("metrics.json", "student/model.safetensors", "report.html"):
        if not [*place.run.glob(name), *place.run.glob(f".replaced*/{name}")]:
            ended.wrong.append(f"the finished run's {name}")
    ended.wrong += whole.resumed(place)
    return ended


# --- a full disk ---


def full(whole: Whole, count: int, pace: random.Random) -> Cases:
    """Use file systems of 4 KiB to 4 MiB for the run and its cached teacher."""
    for index in range(count):
        kib = 4 + 4092 * index // (count - 1) // 4 * 4
        yield f"{kib} KiB", partial(fill, whole, kib)


def fill(whole: Whole, kib: int, place: Place, pace: random.Random) -> Ended:
    mount = ["mount", "-t", "tmpfs", "faults", str(place.folder), "-o"]
    subprocess.run([*mount, f"size={kib}k"], check=True)
    try:
        code, text = place.ended(place.start())
        fits = code == 0
        ended = judged(code, 0 if fits else 2, text, "", 0 if fits else 1)
        if not fits and (place.run / "metrics.json").exists():
            ended.wrong.append("taken to be finished")
        subprocess.run([*mount, "remount,size=256m"], check=True)
        ended.wrong += whole.resumed(place)
    finally:
        subprocess.run(["umount", place.folder], check=True)
    return ended


# --- a damaged checkpoint ---


def damaged(whole: Whole, count: int, pace: random.Random) -> Cases:
    """Flip a bit in each of ``count`` equal regions of the last checkpoint, or truncate the file.

    The run was killed in its third epoch, in some cases in the second, when there is no other checkpoint.
    """
    for checkpoints, regions, cuts in ((2, count, 8), (1, count // 8, 1)):
        with interrupted(whole, checkpoints) as stopped:
            content = Place(stopped, []).last.read_bytes()
            damages: dict[str, bytes] = {}
            edges = (len(content) * index // regions for index in range(regions + 1))
            for start, end in itertools.pairwise(edges):
                byte = pace.randrange(start, end)
                flipped = bytes([content[byte] ^ 1 << pace.randrange(8)])
                damages[f"byte {byte}"] = content[:byte] + flipped + content[byte + 1 :]
            for part in range(cuts):
                damages[f"cut to {part}/{cuts}"] = content[: len(content) * part // cuts]
            for name, changed in damages.items():
                case = f"{name}, {'the last of two' if checkpoints == 2 else 'the only one'}"
                yield case, partial(damage, whole, stopped, changed, checkpoints)


@contextmanager
def interrupted(whole: Whole, checkpoints: int) -> Iterator[Path]:
    """Yield the folder of a run that was killed at a step after this many checkpoints."""
    written = [n for n, call in enumerate(whole.calls, 1) if call == "rename run/checkpoints/last.ckpt"]
    following = [n for n in whole.numbers(step=True) if n > written[checkpoints - 1]]
    with tempfile.TemporaryDirectory(dir=whole.folder) as kept:
        with whole.place() as place:
            place.ended(place.start(following[2]))
            shutil.copytree(place.folder, kept, dirs_exist_ok=True)
        yield Path(kept)


def damage(
    whole: Whole, stopped: Path, changed: bytes, checkpoints: int, place: Place, pace: random.Random
) -> Ended:
    shutil.copytree(stopped, place.folder, dirs_exist_ok=True)
    place.last.write_bytes(changed)
    code, text = place.ended(place.start())
    ended = judged(code, 0 if checkpoints == 2 else 2, text, "", 1, "damaged")
    if code == 0:
        ended.wrong += whole.lost(place)
    return ended


# --- signals ---


def signalled(whole: Whole, count: int, pace: random.Random) -> Cases:
    """Send Ctrl-C and similar signals to all processes of the run, once or twice; close its output."""
    names = ("SIGINT", "SIGINT", "SIGTERM", "SIGHUP")
    for index in range(count):
        name, twice, scoring = names[index % 4], index // 4 % 2 == 1, index // 8 % 2 == 1
        when = f"{name}{' twice' if twice else ''} while {'scoring' if scoring else 'training'}"
        yield f"{index}: {when}", partial(stop, whole, signal.Signals[name], twice, scoring)
    yield "reader gone", partial(unread, whole)


def stop(whole: Whole, number: int, twice: bool, scoring: bool, place: Place, pace: random.Random) -> Ended:
    child, steps = place.start(), pace.randrange(1, 60)
    while not (
        (place.run / "checkpoints" / "finished.json").exists()
        if scoring
        else sum(call.startswith("step") for call in place.calls) >= steps
    ):
        time.sleep(0.002)
    time.sleep(pace.uniform(0, 0.8 if scoring else 0.05))
    for _ in range(2 if twice else 1):
        with suppress(ProcessLookupError):
            os.killpg(child, number)
        time.sleep(pace.uniform(0, 0.1))
    code, text = place.ended(child)
    # training ends with a checkpoint and exit code 0 when asked to stop; other stages stop at once
    asked, at_once = ("asked to stop" in text), ("interrupted" in text)
    expected = 0 if number == signal.SIGTERM and asked and not at_once else 128 + number
    ended = judged(code, expected, text, place.calls[-1], asked + at_once)
    ended.wrong += ["no line"] * (not asked and not at_once)
    ended.wrong += whole.resumed(place)
    return ended


def unread(whole: Whole, place: Place, pace: random.Random) -> Ended:
    reader, writer = os.pipe()
    child = place.start(pipe=(reader, writer))
    os.close(writer)
    with os.fdopen(reader) as stream:
        stream.readline()
    code, text = place.ended(child)
    ended = judged(code, 141, text, "", 0)
    ended.wrong += whole.resumed(place)
    return ended


FAULTS: dict[str, tuple[Callable[[Whole, int, random.Random], Cases], int]] = {
    "kill": (killed, 40),
    "replace": (replaced, 32),
    "full": (full, 41),
    "damage": (damaged, 64),
    "signal": (signalled, 24),
}


def undisturbed(folder: Path, kind: str) -> Whole:
    """Make the reference run, and import here everything it imports."""
    whole = Whole(folder, images(kind, folder / "images"), {}, [])
    with whole.place() as place:
        code, text = place.ended(place.start())
        if code:
            sys.exit(text)
        for name in (folder / "modules").read_text().split():
            with suppress(Exception):
                importlib.import_module(name)
        shutil.copytree(place.folder, folder / "finished")
        whole.end, whole.calls = outcome(place.run), place.calls
    return whole


def again_with_counts() -> None:
    """Restart this process with `faults.c` preloaded."""
    folder = tempfile.mkdtemp(prefix="faults-")
    library = f"{folder}/faults.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, HERE / "faults.c"], check=True)
    added = {"LD_PRELOAD": library, BASE: folder, "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **added})


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("fault", nargs="+", choices=[*FAULTS])
    parser.add_argument("--data", nargs="+", choices=DATA, default=["digits"])
    parser.add_argument("--cases", type=int, help="of a fault and kind of data, about")
    parser.add_argument("--seed", type=int, default=0, help="of the points; another adds other cases")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "faults.csv")
    arguments = parser.parse_args()
    # a shell makes commands in the background ignore SIGINT, nohup SIGHUP; runs would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if BASE not in os.environ:
        again_with_counts()
    top = Path(os.environ[BASE])
    # a placeholder for a figure, of the same length
    drawing._svg = lambda draw, theme: ("data:," + 30_000 * "A", 6.0)
    done = {tuple(row[name] for name in KEY) for row in records.read(arguments.results)}
    try:
        with Progress() as progress:
            for kind in arguments.data:
                (top / kind).mkdir()
                whole = undisturbed(top / kind, kind)
                for fault in arguments.fault:
                    find, count = FAULTS[fault]
                    cases = find(whole, arguments.cases or count, random.Random(arguments.seed))
                    for case, act in progress.track(cases, description=f"{fault} {kind}"):
                        key = (fault, kind, str(arguments.seed), case)
                        if key in done:
                            continue
                        with whole.place() as place:
                            ended = act(place, random.Random("/".join(key)))
                        row = dict(zip(KEY, key, strict=True)) | written(ended, place)
                        records.append(arguments.results, FIELDS, [row])
                        if ended.wrong:
                            progress.print(row)
    finally:
        shutil.rmtree(top)


def written(ended: Ended, place: Place) -> dict[str, str | int]:
    """Return the rest of a row, without the names of deleted folders."""
    found = {
        "where": ended.where.strip(),
        "said": " ".join(ended.said),
        "wrong": "; ".join(ended.wrong),
    }
    for name, text in found.items():
        short = text.replace(str(place.folder), "…")
        found[name] = re.sub(r"cache/teachers/[^/ ]+", "teacher", short)
    return {**found, "code": ended.code, "held": int(not ended.wrong)}


if __name__ == "__main__":
    main()
