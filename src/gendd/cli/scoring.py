"""The ``evaluate`` command: score a finished run, or a network by name and weights."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

from gendd.cli.flags import dotted
from gendd.cli.parsing import COMMANDS, Parser, say_next
from gendd.config import DataConfig, EvaluationConfig, ModelConfig, from_dict, keys, one_line
from gendd.errors import UserError, did_you_mean
from gendd.files import check_run
from gendd.processes import launched_rank


@dataclass
class Scored:
    """A network scored without a run.

    Args:
        network: The network; its classes are those of its weights.
        data: The images.
        evaluation: How many of them to score.
    """

    network: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


# short options: the dotted option, its placeholder, its help
_SHORT = {
    "network": (
        "network.name",
        "NAME",
        "a network such as timm/resnet18, or the folder of a trained one",
    ),
    "weights": ("network.weights", "FILE", "its weights"),
    "data": ("data.name", "SET", "the images to score it on, or the path of a folder"),
}


def evaluate_command(words: list[str]) -> int:
    parser = Parser(
        prog="gendd evaluate",
        allow_abbrev=False,
        usage="gendd evaluate [RUN | --network NAME --weights FILE --data SET] [--readout NAME] [--json]",
        description=COMMANDS["evaluate"],
        epilog="With --network every setting of the network and the images is an option too: --network.mean, "
        "--network.pretrained, --data.path, … (listed as teacher and data by gendd distill --help-all).",
    )
    for name, (key, takes, told) in _SHORT.items():
        parser.add_argument(f"--{name}", metavar=takes, help=f"{told} (short for --{key})")
    parser.add_argument("--readout", help="linear, mean or sample; all by default")
    parser.add_argument("--json", action="store_true", help="print JSON")
    alone = any(word.split("=")[0] in ("--network", "--network.name") for word in words)
    if not alone or {"-h", "--help"} & set(words):
        parser.add_argument("run", metavar="RUN", help="the run's folder")
        given = parser.parse_args(words)
        if given.weights is not None or given.data is not None:
            raise UserError(
                "--weights, --data: expected with --network NAME alone, got with a run, which has its own; "
                "leave them out."
            )
        scores = _of_run(given.run, given.readout)
    else:
        given, rest = parser.parse_known_args(words)
        if given.readout is not None:
            raise UserError(f"--readout: expected none with --network, got {given.readout!r}; leave it out.")
        for name, (key, _, _) in _SHORT.items():
            rest += dotted(key, value) if (value := getattr(given, name)) else []
        scores = _of_network(rest)
    if launched_rank() > 0:
        return 0
    if given.json:
        print(json.dumps(scores, indent=2))
    else:
        _print(scores)
    if alone:
        say_next("network", next(iter(scores)))
    else:
        say_next("evaluate", given.run)
    return 0


def _print(scores: dict[str, dict[str, Any]]) -> None:
    from gendd.evaluation.long_tail import in_words

    width = max([8, *(len(name) + 2 for name in scores)])
    for name, values in scores.items():
        groups = values.pop("groups", None)
        shown = [_told(key, value) for key, value in values.items() if value is not None]
        print(f"{name:{width}}{'   '.join(shown)}")
        if groups is not None:
            print(f"{'':{width}}{in_words(groups)}")


def _told(key: str, value: float) -> str:
    return f"{key} {value:.3f}" if key in ("cosine", "nll", "ece") else f"{key} {value:.2f} %"


def _of_run(run: str, readout: Any) -> dict[str, dict[str, Any]]:
    # before PyTorch is imported, which takes seconds
    check_run(run)
    from gendd.run import evaluate_run

    return evaluate_run(run, readout, progress=sys.stderr.isatty())


def _of_network(words: list[str]) -> dict[str, dict[str, Any]]:
    from jsonargparse import ArgumentParser

    known = [f"--{key}" for key in keys(Scored)]
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        if option not in known:
            raise UserError(f"Unknown option {option!r}.{did_you_mean(option, known)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Scored, None, fail_untyped=True)
    try:
        values = parser.parse_args(words).as_dict()
    except Exception as error:
        raise UserError(f"{one_line(error, Scored).rstrip('.')}. See: gendd evaluate --help.") from error
    asked = from_dict(values, Scored)
    from gendd.files import check_code
    from gendd.run import evaluate_network

    check_code([asked.data.path or "", asked.data.test_path or ""], "data.path")
    found = evaluate_network(asked.network, asked.data, asked.evaluation.images, progress=sys.stderr.isatty())
    return {asked.network.name: found}
