"""Exceptions for user errors, and helpers for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Invalid input from the user.

    The message is one line: what was expected, what was given and what to do. The command line prints it
    without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        # names in the message may contain line breaks
        super().__init__(" ".join(message.splitlines()))


class UntrustedCodeError(UserError):
    """A file or folder names code that is not trusted and was not run."""


class TrainingStopped(SystemExit):
    """Training was asked to stop and has saved a checkpoint; ends the program with exit code 0."""


def first_line(error: BaseException) -> str:
    """First line of an exception's message, at most 300 characters; its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def typed_line(error: BaseException) -> str:
    """Type of an exception and the first line of its message, if any."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def nearest(name: str, choices: Iterable[str]) -> str:
    """Suggestion to append to a message that lists the choices: ``" Did you mean 'x'?"``, or ``""``."""
    known = sorted(set(choices))
    # --lr is the last word of --training.lr
    last = f".{name.lstrip('-').replace('-', '_')}"
    near = sorted((each for each in known if each.endswith(last)), key=len)
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Suggestion to append to a message: the choice nearest to ``name``, or the first few choices.

    Returns:
        ``" Did you mean 'x'?"``, else ``" Choose from: a, b, c."``, else ``""`` without choices.
    """
    known = sorted(set(choices))
    if (near := nearest(name, known)) or not known:
        return near
    shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f" Choose from: {shown}."
