"""Configurations as dictionaries and YAML: strict reading, recipes, readable errors."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml

from gendd.config import registry
from gendd.config.checks import check_usable
from gendd.config.run import _OWN_SECTIONS, RunConfig
from gendd.errors import UserError, did_you_mean
from gendd.files import check_code, expanded, read_text
from gendd.recipes import recipe_path

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

C = TypeVar("C")
# key in a file that names the recipes it builds on; not a setting of a run
EXTENDS = "extends"

# fields of a run that are not a section or key of that name
_UNSPELLED = {"settings"}
# sections that a run has twice, or whose errors don't name the section
_SHARED = ("teacher", "student", "training", "teacher_training")

F = TypeVar("F", bound=Callable[..., Any])
# mypy considers classes unhashable
_cached: Callable[[F], F] = lru_cache(maxsize=64)  # type: ignore[assignment]
# sections by type, name in a run and values
_BUILT: dict[tuple[type[Any], str | None, str], Any] = {}
_MOST_BUILT = 1000
# the annotations are strings, which are slow to resolve
_hints = _cached(get_type_hints)


def keys(section: type[Any] = RunConfig, prefix: str = "") -> list[str]:
    """All valid dotted keys below ``section``, sections included; for a run, without its methods' keys."""
    return [prefix + key for key in _keys(section)]


@_cached
def _keys(section: type[Any]) -> tuple[str, ...]:
    found: list[str] = []
    hints = _hints(section)
    for entry in dataclasses.fields(section):
        if section is RunConfig and entry.name in _UNSPELLED:
            continue
        found.append(entry.name)
        if dataclasses.is_dataclass(hints[entry.name]):
            found += keys(hints[entry.name], f"{entry.name}.")
    return tuple(found)


