"""Finished runs and students that were truncated, corrupted or edited."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from safetensors.torch import load_file, save_file

from mistakes.case import Case, Made, Place

# every command that reads a run
_COMMANDS: dict[str, Callable[[Place, str], list[str]]] = {
    "predict": lambda place, run: ["predict", run, str(place.images / "test")],
    "evaluate": lambda _, run: ["evaluate", run],
    "export": lambda _, run: ["export", run, "--to", "safetensors"],
    "probe": lambda _, run: ["probe", run],
    "--student": lambda place, run: place.distill("--student", run),
    "--teacher": lambda place, run: place.distill("--teacher", run),
    "--student.weights": lambda place, run: place.distill(f"--student.weights={run}"),
    "--resume": lambda _, run: ["distill", "--out", run, "--resume"],
}
_STUDENT, _CONFIG, _METRICS = "student/config.json", "config.yaml", "metrics.json"
_WEIGHTS = "student/model.safetensors"
# the commands that read each file
_READERS = {
    _STUDENT: ("predict", "evaluate", "export", "probe", "--student", "--teacher"),
    _WEIGHTS: ("predict", "evaluate", "export", "probe", "--student", "--teacher", "--student.weights"),
    _CONFIG: ("evaluate", "probe", "--resume"),
    _METRICS: ("evaluate", "probe"),
}
_SPOILED: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    # before a colon: half of a YAML file can be one that is complete
    "cut": lambda whole: whole[: whole.rindex(b":", 0, len(whole) // 2)],
    "of zeros": lambda whole: bytes(len(whole)),
    "garbled": lambda whole: bytes(each ^ 0x55 for each in whole),
    "not UTF-8": lambda whole: b"\xff\xfe" + whole,
    "a list": lambda _: b"[1, 2]",
    "a number": lambda _: b"5",
    "null": lambda _: b"null",
    "an empty section": lambda _: b"{}",
    "deep": lambda _: b"[" * 5000,
}

# invalid values, by dotted key in the student's config.json
_FIELDS: dict[str, list[Any]] = {
    "format": [None, 2, "1", [1]],
    "backbone": [None, "cifar/resnet8", [], {}],
    "backbone.name": [None, 5, "", "cifar/resnet9", "nothing", "net.py:network", ["a"]],
    "backbone.num_classes": [None, "many", -1, 0, 3, 10**7, 10**30, 1.5, [10]],
    "backbone.in_channels": [None, 0, -1, 2, 3, 10**9, "one"],
    "backbone.mean": [None, 0.5, [], [0.5, 0.5], ["a"], {"": 1}, [1e999]],
    "backbone.std": [None, [], [0], [-1], [float("nan")], "x"],
    "backbone.feature": [5, "nothing", ["a"]],
    "backbone.input_size": [0, -1, "x", 10**9, [8]],
    "backbone.channels": [0, 7, "x", 10**9],
    "backbone.classifier": ["perhaps", 5],
    "backbone.config": [5, [1]],
    "backbone.projector": [5, {}, {"width": 64}, {"width": 10**9, "hidden": 4}, {"width": 64, "hidden": "x"}],
    "backbone.unknown": [1],
    "generator": [5, [], {}, "none"],
    "generator.condition_width": [None, 0, -1, 3, 10**9, 10**30, "x"],
    "generator.feature_width": [None, 0, 7, 60_000, 10**30, "x"],
    "generator.num_classes": [0, 7, 10**7, 10**30, "x", [10]],
    "generator.mean_time": [-1, 10**6, 0.5, "x"],
    "generator.settings": [None, 5, []],
    "generator.settings.head_depth": [None, 0, 101, 10**30, "deep", 100],
    "generator.settings.head_width": [0, 65_000, 10**9, "x"],
    "generator.settings.token_width": [None, 0, -5, "x"],
    "generator.settings.timesteps": [None, 0, 1, 10**9, "x"],
    "generator.settings.prediction": [None, "x", 5],
    "generator.settings.unknown": [1],
    "readout": [None, 5, "mean", []],
    "readout.name": [None, "best", 5, ["mean"]],
    "readout.sampler": [None, "euler", 5],
    "readout.steps": [None, 0, -1, 10**30, "x"],
    "readout.num_samples": [None, 0, -1, "x", 1.5],
    "readout.guidance": [None, float("nan"), "x"],
    "readout.temperature": [-1, float("inf"), "x"],
    "readout.eta": [-1, 2, "x"],
    "readout.unknown": [1],
    "linear": [None, 1, "yes"],
    "info": [None, 5, [], "x"],
    "info.image_size": [0, -1, 10**9, "x", [8], 8.5],
    "info.framing": [0, -1, 2, "x", 1e-9],
    "info.class_names": [5, {"a": 1}, "ab"],
    "info.teacher_class_names": [5, {"a": 1}],
}


def spoiled(place: Place, file: str, change: Callable[[bytes], bytes | None]) -> str:
    """A copy of the run with a file changed."""
    run = place.copy(place.run)
    content = change((run / file).read_bytes())
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_bytes(content)
    return str(run)


def _set(dotted: str, value: Any) -> Callable[[bytes], bytes]:
    def change(whole: bytes) -> bytes:
        values = json.loads(whole)
        *sections, last = dotted.split(".")
        inner = values
        for section in sections:
            inner = inner[section]
        inner[last] = value
        return json.dumps(values).encode()

    return change


def _reshaped(place: Place) -> str:
    run = place.copy(place.run)
    state = load_file(run / _WEIGHTS)
    state["generator.norm.weight"] = state["generator.norm.weight"][:-1].clone()
    save_file(state, run / _WEIGHTS)
    return str(run)


def _lacking(place: Place) -> str:
    run = place.copy(place.run)
    state = load_file(run / _WEIGHTS)
    save_file({key: value for key, value in state.items() if not key.startswith("backbone.")}, run / _WEIGHTS)
    return str(run)


def _configured(dotted: str, value: Any) -> Callable[[Place], str]:
    """A copy whose config.yaml names something that no longer exists, or never did."""

    def make(place: Place) -> str:
        run = place.copy(place.run)
        config = yaml.safe_load((run / _CONFIG).read_text(encoding="utf-8"))
        section, key = dotted.split(".")
        config[section][key] = value
        (run / _CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")
        return str(run)

    return make


def _emptied(*names: str) -> Callable[[Place], str]:
    def make(place: Place) -> str:
        run = place.copy(place.run)
        for name in names:
            (run / name).unlink()
        return str(run)

    return make


_RUNS: dict[str, tuple[Callable[[Place], str], tuple[str, ...]]] = {
    "weights of another shape": (_reshaped, _READERS[_WEIGHTS][:4]),
    "weights without the network": (_lacking, _READERS[_WEIGHTS]),
    "no student": (_emptied(_WEIGHTS, _STUDENT), ("predict", "evaluate", "export", "probe")),
    "unknown images": (_configured("data.name", "digit"), ("evaluate", "probe")),
    "other images": (_configured("data.name", "folder"), ("evaluate", "probe")),
    "a device that is not there": (_configured("training.device", "cuda"), ("evaluate", "probe")),
}


def cases() -> Iterator[Case]:
    number = 0
    for file, readers in _READERS.items():
        for row, (name, change) in enumerate(_SPOILED.items()):
            # in turn
            for command in (readers * 2)[row % len(readers) :][:2]:
                if (file, name) == (_CONFIG, "an empty section"):  # a run of defaults
                    continue
                number += 1

                def damaged(
                    place: Place,
                    command: str = command,
                    file: str = file,
                    change: Callable[[bytes], bytes | None] = change,
                ) -> Made:
                    return _COMMANDS[command](place, spoiled(place, file, change))

                quick = command in ("predict", "evaluate") and number % 5 == 0
                yield Case("runs", f"{command}, {file} {name}", damaged, quick)
    commands = ("predict", "export", "evaluate")
    for dotted, values in _FIELDS.items():
        for value in values:
            number += 1

            def edited(
                place: Place,
                command: str = commands[number % 3],
                dotted: str = dotted,
                value: Any = value,
            ) -> Made:
                return _COMMANDS[command](place, spoiled(place, _STUDENT, _set(dotted, value)))

            yield Case("students", f"{dotted} = {value!r} ({commands[number % 3]})", edited, number % 12 == 0)
    for name, (make, readers) in _RUNS.items():
        for command in readers:

            def ruined(place: Place, command: str = command, make: Callable[[Place], str] = make) -> Made:
                return _COMMANDS[command](place, make(place))

            yield Case("runs", f"{command}, {name}", ruined)
