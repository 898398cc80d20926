"""Completion of the command line by a shell, which jsonargparse and shtab write."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from gendd.cli.flags import run_flags
from gendd.cli.options import run_parser
from gendd.cli.parsing import COMMANDS
from gendd.errors import UserError

_SHELLS = ("bash", "zsh", "tcsh")
_RUNS = ("distill", "train", "cache")


def completion_script(shell: str) -> str:
    """A script that completes the commands, and the options of runs with their choices.

    Raises:
        UserError: another shell, or shtab is not installed.
    """
    if shell not in _SHELLS:
        raise UserError(f"--print-completion: expected one of {', '.join(_SHELLS)}, got {shell!r}.")
    if find_spec("shtab") is None:
        raise UserError(
            "--print-completion: expected the package shtab, which is not installed. Run: "
            "pip install 'gendd[completion]'"
        )
    from jsonargparse import ArgumentParser

    root = ArgumentParser(prog="gendd")
    commands = root.add_subcommands(required=False)
    for name, told in COMMANDS.items():
        parser = run_parser(name) if name in _RUNS else ArgumentParser()
        if name in _RUNS:
            known = parser._option_string_actions
            for action in run_flags(name)._actions:
                if not set(action.option_strings) & set(known):
                    flag: dict[str, Any] = {"action": "store_true"} if action.nargs == 0 else {}
                    parser.add_argument(*action.option_strings, help=action.help, **flag)
        commands.add_subcommand(name, parser, help=told)
    return str(root.get_completion_script(f"shtab-{shell}"))
