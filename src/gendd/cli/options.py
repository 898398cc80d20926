"""Parse the settings of a run from recipes, files and dotted options; later ones win."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from gendd.errors import UserError, did_you_mean
from gendd.files import check_code, networks_of_runs, user_path
from gendd.recipes import recipe_path

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from gendd.config import RunConfig

from gendd.cli.flags import TRAIN, fixed, in_full, option_of, placed, run_flags, short_help

# options that select other images or another teacher than the demo's
_OTHERS = {"--data.name", "--data.path", "--teacher.name", "--teacher.weights"}
# settings only a teacher may have, which are left out of the student's help
_TEACHER_S = {f"student.{key}" for key in ("classes", "classifier", "compile", "dtype")}


def parse_run(command: str, words: list[str]) -> tuple[RunConfig | None, argparse.Namespace]:
    """Parse the arguments after ``gendd distill`` or ``gendd train`` into a configuration and flags.

    Later settings win: defaults, those of a resumed run, recipe, ``--config`` files, dotted options.
    ``distill`` without a recipe, a file, images or a teacher uses the recipe ``demo``, and with the digits
    alone the recipe ``digits``; ``train`` uses the student of a recipe or file, but not its method or
    baselines. The configuration is None if the arguments only ask for something to be printed.

    Raises:
        UserError: a setting is unknown, ill-typed or out of range, or a recipe or file does not exist.
    """
    from gendd.config import (
        RunConfig,
        dump,
        extended,
        from_dict,
        merge,
        read_mapping,
        to_dict,
    )

    flags, rest = run_flags(command).parse_known_args(words)
    if asked_help := {"-h", "--help", "--help-all"} & set(rest):
        print(_help(command) if "--help-all" in asked_help else short_help(command))
        return None, flags
    rest = placed(command, flags, _with_lists(rest))
    rest += in_full(command, flags)
    names = list(flags.recipe)
    layers = [read_mapping(source) for source in [*map(recipe_path, names), *map(Path, flags.config)]]
    saved: dict[str, Any] = {}
    if flags.resume and flags.out is not None:
        saved = _saved(flags.out)
    asked = _asked([saved, *layers], rest)
    _check_options(command, rest, asked)
    parts = _by_section(rest)

    def parsed(values: dict[str, Any]) -> dict[str, Any]:
        """Apply the options to the settings of files."""
        base = to_dict(from_dict(values, RunConfig))
        for key in fixed(command):
            base.pop(key, None)
        return _laid_over(base, parts, command)

    # these recipes only suit their own images
    if command == "distill" and not saved and not layers:
        images = "demo"
        if _OTHERS & {option_of(word) for word in rest}:
            images = _laid_over({"data": {}}, {"data": parts.get("data", [])}, command)["data"]["name"]
        if images in ("demo", "digits"):
            names, layers = [images], [read_mapping(recipe_path(images))]
    chosen = bool(saved) or any("baselines" in layer for layer in layers[len(names) :])
    chosen = chosen or any(option_of(word) == "--baselines" for word in rest)
    defaults: dict[str, Any] = {}
    known = {*get_type_hints(RunConfig), *_sections(asked, rest, saved)}
    saved = {key: value for key, value in saved.items() if key in known}
    for layer in [saved, *map(extended, layers), TRAIN if command == "train" else {}]:
        merge(defaults, layer)
    values = defaults | parsed(defaults)
    if networks_of_runs(values):
        # imports PyTorch
        from gendd.run.networks import with_folders

        with_folders(values)
    if command == "distill" and not chosen:
        values["baselines"] = _without_labels(values)
    config = from_dict(values, RunConfig)
    check_code([config.data.path or "", config.data.test_path or ""], "data.path")
    if flags.out == "":
        raise UserError("--out: expected a folder, got none; name one, or leave --out out.")
    config.out = flags.out or config.out
    if config.out is None:
        files = [*names, *(Path(file).stem for file in flags.config)]
        images = config.data.name.rpartition(":")[2]
        config.out = f"runs/{files[-1] if files else f'{command}-{images}'}"
    flags.recipe = names
    if flags.print_config:
        print(dump(config), end="")
        return None, flags
    return config, flags


def _by_section(words: list[str]) -> dict[str, list[str]]:
    """Group the arguments of dotted options by section; those outside any section under an empty name."""
    from gendd.config import section_types

    parts: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if (option := option_of(word)) is not None:
            section, _, key = option.removeprefix("--").partition(".")
            name = section if key or section in section_types() else ""
        parts.setdefault(name, []).append(word)
    return parts


def _laid_over(base: dict[str, Any], parts: dict[str, list[str]], command: str) -> dict[str, Any]:
    """Apply dotted options, grouped by section, to settings."""
    from jsonargparse import Namespace

    from gendd.config import RunConfig, one_line, parser_of, section_types
    from gendd.config.registry import settings_type

    kinds, untyped = section_types(), cast(Any, Namespace)
    found = dict(base)
    for name, given in parts.items():
        if name in kinds:
            parser = parser_of(kinds[name], name)
            below = untyped(**{name: untyped(**base.get(name, {}))})
        elif name:
            parser = parser_of(settings_type(name), name)
            below = parser.parse_object({name: base.get(name, {})})
        else:
            parser = parser_of(RunConfig, None)
            below = untyped(**{key: value for key, value in base.items() if not isinstance(value, dict)})
        try:
            found |= parser.parse_args(given, namespace=below).as_dict()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{one_line(error).rstrip('.')}. See: gendd {command} --help.") from error
    return found


def _with_lists(words: list[str]) -> list[str]:
    """Rewrite ``--baselines kd,kl`` as the list it means, ``--baselines=["kd", "kl"]``."""
    import yaml

    left, found = iter(words), []
    for word in left:
        option, given, value = word.partition("=")
        if option == "--baselines":
            value = value if given else next(left, "")
            try:
                names = yaml.safe_load(value) if value.startswith("[") else value.split(",")
            except yaml.YAMLError as error:
                raise UserError(f"baselines: expected names such as kd,kl, got {value!r}.") from error
            names = [name.strip() if isinstance(name, str) else name for name in names]
            word = f"--baselines={json.dumps([name for name in names if name != ''])}"
        found.append(word)
    return found


def _saved(out: str) -> dict[str, Any]:
    """Read the settings of the run to be resumed in a folder, which may have been moved since."""
    from gendd.config import load_config, to_dict

    file = user_path(out) / "config.yaml"
    if not os.path.isfile(file):
        raise UserError(f"--resume: expected a run in {out!r}, found none. Leave --resume out to start it.")
    return {**to_dict(load_config(file)), "out": out}


def _without_labels(values: dict[str, Any]) -> list[str]:
    """Return a recipe's baselines, without those that need labels if training may not use them."""
    baselines: list[str] = values["baselines"]
    if values["data"]["labels"]:
        return baselines
    from gendd.config.registry import method_class

    left = [name for name in baselines if not method_class(name).needs_labels]
    if left != baselines:
        dropped = ", ".join(name for name in baselines if name not in left)
        print(f"gendd: left out the recipe's baselines that need labels: {dropped}", file=sys.stderr)
    return left


