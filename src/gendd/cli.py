"""The command line. Commands parse, call the library and print; they hold no logic of their own."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gendd.errors import UserError, did_you_mean
from gendd.recipes import is_base, recipe_path, recipes, summary

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from gendd.config import RunConfig

_COMMANDS = {
    "distill": "distil a teacher into a student; without arguments the recipe 'digits', end to end",
    "train": "train a model on labels alone (a teacher, or a recipe's student for comparison)",
    "evaluate": "score a finished run on its test images",
    "probe": "fit the linear readout of a finished run anew and keep the better one",
    "predict": "classify image files with a student",
    "export": "write a finished student as ONNX, for torch.export, for timm or as plain safetensors",
    "push": "upload a finished student to the Hugging Face Hub",
    "recipes": "list the recipes, the published experiments among them",
    "models": "list the networks",
    "methods": "list the methods, or what can be set of one",
    "compare": "compare methods as a file says: rates, seeds, tables and a report",
    "import-released": "make a run of a checkpoint of the authors' released code",
    "verify": "recompute the method's reference numbers on this machine",
}
# what 'gendd train' is, whatever a recipe says
_TRAIN: dict[str, Any] = {"method": "supervised", "baselines": []}
# what of a recipe has no part in it
_UNUSED = ("teacher", "teacher_training", "gendd", "readout")
# options that are short for a dotted one, and what they take
_SHORT = {
    "teacher": ("teacher.name", "NETWORK", "the teacher: a name (gendd models lists them) or a run's folder"),
    "student": ("student.name", "NETWORK", "the student, likewise"),
    "data": ("data.name", "SET", "the images: digits, cifar10, folder, …"),
    "readout": ("readout.name", "{linear,mean,sample,auto}", "how the finished student gives its logits"),
    "precision": ("training.precision", "{auto,fp32,bf16,fp16}", "numbers the student is trained in"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (2 for a user's mistake, 130 for Ctrl-C)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
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
    if command not in _COMMANDS:
        raise UserError(f"Unknown command {command!r}.{did_you_mean(command, _COMMANDS)} See: gendd --help.")
    if command in ("distill", "train"):
        return _execute(command, rest)
    handlers = {
        "evaluate": _evaluate,
        "probe": _probe,
        "predict": _predict,
        "export": _export,
        "push": _push,
        "recipes": _recipes,
        "models": _models,
        "methods": _methods,
        "compare": _compare,
        "import-released": _import_released,
        "verify": _verify,
    }
    return handlers[command](rest)


def _help() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: gendd COMMAND [OPTION …]",
            "",
            "Generative Distribution Distillation: small, fast image models nearly as good as large ones.",
            "",
            *lines,
            "",
            "gendd COMMAND --help tells a command's options; gendd --version the version.",
        ]
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}. See: {self.prog} --help.")


def _execute(command: str, words: list[str]) -> int:
    config, flags = parse_run(command, words)
    if config is None:
        return 0
    # after the options: these take seconds to load
    from rich.console import Console

    from gendd import report
    from gendd.run import execute

    run = execute(config, overwrite=flags.overwrite, resume=flags.resume)
    console = Console()
    report.print_table(run.metrics, console)
    console.print(f"report  {run.report}\nstudent {run.folder / 'student'}", highlight=False, soft_wrap=True)
    best = run.metrics["run"].get("best")
    if best is not None and best["method"] != config.method:
        found = f"best on validation images: {best['method']}, {best['percent']:.2f} %"
        console.print(f"{found} ({run.folder / best['folder'] / 'student'})", highlight=False, soft_wrap=True)
    return 0


def parse_run(command: str, words: list[str]) -> tuple[RunConfig | None, argparse.Namespace]:
    """The configuration that the words after ``gendd distill`` or ``gendd train`` mean, and their flags.

    Later settings win: defaults, recipe, ``--config`` files, dotted options. ``distill`` without a
    recipe, a file or another set of images is the recipe ``digits``; ``train`` takes the student of what
    is given, and neither its method nor its baselines. The configuration is None where only printing was
    asked for.

    Raises:
        UserError: a setting that is unknown, ill-typed or out of range, or no recipe or file of a name.
    """
    from gendd.config import (
        RunConfig,
        dump,
        extended,
        from_dict,
        load_config,
        merge,
        one_line,
        read_mapping,
        to_dict,
    )

    flags, rest = _run_flags(command).parse_known_args(words)
    rest += _in_full(command, flags)
    help_asked = any(word in ("-h", "--help") for word in rest)
    if help_asked:
        print(_run_help(command))
        return None, flags
    if flags.resume and flags.out is not None and not rest and not flags.config and not flags.recipe:
        saved = Path(flags.out) / "config.yaml"
        if not saved.is_file():
            raise UserError(
                f"--resume: expected a run in {flags.out!r}, found none. Leave --resume out to start it."
            )
        # the folder may have been moved since
        return dataclasses.replace(load_config(saved), out=flags.out), flags
    names = list(flags.recipe)
    layers = [read_mapping(source) for source in [*map(recipe_path, names), *map(Path, flags.config)]]
    asked = _asked(layers, rest)
    _check_options(command, rest, asked)

    def parsed(values: dict[str, Any]) -> dict[str, Any]:
        """The settings of files with the options laid over them."""
        base = to_dict(from_dict(values, RunConfig))
        for key in _fixed(command):
            base.pop(key, None)
        parser = run_parser(command, _sections(asked, rest, base))
        try:
            found: dict[str, Any] = parser.parse_args(rest, namespace=parser.parse_object(base)).as_dict()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{one_line(error)} See: gendd {command} --help.") from error
        return found

    # the recipe's settings suit no other images
    if command == "distill" and not layers and parsed({})["data"]["name"] == "digits":
        names = ["digits"]
        layers = [read_mapping(recipe_path("digits"))]
    chosen = any("baselines" in layer for layer in layers[len(names) :])
    chosen = chosen or any(_option(word) == "--baselines" for word in rest)
    defaults: dict[str, Any] = {}
    for layer in [*map(extended, layers), _TRAIN if command == "train" else {}]:
        merge(defaults, layer)
    values = defaults | parsed(defaults)
    if command == "distill" and not chosen:
        values["baselines"] = _without_labels(values)
    config = from_dict(values, RunConfig)
    config.out = flags.out or config.out
    if config.out is None:
        files = [*names, *(Path(file).stem for file in flags.config)]
        config.out = f"runs/{files[-1] if files else f'{command}-{config.data.name}'}"
    if flags.print_config:
        print(dump(config), end="")
        return None, flags
    return config, flags


def _fixed(command: str) -> set[str]:
    """Keys that are no dotted options of a command."""
    return {"out", *_TRAIN, *_UNUSED} if command == "train" else {"out"}


def _in_full(command: str, flags: argparse.Namespace) -> list[str]:
    """The dotted options that the short ones given stand for."""
    found = []
    for short, (key, _, _) in _short(command).items():
        value = getattr(flags, short)
        if value is None:
            continue
        if short in ("teacher", "student") and Path(value).is_dir():
            from gendd.models.weights import network_of

            found += [f"--{short}.{name}={part}" for name, part in network_of(value).items()]
        else:
            found.append(f"--{key}={value}")
    return found


def _short(command: str) -> dict[str, tuple[str, str, str]]:
    """The short options of a command."""
    return {name: told for name, told in _SHORT.items() if told[0].split(".")[0] not in _fixed(command)}


def _without_labels(values: dict[str, Any]) -> list[str]:
    """The baselines of a recipe that are left where training may not see labels."""
    baselines: list[str] = values["baselines"]
    if values["data"]["labels"]:
        return baselines
    from gendd.config.registry import method_class

    left = [name for name in baselines if not method_class(name).needs_labels]
    if left != baselines:
        dropped = ", ".join(name for name in baselines if name not in left)
        print(f"gendd: left out the recipe's baselines that need labels: {dropped}", file=sys.stderr)
    return left


def _run_flags(command: str) -> _Parser:
    parser = _Parser(
        prog=f"gendd {command}", add_help=False, allow_abbrev=False, description=_COMMANDS[command]
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        action="append",
        default=[],
        help="start from a shipped recipe (gendd recipes lists them); a further one is laid over it",
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
    parser.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")
    parser.add_argument("--print_config", action="store_true", help="print the resolved settings and stop")
    return parser


def _asked(layers: list[dict[str, Any]], words: list[str]) -> dict[str, Any]:
    """The methods that files and options name, as a configuration does."""
    import yaml

    asked: dict[str, Any] = {}
    for layer in layers:
        asked |= {key: layer[key] for key in ("method", "baselines") if key in layer}
    for index, word in enumerate(words):
        key = (_option(word) or "").removeprefix("--")
        if key in ("method", "baselines"):
            value = word.partition("=")[2] if "=" in word else " ".join(words[index + 1 : index + 2])
            asked[key] = yaml.safe_load(value) if key == "baselines" else value
    if not isinstance(asked.get("baselines", []), list):
        asked.pop("baselines")  # refused later, in the words of the others
    return asked


def _sections(asked: dict[str, Any], words: list[str], values: dict[str, Any]) -> list[str]:
    """The sections of methods that options or values set something in."""
    from gendd.config import registry

    known = registry.sections(asked)
    named = {option.removeprefix("--").split(".")[0] for option in map(_option, words) if option}
    return [name for name in dict.fromkeys(known) if name in named or name in values]


def run_parser(command: str, sections: Iterable[str] = ()) -> ArgumentParser:
    """The typed parser of every dotted option of a run, and of those of some methods' sections."""
    from jsonargparse import ArgumentParser

    from gendd.config import RunConfig
    from gendd.config.registry import settings_type

    parser = ArgumentParser(prog=f"gendd {command}", exit_on_error=False, add_help=False)
    parser.add_class_arguments(RunConfig, None, fail_untyped=True, skip={*_fixed(command), "settings"})
    for name in sections:
        parser.add_class_arguments(settings_type(name), name, fail_untyped=True)
    return parser


