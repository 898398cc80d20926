"""The command line. Commands parse, call the library and print; they hold no logic of their own."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import warnings
from contextlib import suppress
from importlib.metadata import version

from gendd.cli.lists import methods_command, models_command, push_command, recipes_command, verify_command
from gendd.cli.options import parse_run
from gendd.cli.parsing import COMMANDS
from gendd.cli.runs import (
    cache_command,
    compare_command,
    execute_command,
    export_command,
    import_released_command,
    predict_command,
    probe_command,
    profile_command,
    watch_command,
)
from gendd.cli.scoring import evaluate_command
from gendd.cli.signals import Stop
from gendd.errors import TrainingStopped, UserError, did_you_mean
from gendd.files import expanded, trusted_code
from gendd.messages import say
from gendd.processes import launched_rank, launched_size, world_size

__all__ = ["main", "parse_run"]

# errors of the file system: full, read-only, over quota, forbidden, broken, gone, name too long
_OF_THE_PLACE = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EROFS", "EDQUOT", "EACCES", "EPERM", "EIO", "EFBIG"),
        *("ENAMETOOLONG", "ENOTDIR", "EEXIST", "ELOOP", "ENOENT", "EISDIR", "EINVAL"),
    )
    if hasattr(errno, name)
}
# path/to/file.py:NAME as an option's value or in a list
_PYTHON_NAME = re.compile(r"[^\s,=\[\]'\"]+\.py:\w+")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code: 2 for a user error, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # escape what a non-UTF-8 terminal can't show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # images that can't be decoded are reported by gendd itself
    warnings.filterwarnings("ignore", module="PIL")
    trusted = "--trust-code" in words
    # shells don't expand what follows a =
    words = ["=".join(expanded(word.split("=", 1))) for word in words if word != "--trust-code"]
    named = [name for word in words for name in _PYTHON_NAME.findall(word)]
    stop = Stop(process=arguments is None, resumes=words[:1] in (["distill"], ["train"]))
    try:
        with stop.on_signals(), trusted_code(None if trusted else named):
            code = _dispatch(words)
        # some commands handle Ctrl-C themselves; others may have finished before they could be stopped
        return stop.code if code == 130 else code
    except UserError as error:
        # an error before the processes have met occurs in all of them, so that one reports it
        if launched_rank() == 0 or "did not meet" in str(error) or world_size() > 1:
            place = f"process {launched_rank()}: " if launched_rank() else ""
            print(f"gendd: {place}{' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except TrainingStopped:
        return 0
    except KeyboardInterrupt:
        stop.tell()
        return stop.code
    except BrokenPipeError:
        # the reader of the output is gone; avoid a second error when the streams are flushed at exit
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    except OSError as error:
        if error.errno not in _OF_THE_PLACE:
            raise
        where = f": {str(error.filename)!r}" if error.filename else ""
        way = "go on with --resume" if words[:1] in (["distill"], ["train"]) else "give the command again"
        print(
            f"gendd: {error.strerror}{where}; what was written before is kept. Make room or give another "
            f"place, then {way}.",
            file=sys.stderr,
        )
        return 2
    except (MemoryError, RuntimeError) as error:
        if _process_lost(error):
            say(
                "gendd: a process of this training ended before the others; the last checkpoint is kept. Go "
                "on with the same command and --resume."
            )
            return 1
        if not _out_of_memory(error):
            raise
        print(
            "gendd: out of memory; the last checkpoint is kept. Lower data.batch_size, data.workers or "
            "gendd.repeats, or set data.in_memory false.",
            file=sys.stderr,
        )
        return 2


def _out_of_memory(error: Exception) -> bool:
    """Return whether Python, torch or a loader process ran out of memory."""
    signs = ("out of memory", "can't allocate memory", "killed by signal: Killed", "bad_alloc")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def _process_lost(error: Exception) -> bool:
    """Return whether the error means that another process was lost."""
    signs = ("gloo", "NCCL", "Connection closed", "Connection reset", "TCPStore", "Timed out")
    return world_size() > 1 and any(sign in str(error) for sign in signs)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"gendd {version('gendd')}")
        return 0
    if words[0] == "--print-completion":
        from gendd.cli.completion import completion_script

        print(completion_script(" ".join(words[1:])))
        return 0
    command, rest = words[0], words[1:]
    if command not in COMMANDS:
        raise UserError(f"Unknown command {command!r}.{did_you_mean(command, COMMANDS)} See: gendd --help.")
    if launched_size() > 1 and command not in ("distill", "train", "evaluate"):
        raise UserError(
            f"gendd {command}: expected one process, got {launched_size()} of torchrun or srun; start it "
            "alone (distill, train and evaluate share the work)."
        )
    if command in ("distill", "train"):
        return execute_command(command, rest)
    handlers = {
        "cache": cache_command,
        "profile": profile_command,
        "evaluate": evaluate_command,
        "watch": watch_command,
        "probe": probe_command,
        "predict": predict_command,
        "export": export_command,
        "push": push_command,
        "recipes": recipes_command,
        "models": models_command,
        "methods": methods_command,
        "compare": compare_command,
        "import-released": import_released_command,
        "verify": verify_command,
    }
    return handlers[command](rest)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gendd COMMAND [OPTION …]",
            "",
            "Generative Distribution Distillation: small, fast image models nearly as good as large ones.",
            "",
            *lines,
            "",
            "gendd COMMAND --help prints a command's options; gendd --version the version.",
            'Shell completion of commands and options: eval "$(gendd --print-completion bash)" (or zsh).',
            "Files and folders that name Python files or shell commands are refused without --trust-code.",
        ]
    )
