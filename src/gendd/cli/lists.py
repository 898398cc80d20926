"""Commands that list recipes, models and methods, upload a student, or verify the method."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from gendd.errors import UserError
from gendd.recipes import is_base, recipes, summary

if TYPE_CHECKING:
    pass

from gendd.cli.options import settings_help
from gendd.cli.parsing import COMMANDS, Parser, say_next


def push_command(words: list[str]) -> int:
    parser = Parser(
        prog="gendd push",
        description=COMMANDS["push"],
        epilog="Log in with 'hf auth login', or set HF_TOKEN in the environment.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a student's")
    parser.add_argument("repository", metavar="REPO_ID", help="NAME/REPOSITORY on the Hub")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--message", metavar="TEXT", help="commit message")
    given = parser.parse_args(words)
    from gendd.deploy.hub import push_to_hub

    private = True if given.private else None
    print(push_to_hub(given.run, given.repository, private=private, commit_message=given.message))
    say_next("push", given.repository)
    return 0


def recipes_command(words: list[str]) -> int:
    parser = Parser(prog="gendd recipes", description=COMMANDS["recipes"])
    parser.parse_args(words)
    groups: dict[str, dict[str, Path]] = {}
    for name, path in recipes().items():
        if not is_base(name):
            groups.setdefault(name.rpartition("/")[0].partition("/")[0], {})[name] = path
    # recipes outside any folder, the entry points, come first
    for number, group in enumerate(sorted(groups)):
        width = max(map(len, groups[group]))
        print("\n" * min(number, 1), end="")
        for name, path in groups[group].items():
            print(f"{name:<{width}}  {summary(path)}")
    say_next("recipes")
    return 0


def models_command(words: list[str]) -> int:
    parser = Parser(prog="gendd models", description=COMMANDS["models"])
    parser.add_argument(
        "pattern", metavar="PATTERN", nargs="?", help="part of a name, or a glob such as 'timm/res*'"
    )
    given = parser.parse_args(words)
    from gendd.models import list_models

    names = list_models(given.pattern)
    if not names:
        raise UserError(f"No network matches {given.pattern!r}: expected part of a name such as 'resnet'.")
    print("\n".join(names))
    say_next("models")
    return 0


def methods_command(words: list[str]) -> int:
    parser = Parser(prog="gendd methods", description=COMMANDS["methods"])
    parser.add_argument("name", metavar="NAME", nargs="?", help="a method, or path/to/file.py:CLASS")
    given = parser.parse_args(words)
    from gendd.config.registry import method_class, names

    if given.name is None:
        shown = [method_class(name) for name in names()]
        width = max(len(method.name) for method in shown)
        for method in shown:
            print(f"{method.name:<{width}}  {method.summary()}")
        say_next("methods")
        return 0
    method = method_class(given.name)
    print(f"{method.name}: {method.summary()}")
    if not dataclasses.fields(method.Settings):
        print("It has no settings.")
        say_next("methods")
        return 0
    from jsonargparse import ArgumentParser

    settings = ArgumentParser(prog="gendd distill", add_help=False)
    settings.add_class_arguments(method.Settings, method.section(), fail_untyped=True)
    print(settings_help(settings), end="")
    say_next("methods")
    return 0


def verify_command(words: list[str]) -> int:
    parser = Parser(prog="gendd verify", description=COMMANDS["verify"])
    parser.add_argument(
        "--reference", metavar="FILE.npz", help="reference numbers (default: those shipped with gendd)"
    )
    given = parser.parse_args(words)
    from gendd.released.verify import TOLERANCE, verify

    found = verify(None if given.reference is None else Path(given.reference))
    for name, deviation in found.items():
        print(f"{name:20} {deviation:.1e}{'' if deviation <= TOLERANCE else '  beyond 1e-4'}")
    worst = max(found.values())
    print(f"largest relative deviation {worst:.1e}: {'agrees' if worst <= TOLERANCE else 'does not agree'}")
    if worst > TOLERANCE:
        return 1
    say_next("verify")
    return 0
