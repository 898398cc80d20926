"""User errors: each must end with exit code 2 and a one-line message, and leave a finished run unchanged.

The errors are those of tests/mistakes. Each runs in a separate process, forked from one that has imported
everything, and its output is captured; afterwards the run that most of them would replace, and the run they
read, are compared byte for byte.

    python benchmarks/bad_inputs.py                          # everything in results/bad_inputs.csv
    python benchmarks/bad_inputs.py --only tars students     # only the rows of these kinds
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import records
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conftest import TINY
from mistakes import Case, Place, cases
from mistakes.images import fill

from gendd.cli import main as gendd_main
from gendd.errors import UserError

RESULTS = Path(__file__).parent / "results" / "bad_inputs.csv"
FIELDS = ["kind", "count", "one_line", "exit_2", "untouched", "seconds"]
SECONDS, BYTES = 30, 8 * 1024**3
# imported before the processes are forked
MODULES = ("run", "compare", "released", "deploy.predict", "deploy.export", "deploy.hub", "report", "methods")
UNMADE = 99
NOBODY = 65534


@dataclass(frozen=True)
class Outcome:
    """Outcome of an error."""

    case: Case
    code: int
    said: str
    untouched: bool
    seconds: float

    @property
    def line(self) -> str:
        """The error message."""
        lines = self.said.splitlines()
        return lines[-1] if lines else ""

    @property
    def one_line(self) -> bool:
        """Whether the last line on stderr is the only error message, and printed once."""
        lines = [line for line in self.said.splitlines() if line.startswith("gendd: ")]
        told = [line for line in lines if not line.startswith("gendd: left out the recipe's")]
        wrong = ("Traceback", "Warning:", "Exception ignored")
        return told == [self.line] and not any(each in self.said for each in wrong)

    @property
    def good(self) -> bool:
        """Whether the outcome is as required."""
        return self.code == 2 and self.one_line and self.untouched

    def __str__(self) -> str:
        touched = "" if self.untouched else ", and a run was touched"
        tail = "\n    ".join(self.said.splitlines()[-12:])
        return f"{self.case}: exit {self.code}, {self.seconds:.0f} s{touched}\n    {tail}"


def finished(folder: Path) -> Path:
    """Create a finished run on digits, without files only needed for training."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert gendd_main(["distill", "--out", str(folder / "whole"), *TINY, "--baselines=[]"]) == 0
    shutil.copytree(folder / "whole" / "student", folder / "run" / "student")
    for name in ("config.yaml", "metrics.json"):
        shutil.copy(folder / "whole" / name, folder / "run" / name)
    return folder / "run"


def digest(folder: Path) -> str:
    """Return a digest of all files below a folder and their names."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path.relative_to(folder)}\0".encode())
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


def call(case: Case, place: Place) -> int:
    """Set up an error, run its call and return the exit code."""
    made = case.make(place)
    if case.unprivileged and os.getuid() == 0:
        os.setuid(NOBODY)
    if isinstance(made, list):
        return gendd_main(made)
    try:
        made()
    except UserError as error:
        print(f"gendd: {error}", file=sys.stderr)
        return 2
    return 0


def forked(case: Case, place: Place, said: Path) -> int:
    """Run an error in a new process and return its exit code; negative for a signal, as after a timeout."""
    # so that output buffered here is not printed again there
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        code = UNMADE
        try:
            os.setsid()
            kept = os.open(said, os.O_WRONLY | os.O_CREAT, 0o600)
            for stream, target in (
                (0, os.open(os.devnull, os.O_RDONLY)),
                (1, os.open(os.devnull, os.O_WRONLY)),
                (2, kept),
            ):
                os.dup2(target, stream)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
            code = call(case, place)
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(case: Case, fixed: Path, before: str) -> Outcome:
    """Run one error in its own folder."""
    with tempfile.TemporaryDirectory(prefix="mistake-") as temporary:
        Path(temporary).chmod(0o755)
        folder = Path(temporary) / "folder"
        folder.mkdir()
        place = Place(folder, fixed / "run", fixed / "images", fixed / "out")
        began = time.monotonic()
        code = forked(case, place, Path(temporary) / "said")
        seconds = time.monotonic() - began
        said = (Path(temporary) / "said").read_text(encoding="utf-8", errors="replace")
        untouched = digest(place.out) == digest(place.run) == before
        for closed in folder.rglob("*"):
            if closed.is_dir() and not closed.is_symlink():
                closed.chmod(0o755)
    for each in (place.out, place.run) if not untouched else ():
        shutil.rmtree(each)
        shutil.copytree(fixed / "kept", each)
    return Outcome(case, code, said, untouched, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="KIND", help="kinds of mistakes; default: all")
    parser.add_argument("--lines", type=Path, metavar="FILE", help="write what each mistake was told to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in MODULES:
        import_module(f"gendd.{name}")
    kinds: dict[str, list[Case]] = {}
    for case in cases():
        kinds.setdefault(case.kind, []).append(case)
    if unknown := set(arguments.only or ()) - set(kinds):
        parser.error(f"expected kinds of {', '.join(kinds)}, got {', '.join(sorted(unknown))}")
    bad = 0
    with tempfile.TemporaryDirectory(prefix="mistakes-") as temporary, contextlib.ExitStack() as stack:
        fixed = Path(temporary)
        fixed.chmod(0o755)
        os.environ["GENDD_CACHE"] = str(fixed / "cache")
        finished(fixed)
        for part in ("train", "test"):
            for name in ("a", "b"):
                fill(fixed / "images" / part / name)
        for name in ("out", "kept"):
            shutil.copytree(fixed / "run", fixed / name)
        before = digest(fixed / "kept")
        lines = None if arguments.lines is None else stack.enter_context(arguments.lines.open("w"))
        for kind in arguments.only or kinds:
            outcomes = []
            for case in kinds[kind]:
                outcome = run(case, fixed, before)
                outcomes.append(outcome)
                if lines is not None:
                    print(f"{outcome.seconds:5.1f}  {case}\n       {outcome.line}", file=lines, flush=True)
                if not outcome.good:
                    bad += 1
                    print(outcome, flush=True)
            row = {
                "kind": kind,
                "count": len(outcomes),
                "one_line": sum(outcome.one_line for outcome in outcomes),
                "exit_2": sum(outcome.code == 2 for outcome in outcomes),
                "untouched": sum(outcome.untouched for outcome in outcomes),
                "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
            }
            print(row, flush=True)
            records.replace(RESULTS, FIELDS, {"kind": kind}, [row])
    print(f"{bad} mistakes not as they should be")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
