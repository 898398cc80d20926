"""Run functions in separate processes, forked from one that has already imported torch and gendd."""

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
# seconds after which a process is considered hung, even on a slow machine
PATIENCE = 400


class Started(ForkServerProcess):
    """A running function with picklable arguments; its output goes to files in a folder."""

    def __init__(
        self, folder: Path, function: Callable[..., Any], *given: Any, env: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.files = folder / "out.txt", folder / "err.txt"
        super().__init__(target=_run, args=(self.files, os.environ | (env or {}), function, given))
        self.start()

    def ended(self) -> tuple[int | None, str]:
        """Wait for the end; return the exit code, negative for a signal, and stderr."""
        self.join(PATIENCE)
        self.kill()
        return self.exitcode, self.files[1].read_text(encoding="utf-8")

    @property
    def out(self) -> str:
        """Its stdout."""
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

    # the program that a training restarts for its other processes
    sys.modules["__main__"] = program
    sys.argv = ["gendd", *map(str, words)]
    sys.exit(program.main())


def together(count: int) -> list[dict[str, str]]:
    """The environment variables a launcher sets for each of several processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    return [shared | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(count)]