def _asked(layers: list[dict[str, Any]], words: list[str]) -> dict[str, Any]:
    """Return the methods that files and options name, as configuration keys."""
    import yaml

    asked: dict[str, Any] = {}
    for layer in layers:
        asked |= {key: layer[key] for key in ("method", "baselines") if key in layer}
    for index, word in enumerate(words):
        key = (option_of(word) or "").removeprefix("--")
        if key in ("method", "baselines"):
            value = word.partition("=")[2] if "=" in word else " ".join(words[index + 1 : index + 2])
            asked[key] = yaml.safe_load(value) if key == "baselines" else value
    if not isinstance(asked.get("baselines", []), list):
        asked.pop("baselines")  # rejected later, with the same message as other values
    return asked


def _sections(asked: dict[str, Any], words: list[str], values: dict[str, Any]) -> tuple[str, ...]:
    """Return the sections of methods in which options or values set something."""
    from gendd.config import registry

    known = registry.sections(asked)
    named = {option.removeprefix("--").split(".")[0] for option in map(option_of, words) if option}
    return tuple(name for name in dict.fromkeys(known) if name in named or name in values)


def run_parser(command: str) -> ArgumentParser:
    """Return the typed parser of every dotted option of a run, for its help."""
    from jsonargparse import ArgumentParser

    from gendd.config import RunConfig

    parser = ArgumentParser(prog=f"gendd {command}", exit_on_error=False, add_help=False)
    parser.add_class_arguments(RunConfig, None, fail_untyped=True, skip={*fixed(command), "settings"})
    for action in parser._actions:
        if action.dest in _TEACHER_S:
            action.help = argparse.SUPPRESS
    return parser


def _help(command: str) -> str:
    flags = run_flags(command).format_help()
    parser = run_parser(command)
    for action in parser._actions:
        if action.dest.startswith("teacher_training"):
            action.help = argparse.SUPPRESS
    body = settings_help(parser)
    more = (
        ""
        if command == "train"
        else "\nTraining of a teacher without weights: --teacher_training.KEY for each --training.KEY.\n"
        "Settings of other methods, such as --kd.temperature: gendd methods NAME.\n"
    )
    return f"{flags}\nEvery setting is an option too, by its dotted name:\n\n{body}{more}"


def settings_help(parser: ArgumentParser) -> str:
    """Return the help of each setting of a parser."""
    body = parser.format_help().split("\n\n", 1)[1]
    # leave out jsonargparse's options for whole sections as files, whose names are short options here
    return re.sub(r"^ +--\S+ CONFIG +Path to a configuration file\.\n", "", body, flags=re.MULTILINE)


def _check_options(command: str, words: list[str], asked: dict[str, Any] | None = None) -> None:
    from gendd.config import keys
    from gendd.config.registry import names, settings_type

    known = [f"--{key}" for key in keys()]
    if command != "train":
        for section in _sections(asked or {}, words, {}):
            known += [f"--{key}" for key in keys(settings_type(section), f"{section}.")]
    flags = [option for action in run_flags(command)._actions for option in action.option_strings]
    unused = fixed(command) - {"out"} | ({*names()} if command == "train" else set())
    for word, following in pairwise([*words, ""]):
        name = option_of(word)
        if name is None:
            continue
        if name.removeprefix("--").split(".")[0] in unused:
            raise UserError(
                f"gendd {command}: expected no {name}, as it trains the student on labels alone; "
                "leave it out, or use gendd distill."
            )
        if name not in known:
            raise UserError(f"Unknown option {name!r}.{did_you_mean(name, known + flags)}")
        if "=" not in word and (not following or option_of(following)):
            raise UserError(f"{name.removeprefix('--')}: expected a value after {name}, got none; add it.")


def given_options(command: str, words: list[str]) -> dict[str, Any]:
    """Return only the settings that dotted options name, by section."""
    _check_options(command, words)
    values = _laid_over({}, _by_section(words), command)
    found: dict[str, Any] = {}
    for name in filter(None, map(option_of, words)):
        *sections, key = name.removeprefix("--").split(".")
        into, value = found, values
        for section in sections:
            into, value = into.setdefault(section, {}), value[section]
        into[key] = value[key]
    return found