def _run_help(command: str) -> str:
    flags = _run_flags(command).format_help()
    settings = run_parser(command)
    body = _settings_help(settings)
    more = (
        ""
        if command == "train"
        else "\nThe settings of other methods, --kd.temperature: gendd methods NAME.\n"
    )
    return f"{flags}\nEvery setting is an option too, by its dotted name:\n\n{body}{more}"


def _settings_help(parser: ArgumentParser) -> str:
    """What a parser of settings says of each."""
    body = parser.format_help().split("\n\n", 1)[1]
    # sections given as files of their own are the short options here
    return re.sub(r"^ +--\S+ CONFIG +Path to a configuration file\.\n", "", body, flags=re.MULTILINE)


def _check_options(command: str, words: list[str], asked: dict[str, Any] | None = None) -> None:
    from gendd.config import keys
    from gendd.config.registry import names, settings_type

    known = [f"--{key}" for key in keys()]
    if command != "train":
        for section in _sections(asked or {}, words, {}):
            known += [f"--{key}" for key in keys(settings_type(section), f"{section}.")]
    flags = [option for action in _run_flags(command)._actions for option in action.option_strings]
    unused = _fixed(command) - {"out"} | ({*names()} if command == "train" else set())
    for name in filter(None, map(_option, words)):
        if name.removeprefix("--").split(".")[0] in unused:
            raise UserError(
                f"gendd {command}: expected no {name}, as it trains the student on labels alone; "
                "leave it out, or use gendd distill."
            )
        if name not in known:
            raise UserError(f"Unknown option {name!r}.{did_you_mean(name, known + flags)}")


