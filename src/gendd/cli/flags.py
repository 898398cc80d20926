"""Flags and positional arguments of 'gendd distill' and 'gendd train', and their short help."""

from __future__ import annotations

import argparse
import os
from typing import Any

from gendd.cli.parsing import COMMANDS, Parser
from gendd.errors import UserError

# settings fixed by 'gendd train', whatever a recipe says
TRAIN: dict[str, Any] = {"method": "supervised", "baselines": []}
# sections of a recipe that it does not use
_UNUSED = ("teacher", "teacher_training", "gendd", "readout")
# short options: the dotted option, its placeholder, its help
_SHORT = {
    "teacher": ("teacher.name", "NETWORK", "the teacher: a name (gendd models lists them) or a run's folder"),
    "student": ("student.name", "NETWORK", "the student: a name or a run's folder"),
    "data": ("data.name", "SET", "the images: digits, cifar10, …, or the path of a folder"),
    "readout": ("readout.name", "{linear,mean,sample,auto}", "how the finished student computes its logits"),
    "precision": ("training.precision", "{auto,fp32,bf16,fp16}", "training precision of the student"),
}
# positional arguments
_PLACES = {"distill": ("DIR", "TEACHER", "STUDENT"), "train": ("DIR", "STUDENT")}
# settings that the short help lists besides the flags: placeholder, help
_OFTEN = {
    "data.path": ("DIR", "their location; a folder of images has train/CLASS/ and test/CLASS/, or CLASS/"),
    "data.labels": ("{true,false}", "whether training may see the labels (default: true)"),
    "method": ("NAME", "training method (gendd methods lists them; default: gendd)"),
    "baselines": ("NAME,…", "methods to train as well, for comparison"),
    "training.epochs": ("N", "passes over the training images (default: 30 or more)"),
    "training.lr": ("RATE", "peak learning rate (default: 0.003)"),
    "training.device": ("{auto,cpu,cuda,mps}", "training device"),
}
# flags that only the full help lists
_SELDOM = ("readout", "precision", "print_config", "fresh_teacher")


def fixed(command: str) -> set[str]:
    """Return the keys that are not dotted options of a command."""
    return {"out", *TRAIN, *_UNUSED} if command == "train" else {"out"}


def in_full(command: str, flags: argparse.Namespace) -> list[str]:
    """Return the dotted options that the given short options stand for."""
    found = []
    for short, (key, _, _) in _short(command).items():
        value = getattr(flags, short)
        if value is not None:
            found += dotted(key, value)
    return found


def dotted(key: str, value: str) -> list[str]:
    """Return the dotted options that a short one stands for; a folder is a trained network, or images."""
    section = key.split(".")[0]
    if key in ("teacher.name", "student.name", "network.name") and os.path.isdir(value):
        from gendd.models.weights import network_of

        return [f"--{section}.{name}={part}" for name, part in network_of(value).items()]
    if key == "data.name" and os.path.isdir(value) and not _is_set(value):
        return ["--data.name=folder", f"--data.path={value}"]
    return [f"--{key}={value}"]


def _is_set(name: str) -> bool:
    """Return whether this is the name of a data set that gendd reads."""
    from gendd.data.readers import readers

    return name in (*readers(), "webdataset")


def _short(command: str) -> dict[str, tuple[str, str, str]]:
    """Return the short options of a command."""
    return {name: told for name, told in _SHORT.items() if told[0].split(".")[0] not in fixed(command)}


def run_flags(command: str) -> Parser:
    parser = Parser(
        prog=f"gendd {command}", add_help=False, allow_abbrev=False, description=COMMANDS[command]
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        action="append",
        default=[],
        help="start from a shipped recipe (gendd recipes lists them); repeat to apply another on top",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        default=[],
        help="a YAML file of settings; may be repeated",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="output folder (default: runs/ and the name of the last recipe or file, "
        "else of the command and the data)",
    )
    for name, (key, takes, told) in _short(command).items():
        parser.add_argument(f"--{name}", metavar=takes, help=f"{told} (short for --{key})")
    parser.add_argument("--resume", action="store_true", help="resume the run in the output folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")
    if command == "distill":
        parser.add_argument(
            "--fresh-teacher",
            action="store_true",
            help="train the teacher again even if it is cached",
        )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be trained and how long it would take, and stop",
    )
    parser.add_argument("--print_config", action="store_true", help="print the resolved settings and stop")
    return parser


def short_help(command: str) -> str:
    """Return the help of the common options, with a pointer to the full help."""
    parser = run_flags(command)
    places = " ".join(_PLACES[command])
    parser.usage = f"gendd {command} [{places}] [OPTION …]"
    for action in parser._actions:
        if action.dest in _SELDOM:
            action.help = argparse.SUPPRESS
        elif action.help is not None:
            action.help = action.help.partition(" (short for ")[0]
    for key, (takes, told) in _OFTEN.items():
        if key not in fixed(command) and (command, key) != ("train", "data.labels"):
            parser.add_argument(f"--{key}", metavar=takes, help=told)
    networks = "two networks" if command == "distill" else "a network"
    parser.epilog = f"{places}: a folder of images and {networks}, instead of their options."
    return f"{parser.format_help()}\n--help-all lists every setting, --print_config prints their values."


def placed(command: str, flags: argparse.Namespace, words: list[str]) -> list[str]:
    """Turn the positional arguments DIR, TEACHER and STUDENT into options.

    Raises:
        UserError: unexpected positional arguments, or options that contradict them.
    """
    found: list[str] = []
    left: list[str] = []
    given: dict[str, str] = {}
    rest = [*reversed(words)]
    while rest:
        word = rest.pop()
        option = option_of(word)
        if option is None:
            found.append(word)
            continue
        left.append(word)
        value = word.partition("=")[2]
        if "=" not in word and rest and option_of(rest[-1]) is None:
            left += [value := rest.pop()]
        given[option.removeprefix("--")] = value
    if not found:
        return left
    places = _PLACES[command]
    if len(found) != len(places):
        raise UserError(
            f"gendd {command}: expected {' '.join(places)} or options alone, got "
            f"{' '.join(map(repr, found))}; a recipe is --recipe NAME."
        )
    folder, *networks = found
    short = {
        "data": "folder",
        **{place.lower(): name for place, name in zip(places[1:], networks, strict=True)},
    }
    for key, value in [*short.items(), ("data.path", folder)]:
        for option in (key, f"{key}.name"):
            other = given.get(option, getattr(flags, option, None))
            if other not in (None, value):
                raise UserError(
                    f"gendd {command}: expected --{option} {value} beside {' '.join(found)}, got {other!r}; "
                    "leave one out."
                )
    vars(flags).update(short)
    return [*left, f"--data.path={folder}"]


def option_of(word: str) -> str | None:
    """Return the option named by an argument, ``--key`` for ``--key=value`` and ``--key+=value``, or None."""
    return word.split("=")[0].rstrip("+") if word.startswith("--") else None
