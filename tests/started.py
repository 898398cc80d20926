"""Functions in processes of their own, forked from one that has loaded torch and gendd once."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NoReturn

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("gendd.__main__", "gendd.compare.comparison", "gendd.training.sharding", "gendd.report"),
        *("matplotlib.backends.backend_svg", "sklearn.datasets", "torch.utils.flop_counter"),
    ]
)
# a hang, not a slow machine
PATIENCE = 400


class Started(ForkServerProcess):
    """A function that runs, of arguments that can be pickled; what it says goes to files of a folder."""

    def __init__(
        self, folder: Path, function: Callable[..., Any], *given: Any, env: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.files = folder / "out.txt", folder / "err.txt"
        super().__init__(target=_run, args=(self.files, os.environ | (env or {}), function, given))
        self.start()

    def ended(self) -> tuple[int | None, str]:
        """Its exit code, once it has ended: a signal's is negative; and what it said on stderr."""
        self.join(PATIENCE)
        self.kill()
        return self.exitcode, self.files[1].read_text(encoding="utf-8")

    @property
    def out(self) -> str:
        """What it said on stdout."""
        return self.files[0].read_text(encoding="utf-8")


def _run(
    files: tuple[Path, ...], env: Mapping[str, str], function: Callable[..., Any], given: tuple[Any, ...]
) -> None:
    for number, path in enumerate(files, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(env)
    try:
        function(*given)
    finally:
        # multiprocessing leaves these out
        atexit._run_exitfuncs()


def run_gendd(*words: str | Path) -> NoReturn:
    """``python -m gendd WORDS``."""
    import gendd.__main__ as program

    # what a training starts again for its other processes
    sys.modules["__main__"] = program
    sys.argv = ["gendd", *map(str, words)]
    sys.exit(program.main())


def together(count: int) -> list[dict[str, str]]:
    """The variables by which a launcher tells each of several processes that they train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    return [shared | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(count)]