def check_keys(
    values: dict[str, Any],
    section: type[Any] = RunConfig,
    prefix: str = "",
    root: type[Any] | None = None,
) -> None:
    """Raise :class:`UserError` for the first key unknown to ``section``, or the first null not allowed."""
    known = keys(root or section) if root is not None or not prefix else keys(section, prefix)
    hints = _hints(section)
    for key, value in values.items():
        if section is RunConfig and key not in hints and key in registry.sections(values):
            _check_section(key, value)
            continue
        if key not in hints or prefix + str(key) not in known:
            name = prefix + str(key)
            choices = [*known, *registry.names()] if section is RunConfig else known
            raise UserError(f"Unknown config key {name!r}.{did_you_mean(name, choices)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise UserError(f"{prefix}{key}: expected a section (key: value lines), got {value!r}.")
            check_keys(value, hints[key], f"{prefix}{key}.", root or section)
        elif value is None and type(None) not in get_args(hints[key]):
            # jsonargparse accepts null for any type
            raise UserError(f"{prefix}{key}: expected {_words(hints[key])}, got null.")
        else:
            check_usable(f"{prefix}{key}", value)


def _check_section(name: str, values: Any) -> None:
    """Raise :class:`UserError` if values are not valid settings of the method of that name."""
    if not isinstance(values, dict):
        raise UserError(f"{name}: expected a section (key: value lines), got {values!r}.")
    check_keys(values, registry.settings_type(name), f"{name}.")


def to_dict(config: Any) -> dict[str, Any]:
    """Convert the config to plain nested dictionaries and lists, ready for YAML or JSON."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))
    if isinstance(config, RunConfig):
        # each method's settings become a section of its name, beside the other sections
        sections = plain.pop("settings")
        place = list(plain).index("gendd") + 1
        items = list(plain.items())
        plain = dict([*items[:place], *sections.items(), *items[place:]])
    return plain


def with_settings(config: RunConfig) -> RunConfig:
    """Return the configuration with the complete settings of the methods it names, and of no others."""
    sections = {}
    for name in dict.fromkeys([*config.baselines, config.method]):
        section, kind = registry.section(name), registry.settings_type(name)
        if section not in _OWN_SECTIONS and dataclasses.fields(kind):
            sections[section] = config.settings.get(section) or kind()
    return dataclasses.replace(config, settings=sections)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def from_dict(values: dict[str, Any], section: type[C]) -> C:
    """Build a config from plain dictionaries; keys not given keep their defaults.

    Raises:
        UserError: an unknown key, or a value of the wrong type or range.
    """
    check_keys(values, section)
    if section is not RunConfig:
        return _section(values, section)
    # the defaults of a run's teacher and student differ
    kinds, defaults = section_types(), to_dict(RunConfig())
    settings = {
        name: _section(value, registry.settings_type(name), name)
        for name, value in values.items()
        if name not in _hints(RunConfig)
    }
    parts = {
        name: _section(defaults[name] | value, kinds[name], name)
        for name, value in values.items()
        if name in kinds
    }
    own = {name: value for name, value in values.items() if name not in {*settings, *parts}}
    # not kept, as the methods that a run may name can change
    return _built(own, section, given={**parts, "settings": settings})


@_cached
def section_types() -> dict[str, type[Any]]:
    """Dataclasses of a run's sections by name, without its methods' settings."""
    hints: dict[str, type[Any]] = _hints(RunConfig)
    return {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}


def _section(values: dict[str, Any], section: type[C], name: str | None = None) -> C:
    """Like :func:`_built`, but parses the same values once: a run builds the same sections several times."""
    key = section, name, repr(values)
    if key not in _BUILT:
        if len(_BUILT) >= _MOST_BUILT:
            _BUILT.clear()
        _BUILT[key] = _built(values, section, name)
    return copy.deepcopy(cast(C, _BUILT[key]))


def _built(
    values: dict[str, Any], section: type[C], name: str | None = None, given: dict[str, Any] | None = None
) -> C:
    """Build a section from values whose keys were checked; ``name`` is its name in a run, if it has one."""
    parser = parser_of(section, name)
    try:
        parsed = parser.instantiate(parser.parse_object(values if name is None else {name: values}))
        parsed = parsed if name is None or not dataclasses.fields(cast(Any, section)) else parsed[name]
        if name is not None:
            return parsed if isinstance(parsed, section) else section()
        fields = {key: getattr(parsed, key) for key in _hints(section) if key in parsed}
        return section(**fields, **(given or {}))
    except UserError as error:
        if name in _SHARED:
            raise UserError(f"{name}.{str(error).removeprefix('training.')}") from error
        raise
    except Exception as error:
        raise UserError(one_line(error, section, name)) from error


@_cached
def parser_of(section: type[Any], name: str | None) -> ArgumentParser:
    """Typed parser of a section, cached as it is slow to build; for a run, without its sections.

    Sections are parsed one at a time: the time a parser takes grows quadratically with its settings.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(
        section,
        name,
        fail_untyped=True,
        skip={*_UNSPELLED, *section_types()} if section is RunConfig else set(),
    )
    return parser


def load_config(path: Path) -> RunConfig:
    """Load a configuration file.

    Raises:
        UserError: it can't be read, or is not a valid configuration.
    """
    return from_dict(read_yaml(path), RunConfig)


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings of a YAML file merged over those it extends; raises like :func:`load_config`."""
    return extended(read_mapping(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """Contents of a YAML file itself, ``extends`` included, keys checked; raises like :func:`load_config`."""
    values = dict(expanded(plain_values(path, f"Config {str(path)!r}")))
    check_keys({key: value for key, value in values.items() if key != EXTENDS})
    return values


def _parsed(text: str) -> Any:
    """Parse YAML as ``yaml.safe_load`` does, which drops all but the last of a key that is repeated.

    Raises:
        ValueError: A mapping repeats a key.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        _check_repeats(node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _check_repeats(root: yaml.Node | None) -> None:
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            nodes += node.value
            continue
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in keys:
                    line = key.start_mark.line + 1
                    raise ValueError(f"line {line} repeats the key {key.value!r}; leave one out.")
                keys.add(key.value)
            nodes.append(value)


def plain_values(path: Path, name: str, see: str = "gendd distill --print_config") -> dict[str, Any]:
    """Read the mapping in a YAML file from an untrusted source.

    Args:
        path: The file.
        name: Its name in error messages.
        see: What shows how such a file looks.

    Raises:
        UserError: it can't be read, is not a mapping, or names code that isn't trusted.
    """
    try:
        values = _parsed(read_text(path))
    except Exception as error:  # PyYAML raises whatever its constructors do
        reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        if isinstance(error, OSError):
            reason = f"{error.strerror}; check the path."
        elif isinstance(error, (UnicodeDecodeError, RecursionError)):
            reason = (
                "it is not UTF-8." if isinstance(error, UnicodeDecodeError) else "it is nested too deeply."
            )
        raise UserError(f"{name}: expected a readable YAML file; {reason}") from error
    if not isinstance(values, dict):
        found = {type(None): "nothing", list: "a list", str: "text"}.get(type(values), repr(values))
        raise UserError(f"{name}: expected key: value lines, got {found}; see {see}.")
    if not _is_finite(values):
        raise UserError(
            f"{name}: expected a few nested sections, got recursive or nested anchors; write them out."
        )
    check_code(values, name)
    return values


def _is_finite(values: Any) -> bool:
    """Whether values are nested no deeper than settings can be: YAML anchors may be recursive."""
    level = [values]
    for _ in range(20):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
        ]
        if not level or len(level) > 100_000:
            return not level
    return False


def extended(values: dict[str, Any], below: tuple[str, ...] = ()) -> dict[str, Any]:
    """Merge values over the shipped recipes that they extend; later recipes override earlier ones.

    Args:
        values: A file's mapping, which may hold ``extends: NAME`` or ``extends: [NAME, …]``.
        below: Recipes already being extended.

    Raises:
        UserError: ``extends`` is not a list of recipe names, or a recipe extends itself.
    """
    own = dict(values)
    names = own.pop(EXTENDS, [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{EXTENDS}: expected a recipe's name or a list of them, got {names!r}.")
    merged: dict[str, Any] = {}
    for name in names:
        if name in below:
            way = " → ".join([*below[below.index(name) :], name])
            raise UserError(f"{EXTENDS}: expected recipes that don't extend themselves, got {way}.")
        merge(merged, extended(read_mapping(recipe_path(name)), (*below, name)))
    merge(merged, own)
    return merged


def merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    """Merge nested ``values`` into ``into``, in place."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def one_line(error: BaseException, section: type[Any] = RunConfig, name: str | None = None) -> str:
    """Message of an exception on one line; jsonargparse's are reworded like the other messages.

    Args:
        error: The exception.
        section: The section whose keys it may name.
        name: Name of the section as prefix of its keys.
    """
    text = " ".join(str(error).split())
    if required := re.search(r"arguments are required: ([\w., ]+)", text):
        return f"expected a value of {required[1]}, found none; add it."
    key = re.search(r"[Kk]ey \"([\w.]+)\"", text)
    values = re.findall(r"(?:Got|Given) value: (.*?)(?= Given value| Got value| - |$)", text)
    if key is None or not values:
        return text
    own = key[1] if name is None else key[1].removeprefix(f"{name}.")
    return f"{key[1]}: expected {_expected(own, section)}, got {values[-1]}."


def _expected(key: str, section: type[Any]) -> str:
    """Describe in words which values a dotted key of a section takes."""
    hint: Any = section
    name, _, rest = key.partition(".")
    if section is RunConfig and rest and name not in _hints(RunConfig) and name in registry.names():
        hint, key = registry.settings_type(name), rest
    for part in key.split("."):
        hint = _hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    return "another type" if hint is None else _words(hint)


_PLURAL = {int: "integers", float: "numbers"}


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is list:
        return f"a list of {_PLURAL.get(inner[0]) or _words(inner[0])}"
    if origin is dict:
        return "a section"
    if origin is tuple:
        return "[" + ", ".join(map(_words, inner)) + "]"
    if inner:
        return " or ".join(map(_words, inner))
    names = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def dump(config: RunConfig) -> str:
    """Dump the config as YAML, with every key resolved."""
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    return text
