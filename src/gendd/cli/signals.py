"""Signal handling: Ctrl-C, a closed terminal and a scheduler's signal end a command the same way."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from gendd.messages import say

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
# seconds until KeyboardInterrupt is raised again
_AGAIN = 3.0
# maximum number of seconds to wait for the end of loader processes that were killed
_REAPED = 2.0
_UNTOUCHED = (signal.SIG_DFL, signal.default_int_handler)


def _end_loaders() -> None:
    """Kill the loader processes, which survive a signal for a while and would delay the exit."""
    # if it was not imported there are none
    multiprocessing = sys.modules.get("multiprocessing")
    children = [] if multiprocessing is None else multiprocessing.active_children()
    loaders = [process for process in children if process.daemon]
    if not loaders:
        return
    # PyTorch's handler would raise an error, wherever this process is by then, as they end unexpectedly
    raises = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if hasattr(signal, "SIGCHLD") else None
    try:
        for process in loaders:
            process.kill()
        until = time.monotonic() + _REAPED
        for process in loaders:
            process.join(max(0.0, until - time.monotonic()))
    finally:
        if raises is not None:
            signal.signal(signal.SIGCHLD, raises)


class Stop:
    """The signal that ends a command, if one came.

    Args:
        process: Whether the process ends with the command.
        resumes: Whether the command has ``--resume``.

    Attributes:
        number: Number of the first signal; None if none came.
    """

    def __init__(self, process: bool, resumes: bool = False) -> None:
        self.process = process
        self.resumes = resumes
        self.number: int | None = None
        self._told = False

    @property
    def code(self) -> int:
        """The exit code: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + (self.number or signal.SIGINT)

    def tell(self) -> None:
        """Report how to continue, once."""
        if not self._told:
            self._told = True
            again = "Go on with the same command and --resume." if self.resumes else "Give the command again."
            with suppress(OSError):  # the terminal is gone
                say(f"gendd: interrupted; what was written is kept. {again}")

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Raise KeyboardInterrupt at the first signal, whatever is raised after it; exit at the second.

        If the exception is lost, as in a destructor, it is raised again shortly after.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        owner, held, unraisable = os.getpid(), {}, sys.unraisablehook

        def stop(number: int, frame: FrameType | None) -> None:
            if os.getpid() != owner:  # a child process
                os._exit(128 + number)
            if self.number is not None:
                self.tell()
                os._exit(self.code)
            self.number = number
            if timed:
                signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)
            raise KeyboardInterrupt

        def again(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        timed = hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        if timed:
            held[signal.SIGALRM] = signal.signal(signal.SIGALRM, again)

        def lost(args: UnraisableHookArgs) -> None:
            if self.number is None:
                unraisable(args)
            # what else destructors raise after a signal is due to objects that it left half made
            elif timed and isinstance(args.exc_value, KeyboardInterrupt):
                # exceptions don't leave destructors, so raise it again afterwards
                signal.setitimer(signal.ITIMER_REAL, 0.01, _AGAIN)

        for name in _NAMES:
            number = getattr(signal, name, None)
            # ignored signals stay ignored, as with nohup
            if number is not None and signal.getsignal(number) in _UNTOUCHED:
                held[number] = signal.signal(number, stop)
        sys.unraisablehook = lost
        try:
            yield
        except BaseException as error:
            if self.number is not None and not isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise
        finally:
            if timed:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if self.number is not None:
                _end_loaders()
            # if the process is about to exit, keep the handlers, so that a late signal prints no traceback
            if self.number is None or not self.process:
                sys.unraisablehook = unraisable
                for number, handler in held.items():
                    signal.signal(number, handler)
