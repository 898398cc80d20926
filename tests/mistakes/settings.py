"""Wrong values for every setting, generated from its type and rule, and contradictory settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

import gendd
from gendd.config import RunConfig, data, evaluation, method, model, readout, registry, training
from gendd.config.checks import Rule
from mistakes.case import Case, Made, Place

_RULES: dict[str, dict[str, Rule]] = {
    "data": data._RULES,
    "gendd": method._RULES,
    "readout": readout._RULES,
    "evaluation": evaluation._RULES,
    **dict.fromkeys(("teacher", "student"), model._RULES),
    **dict.fromkeys(("training", "teacher_training"), training._RULES),
}
_HUGE = 10**30
_NAN, _INFINITE = float("nan"), float("inf")


def _of_type(hint: Any) -> list[Any]:
    """Values that are not of a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ["nonsense", str(inner[0])[:-1] + "_", 3]
    if origin is list:
        return ["x", {"a": 1}, [{"a": 1}], *([each] for each in _of_type(inner[0])[:2])]
    if origin is tuple:
        return ["x", [1.0], [0.5, "a"], [_NAN, _NAN], [_HUGE, _HUGE]]
    if inner:
        return _of_type(inner[0])
    wrong: dict[type, list[Any]] = {
        int: ["many", 1.5, _HUGE, [1], True],
        float: ["fast", _NAN, _INFINITE, [1.0], {"a": 1}],
        bool: ["maybe", 2, [True]],
        str: [{"a": 1}, [1]],
    }
    return wrong[hint] + [None]


def _of_rule(rule: Rule | None, hint: Any) -> list[Any]:
    """A value of the type that is out of range, if there is one."""
    if rule is None:
        return []
    pair = get_origin(hint) is tuple
    for value in (-1, 0, 2, -0.5, 1.5, "x") if not pair else ([-1, -1], [2, 1], [0.5, 0.1]):
        try:
            # values that the rule can't compare are of another type
            if not rule.ok(value):
                return [value]
        except TypeError:
            continue
    return []


def _fields() -> Iterator[tuple[str, str, Any, Rule | None]]:
    """Section, key, type and rule of every setting; section "" is the run itself."""
    run = get_type_hints(RunConfig)
    for name, hint in run.items():
        if name == "settings":
            continue
        if not dataclasses.is_dataclass(hint):
            yield "", name, hint, None
            continue
        for key, inner in get_type_hints(hint).items():
            yield name, key, inner, _RULES[name].get(key)
    for name in registry.names():
        kind = registry.settings_type(name)
        if name not in run:
            for entry in dataclasses.fields(kind):
                yield name, entry.name, get_type_hints(kind)[entry.name], None


def _given(section: str, key: str, value: Any, way: str, place: Place) -> Made:
    """A wrong value as an option, in a file or in Python."""
    values: dict[str, Any] = {section: {key: value}} if section else {key: value}
    if section in registry.names() and section != "gendd":
        values["method"] = section
    if way == "option":
        dotted = f"{section}.{key}" if section else key
        more = [f"--method={section}"] if "method" in values and section else []
        text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)
        return place.distill(*more, f"--{dotted}={text.removesuffix(chr(10)).removesuffix('...').strip()}")
    if way == "file":
        return place.distill("--config", place.write("config.yaml", yaml.safe_dump(values)))
    return lambda: gendd.distill(**{"out": place.out, "overwrite": True, **values})


def _generated() -> Iterator[Case]:
    ways = ("option", "file", "python")
    number = 0
    for section, key, hint, rule in _fields():
        values = [*_of_rule(rule, hint), *_of_type(hint)]
        # only one of two sections of the same type
        twins = section in ("teacher", "teacher_training")
        for value in values[:1] if twins else values[number % 3 :: 3]:
            if (value is None and type(None) in get_args(hint)) or (section, key) == ("", "out"):
                continue
            number += 1
            # on the command line anything is a valid string, and null is the string null
            text = hint is str or str in get_args(hint)
            way = ways[number % 3] if not text else ways[1 + number % 2]

            def make(
                place: Place, section: str = section, key: str = key, value: Any = value, way: str = way
            ) -> Made:
                return _given(section, key, value, way, place)

            dotted = f"{section}.{key}" if section else key
            yield Case("settings", f"{dotted} = {value!r} ({way})", make, quick=number % 200 == 0)


