"""The pages of the reference that are written from the code: every setting, every command."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import types
import typing
from typing import TYPE_CHECKING, Any, Literal, Union
from unittest.mock import patch

import docstring_parser

from gendd.cli import main
from gendd.cli.parsing import COMMANDS
from gendd.config import (
    DataConfig,
    EvaluationConfig,
    GenDDConfig,
    ModelConfig,
    ReadoutConfig,
    RunConfig,
    TrainingConfig,
)
from gendd.config.registry import method_class, names

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

SECTIONS: dict[str, type[Any]] = {
    "data": DataConfig,
    "teacher, student": ModelConfig,
    "gendd": GenDDConfig,
    "training, teacher_training": TrainingConfig,
    "readout": ReadoutConfig,
    "evaluation": EvaluationConfig,
}
_NAMES = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", type(None): "`null`"}
_NUMBERS = {2: "two"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for name, write in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=write()))
    return files


def configuration() -> str:
    """Every key with what it takes, its default and its meaning."""
    parts = [
        "# Settings",
        "Every key is an option of `gendd distill` by its dotted name (`--data.path pictures`), a key of a "
        "`--config` file and, by section, an argument of `gendd.distill`. `--print_config` shows what a run "
        "would take. Unknown keys are errors.",
        "## Run",
        settings(RunConfig, "", left_out={"settings", *(" ".join(SECTIONS).replace(",", "").split())}),
    ]
    for section, kind in SECTIONS.items():
        first, *others = section.split(", ")
        heading = " and ".join(f"`{name}`" for name in (first, *others))
        parts += [f"## {heading}", _meaning(kind), settings(kind, f"{first}.")]
    parts.append("## Other methods")
    for name in names():
        method = method_class(name)
        if name != "gendd":
            parts.append(f"### `{name}`\n\n{_inline(method.summary())}")
            if dataclasses.fields(method.Settings):
                parts.append(settings(method.Settings, f"{method.section()}."))
    return "\n\n".join(parts) + "\n"


def settings(kind: type[Any], prefix: str, left_out: typing.Collection[str] = ()) -> str:
    """A table of a dataclass's keys."""
    told = {each.arg_name: each.description or "" for each in _docstring(kind).params}
    hints = typing.get_type_hints(kind)
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for entry in dataclasses.fields(kind):
        if entry.name in left_out:
            continue
        key = prefix + entry.name
        cells = [f'<span id="{key}">`{key}`</span>', takes(hints[entry.name]), _default(entry)]
        lines.append("| " + " | ".join([*cells, _cell(told[entry.name])]) + " |")
    return "\n".join(lines)


def takes(hint: Any) -> str:
    """What a key takes, in words."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if kind in (Union, types.UnionType):
        return " or ".join(takes(each) for each in inner)
    if kind is list:
        return f"list of {takes(inner[0])}"
    if kind is tuple:
        return f"{_NUMBERS[len(inner)]} {takes(inner[0])}s"
    return _NAMES[hint]


def options() -> str:
    """What every command says of itself."""
    parts = ["# Options of every command", "All options except the [settings](configuration.md) of a run."]
    parts.append(f"```text\n{_help()}\n```")
    parts += [f"## gendd {command}\n\n```text\n{_help(command)}\n```" for command in COMMANDS]
    return "\n\n".join(parts) + "\n"


def _help(*command: str) -> str:
    """What --help prints; of a run's settings nothing."""
    out = io.StringIO()
    lines = patch.dict(os.environ, COLUMNS="84")
    with lines, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return out.getvalue().split("\nEvery setting is an option too")[0].strip()


def _docstring(kind: type[Any]) -> docstring_parser.Docstring:
    return docstring_parser.parse(kind.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)


def _meaning(kind: type[Any]) -> str:
    return _inline(_docstring(kind).short_description or "")


def _default(entry: dataclasses.Field[Any]) -> str:
    value = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def _inline(text: str) -> str:
    """Prose of a docstring as Markdown: its roles as code."""
    return re.sub(r":\w+:`", "`", " ".join(text.split()))


def _cell(text: str) -> str:
    """The same in a table, whose bars are no text outside code."""
    parts = re.split(r"(``.*?``|`.*?`)", _inline(text))
    return "".join(part if part.startswith("`") else part.replace("|", "\\|") for part in parts)


PAGES = {"configuration": configuration, "options": options}