def _option(word: str) -> str | None:
    """The option that a word of the command line names, ``--key`` of ``--key=value`` and ``--key+=value``."""
    return word.split("=")[0].rstrip("+") if word.startswith("--") else None


def _evaluate(words: list[str]) -> int:
    parser = _Parser(prog="gendd evaluate", description=_COMMANDS["evaluate"])
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--readout", help="linear, mean or sample; all by default")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(words)
    from gendd.evaluation.long_tail import in_words
    from gendd.run import evaluate_run

    scores = evaluate_run(given.run, given.readout, progress=sys.stderr.isatty())
    if given.json:
        print(json.dumps(scores, indent=2))
        return 0
    width = max([8, *(len(name) + 2 for name in scores)])
    for name, values in scores.items():
        groups = values.pop("groups", None)
        shown = [
            f"{key} {value:.3f}" if key == "cosine" else f"{key} {value:.2f} %"
            for key, value in values.items()
            if value is not None
        ]
        print(f"{name:{width}}{'   '.join(shown)}")
        if groups is not None:
            print(f"{'':{width}}{in_words(groups)}")
    return 0


def _probe(words: list[str]) -> int:
    parser = _Parser(
        prog="gendd probe",
        description=f"{_COMMANDS['probe']}: the student stays as it is, a linear classifier is fitted to its "
        "features of the training images, and the better of the two on the validation images stays. Its "
        "figures, model card and report follow.",
        epilog="A run that saw no labels (data.labels false) is fitted to its teacher's predictions, else to "
        "those of readout mean. Labels are refused there unless --allow-labels is given, and the figures of "
        "its readout linear, and its model card, are then those of a student that saw labels.",
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--target",
        metavar="{labels,teacher,mean}",
        help="what it is fitted to (default: labels where the run may see them, else teacher, else mean)",
    )
    parser.add_argument(
        "--allow-labels", action="store_true", help="--target labels for a run that saw no labels"
    )
    parser.add_argument(
        "--train-images", metavar="N", type=int, help="at most so many training images (default: all)"
    )
    parser.add_argument(
        "--device", metavar="{auto,cpu,cuda,mps}", help="where to compute (default: as the run was)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(words)
    from gendd.run import probe_run

    try:
        probed = probe_run(
            given.run,
            given.target,
            train_images=given.train_images,
            allow_labels=given.allow_labels,
            device=given.device,
            progress=sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        print("gendd: interrupted; the run is as it was.", file=sys.stderr)
        return 130
    print(json.dumps(probed.as_dict(), indent=2) if given.json else probed)
    return 0


def _predict(words: list[str]) -> int:
    parser = _Parser(prog="gendd predict", description=_COMMANDS["predict"])
    parser.add_argument("run", metavar="RUN", help="a run's folder, a student's folder, or a Hub id")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files or directories of them")
    parser.add_argument("--readout", help="linear, mean or sample; the student's own by default")
    parser.add_argument("--top", type=int, default=5, help="classes an image (default: 5)")
    parser.add_argument(
        "--uncertainty",
        metavar="N",
        type=int,
        default=0,
        help="tell the entropy, its parts (nats) and the spread of N generated features too, such as 32",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(words)
    if given.top < 1:
        raise UserError(f"--top: expected a positive integer, got {given.top}.")
    from gendd.deploy.predict import predict

    predictions = predict(given.run, given.images, given.top, given.readout, given.uncertainty)
    if given.json:
        print(json.dumps([prediction.as_dict() for prediction in predictions], indent=2))
    else:
        for prediction in (each for each in predictions if each.error is None):
            pairs = zip(prediction.classes, prediction.probabilities, strict=True)
            shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in pairs)
            if (unsure := prediction.uncertainty) is not None:
                shown += (
                    f"   total {unsure['total']:.3f}, aleatoric {unsure['aleatoric']:.3f}, "
                    f"mutual information {unsure['mutual_information']:.3f}, spread {unsure['spread']:.3f}"
                )
            print(f"{prediction.path}: {shown}")
    errors = [prediction.error for prediction in predictions if prediction.error is not None]
    for error in errors:
        print(f"gendd: {' '.join(error.split())}", file=sys.stderr)
    return 2 if errors else 0


def _export(words: list[str]) -> int:
    parser = _Parser(prog="gendd export", description=_COMMANDS["export"])
    parser.add_argument("run", metavar="RUN", help="a run's folder, a student's folder, or a Hub id")
    parser.add_argument(
        "--to", metavar="FORMAT", required=True, help="onnx, torch-export, timm or safetensors"
    )
    parser.add_argument("--readout", help="linear, mean or sample; the student's own by default")
    parser.add_argument("--quantize", metavar="int8", help="an ONNX file of 8-bit weights and activations")
    parser.add_argument(
        "--calibration", type=int, default=256, metavar="N", help="training images it looks at (default: 256)"
    )
    parser.add_argument("--out", metavar="PATH", help="the file or folder (default: in RUN/export/)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise of readout sample (default: 0)")
    parser.add_argument("--steps", type=int, help="sampling steps of readout sample")
    parser.add_argument("--sampler", help="ddpm, ddim or dpm-solver, of readout sample")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    given = vars(parser.parse_args(words))
    from gendd.deploy.export import export

    print(export(given.pop("run"), **given, progress=sys.stderr.isatty()))
    return 0


def _push(words: list[str]) -> int:
    parser = _Parser(
        prog="gendd push",
        description=_COMMANDS["push"],
        epilog="The account is that of 'hf auth login', or of HF_TOKEN in the environment.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a student's")
    parser.add_argument("repository", metavar="REPO_ID", help="NAME/REPOSITORY on the Hub")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    given = parser.parse_args(words)
    from gendd.deploy.hub import push_to_hub

    private = True if given.private else None
    print(push_to_hub(given.run, given.repository, private=private, commit_message=given.message))
    return 0


def _recipes(words: list[str]) -> int:
    parser = _Parser(prog="gendd recipes", description=_COMMANDS["recipes"])
    parser.parse_args(words)
    groups: dict[str, dict[str, Path]] = {}
    for name, path in recipes().items():
        if not is_base(name):
            groups.setdefault(name.rpartition("/")[0].partition("/")[0], {})[name] = path
    # those of no folder, the way in, are the first
    for number, group in enumerate(sorted(groups)):
        width = max(map(len, groups[group]))
        print("\n" * min(number, 1), end="")
        for name, path in groups[group].items():
            print(f"{name:<{width}}  {summary(path)}")
    return 0


def _models(words: list[str]) -> int:
    parser = _Parser(prog="gendd models", description=_COMMANDS["models"])
    parser.add_argument(
        "pattern", metavar="PATTERN", nargs="?", help="part of a name, or a glob such as 'timm/res*'"
    )
    given = parser.parse_args(words)
    from gendd.models import list_models

    names = list_models(given.pattern)
    if not names:
        raise UserError(f"No network matches {given.pattern!r}: expected part of a name such as 'resnet'.")
    print("\n".join(names))
    return 0


def _methods(words: list[str]) -> int:
    parser = _Parser(prog="gendd methods", description=_COMMANDS["methods"])
    parser.add_argument("name", metavar="NAME", nargs="?", help="a method, or path/to/file.py:CLASS")
    given = parser.parse_args(words)
    from gendd.config.registry import method_class, names

    if given.name is None:
        shown = [method_class(name) for name in names()]
        width = max(len(method.name) for method in shown)
        for method in shown:
            print(f"{method.name:<{width}}  {method.summary()}")
        return 0
    method = method_class(given.name)
    print(f"{method.name}: {method.summary()}")
    if not dataclasses.fields(method.Settings):
        print("It has no settings.")
        return 0
    from jsonargparse import ArgumentParser

    settings = ArgumentParser(prog="gendd distill", add_help=False)
    settings.add_class_arguments(method.Settings, method.section(), fail_untyped=True)
    print(_settings_help(settings), end="")
    return 0


def _compare(words: list[str]) -> int:
    parser = _Parser(
        prog="gendd compare",
        description=_COMMANDS["compare"],
        epilog="The same command goes on with a comparison that was interrupted; finished cells are kept. "
        "docs/compare.md describes the file.",
    )
    parser.add_argument("file", metavar="FILE.yaml", help="methods, pairs, data, rates, seeds and budget")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: runs/compare/ and its name)")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="cells at a time (default: 1)")
    parser.add_argument(
        "--results", metavar="CSV", help="the rows, read and written (default: results.csv in the folder)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be run and stop")
    parser.add_argument("--only", metavar="METHOD", nargs="+", default=[], help="methods of the file to run")
    parser.add_argument(
        "--time", metavar="STEPS", type=int, help="time so many training steps of all methods side by side"
    )
    given = parser.parse_args(words)
    from gendd.compare import compare

    try:
        done = compare(
            given.file,
            given.out,
            jobs=given.jobs,
            results=given.results,
            only=given.only,
            time_steps=given.time,
            dry_run=given.dry_run,
        )
    except KeyboardInterrupt:
        again = " ".join(["gendd compare", *map(shlex.quote, words)])
        print(f"gendd: interrupted; what is done is kept. Go on with: {again}", file=sys.stderr)
        return 130
    if given.dry_run:
        return 0
    print(f"{done}\nreport  {done.report}")
    return 1 if done.errors else 0


def _import_released(words: list[str]) -> int:
    parser = _Parser(
        prog="gendd import-released",
        allow_abbrev=False,
        description=_COMMANDS["import-released"],
        epilog="The dotted options of gendd distill hold too: --data.name and --data.path of the images to "
        "evaluate on (without them nothing is measured), --readout.steps, --gendd.contraction, …",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="the file, of stage 1 or 2")
    parser.add_argument(
        "--student", metavar="NAME", required=True, help="the student network, cifar/resnet20"
    )
    parser.add_argument("--teacher", metavar="NAME", required=True, help="the teacher network")
    parser.add_argument("--teacher-weights", metavar="FILE", help="its weights, to measure agreement with it")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: runs/ and the file's name)")
    given, rest = parser.parse_known_args(words)
    settings = _given("import-released", rest)
    from rich.console import Console

    from gendd import report
    from gendd.released import import_released

    run = import_released(
        given.checkpoint,
        given.student,
        given.teacher,
        out=given.out,
        teacher_weights=given.teacher_weights,
        **settings,
    )
    console = Console()
    report.print_table(run.metrics, console)
    console.print(f"student {run.folder / 'student'}", highlight=False, soft_wrap=True)
    return 0


def _given(command: str, words: list[str]) -> dict[str, Any]:
    """The settings that dotted options name, by section, and no others."""
    from gendd.config import one_line

    _check_options(command, words)
    try:
        parser = run_parser(command, _sections({}, words, {}))
        values: dict[str, Any] = parser.parse_args(words).as_dict()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{one_line(error)} See: gendd {command} --help.") from error
    found: dict[str, Any] = {}
    for name in filter(None, map(_option, words)):
        *sections, key = name.removeprefix("--").split(".")
        into, value = found, values
        for section in sections:
            into, value = into.setdefault(section, {}), value[section]
        into[key] = value[key]
    return found


def _verify(words: list[str]) -> int:
    parser = _Parser(prog="gendd verify", description=_COMMANDS["verify"])
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
    return 0 if worst <= TOLERANCE else 1
