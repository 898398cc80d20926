"""The error a user's mistake raises, and the helpers that word it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave can't be used.

    The message is one line: what was expected, what came, what to do. The command line prints it
    without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        # names in it may hold anything
        super().__init__(" ".join(message.splitlines()))


class UntrustedCodeError(UserError):
    """A file or folder names code, which was not run."""


class TrainingStopped(SystemExit):
    """A training was asked to stop and has written a checkpoint; ends the program with exit code 0."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, of at most 300 characters; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def typed_line(error: BaseException) -> str:
    """The type of an exception and the first line of what it says, if anything."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of a sentence that listed the choices: ``" Did you mean 'x'?"``, or ``""``."""
    known = sorted(set(choices))
    # --lr is the last word of --training.lr
    last = f".{name.lstrip('-').replace('-', '_')}"
    near = sorted((each for each in known if each.endswith(last)), key=len)
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The end of a sentence that names the choice nearest to ``name``, or lists the first few.

    Returns:
        ``" Did you mean 'x'?"``, else ``" Choose from: a, b, c."``, else ``""`` without choices.
    """
    known = sorted(set(choices))
    if (near := nearest(name, known)) or not known:
        return near
    shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f" Choose from: {shown}."