# groups of dotted options that contradict each other
_AT_ODDS = [
    ["--training.epochs=5", "--training.warmup_epochs=5"],
    ["--training.precision=fp16"],
    ["--precision=fp8"],
    ["--training.device=cuda"],
    ["--training.device=mps"],
    ["--readout.guidance=2"],
    ["--readout.steps=99999999"],
    ["--readout=best"],
    ["--data.labels=false", "--gendd.refit=labels"],
    ["--data.labels=false", "--baselines=[kd]"],
    ["--data.labels=false", "--method=supervised", "--baselines=[]"],
    ["--data.labels=false", "--training.stage1_epochs=2", "--baselines=[]"],
    ["--data.imbalance=10", "--data.labels=false", "--data=webdataset", "--data.path=x"],
    ["--data.resampled=true"],
    ["--data.steps_per_epoch=5"],
    ["--data.train_images=99999"],
    ["--data.train_images=0"],
    ["--data.validation=0.00001"],
    ["--data.randaugment=rand-x9"],
    ["--data.name=digit"],
    ["--data.name="],
    ["--data.name=nothing.py:read"],
    ["--student.classes=3"],
    ["--student.dtype=bf16"],
    ["--student.compile=true"],
    ["--student.classifier=false"],
    ["--teacher.classes=3"],
    ["--teacher.classifier=false"],
    ["--gendd.token_width=0"],
    ["--method=gend"],
    ["--method="],
    ["--method=own.py:Own"],
    ["--baselines=[supervized]"],
    ["--baselines=supervized"],
    ["--baselines=[1]"],
    ["--method=kd", "--kd.temprature=3"],
    ["--seed=-1"],
    [f"--seed={2**64}"],
    [f"--data.split_seed={2**64}"],
    ["--data.split_seed=-1"],
    ["--recipe=cifar100/nothing"],
    ["--recipe="],
    ["--resume"],
    ["--settings.kd=1"],
    ["--data"],
    ["--training.lr"],
    ["--training.lr", "0.1", "0.2"],
    ["--unknown"],
    ["--training.unknown=3"],
    ["-x"],
    ["word"],
]


def _nine_times(one: str, other: str) -> str:
    return f"{other}: &{other} [{','.join([f'*{one}'] * 9)}]\n"


_FILES = [
    ("a list", "- 1\n- 2\n"),
    ("a word", "word"),
    ("empty", ""),
    ("tabs", "data:\n\tname: digits\n"),
    ("unclosed", "data: {name: digits"),
    ("a tag", "data: !!python/object/apply:os.system [ls]\n"),
    ("a date", "seed: 2001-99-99\n"),
    ("an endless anchor", "data: &a\n  name: *a\n"),
    ("many anchors", "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(map(_nine_times, "abcdefgh", "bcdefghi"))),
    ("deep", "a: " + "[" * 2000),
    ("not UTF-8", b"data:\n  path: caf\xe9\n"),
    ("of bytes", bytes(range(256))),
    ("an unknown section", "dato: {name: digits}\n"),
    ("an unknown key", "data: {nam: digits}\n"),
    ("a section that is none", "data: digits\n"),
    ("a number for a key", "1: 2\n"),
    ("null for a section", "data:\n"),
    ("an unknown recipe", "extends: nothing\n"),
    ("a number extended", "extends: 5\n"),
    ("numbers extended", "extends: [5]\n"),
    ("code unasked", "student: {name: 'net.py:net'}\n"),
    ("a command unasked", "data: {path: 'pipe:cat x'}\n"),
    ("two documents", "seed: 1\n---\nseed: 2\n"),
    ("an unknown alias", "seed: *a\n"),
]

# calls from Python
_CALLS: dict[str, Callable[[Place], object]] = {
    "an unknown section": lambda place: gendd.distill(**_over(place), dato={}),
    "a section that is text": lambda place: gendd.distill(**_over(place), training="fast"),
    "an unknown key": lambda place: gendd.distill(**_over(place), data={"nam": "digits"}),
    "a teacher that is a number": lambda place: gendd.distill(**_over(place), teacher=5),
    "a student that is empty": lambda place: gendd.distill(**_over(place), student=""),
    "data that is a number": lambda place: gendd.distill(**_over(place), data=5),
    "text for a number": lambda _: gendd.TrainingConfig(lr="fast"),  # type: ignore[arg-type]
    "text for a pair": lambda _: gendd.TrainingConfig(beta2="x"),  # type: ignore[arg-type]
    "one number for two": lambda _: gendd.DataConfig(crop_scale=(1.0,)),  # type: ignore[arg-type]
    "an endless number": lambda _: gendd.GenDDConfig(mixup=_INFINITE),
    "null for a number": lambda _: gendd.GenDDConfig(token_width=None),  # type: ignore[arg-type]
    "a readout that is none": lambda _: gendd.ReadoutConfig("best"),  # type: ignore[arg-type]
    "NaN for guidance": lambda _: gendd.ReadoutConfig(guidance=_NAN),
    "an unknown method": lambda _: gendd.RunConfig(method="gend"),
    "a seed that is text": lambda _: gendd.RunConfig(seed="x"),  # type: ignore[arg-type]
}


def _over(place: Place) -> dict[str, Any]:
    return {"out": place.out, "overwrite": True}


def cases() -> Iterator[Case]:
    yield from _generated()
    for words in _AT_ODDS:

        def make(place: Place, words: list[str] = words) -> Made:
            return place.distill(*words)

        yield Case("settings at odds", " ".join(words), make)
    for name, content in _FILES:

        def written(place: Place, content: str | bytes = content) -> Made:
            return place.distill("--config", place.write("config.yaml", content))

        yield Case("configuration files", name, written, quick=name != "deep")
    for name, call in _CALLS.items():

        def called(place: Place, call: Callable[[Place], object] = call) -> Made:
            return partial(call, place)

        yield Case("calls", name, called, quick=not name.startswith(("a teacher", "a student", "data")))
