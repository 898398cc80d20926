"""The command line. Commands parse, call the library and print; they hold no logic of their own."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version

from gendd.cli.lists import methods_command, models_command, push_command, recipes_command, verify_command
from gendd.cli.options import parse_run
from gendd.cli.parsing import COMMANDS
from gendd.cli.runs import (
    compare_command,
    evaluate_command,
    execute_command,
    export_command,
    import_released_command,
    predict_command,
    probe_command,
)
from gendd.errors import UserError, did_you_mean
from gendd.files import trusted_code

__all__ = ["main", "parse_run"]

# path/to/file.py:NAME in an option, or one of a list
_PYTHON_NAME = re.compile(r"[^\s,=\[\]'\"]+\.py:\w+")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (2 for a user's mistake, 130 for Ctrl-C)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    trusted = "--trust-code" in words
    words = [word for word in words if word != "--trust-code"]
    named = [name for word in words for name in _PYTHON_NAME.findall(word)]
    try:
        with trusted_code(None if trusted else named):
            return _dispatch(words)
    except UserError as error:
        print(f"gendd: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "gendd: interrupted; what was written is kept. Go on with the same command and --resume.",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        return 0


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"gendd {version('gendd')}")
        return 0
    command, rest = words[0], words[1:]
    if command not in COMMANDS:
        raise UserError(f"Unknown command {command!r}.{did_you_mean(command, COMMANDS)} See: gendd --help.")
    if command in ("distill", "train"):
        return execute_command(command, rest)
    handlers = {
        "evaluate": evaluate_command,
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
            "Files and folders that name Python files or shell commands are refused without --trust-code.",
        ]
    )
