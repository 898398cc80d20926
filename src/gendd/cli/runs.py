"""Commands that train, score, export or compare."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import TYPE_CHECKING

from gendd.cli.options import given_options, parse_run
from gendd.cli.parsing import COMMANDS, Parser, say_next
from gendd.errors import UserError
from gendd.files import check_file, check_run, check_student

if TYPE_CHECKING:
    from gendd.config import RunConfig


def execute_command(command: str, words: list[str]) -> int:
    config, flags = parse_run(command, words)
    if config is None:
        return 0
    # after the options are parsed, as these take seconds to import
    from rich.console import Console

    from gendd import report
    from gendd.processes import is_first
    from gendd.recipes import recorded
    from gendd.run import execute, plan_run

    if flags.dry_run:
        if flags.resume:
            raise UserError("--dry-run: expected a new run, got --resume; leave one of them out.")
        print("\n".join(plan_run(config, overwrite=flags.overwrite)))
        say_next("dry run")
        return 0
    fresh = command == "distill" and flags.fresh_teacher
    run = execute(config, overwrite=flags.overwrite, resume=flags.resume, fresh_teacher=fresh)
    if not is_first():
        return 0
    console = Console()
    report.print_table(run.metrics, console, recorded(flags.recipe[-1]) if flags.recipe else None)
    console.print(f"report  {run.report}\nstudent {run.folder / 'student'}", highlight=False, soft_wrap=True)
    best = run.metrics["run"].get("best")
    if best is not None and best["method"] != config.method:
        found = f"best on validation images: {best['method']}, {best['percent']:.2f} %"
        console.print(f"{found} ({run.folder / best['folder'] / 'student'})", highlight=False, soft_wrap=True)
    say_next(command, run.folder)
    return 0


def _of_a_run(parser: Parser, words: list[str]) -> tuple[argparse.Namespace, RunConfig | None]:
    """Parse a command's own options, and the others as those of a run; None if help was printed."""
    if {"-h", "--help"} & set(words):
        print(parser.format_help(), end="")
        return argparse.Namespace(), None
    given, rest = parser.parse_known_args(words)
    config, flags = parse_run("distill", rest)
    if flags.dry_run and config is not None:
        raise UserError(f"{parser.prog}: expected no --dry-run, which gendd distill has; leave it out.")
    return given, config


def cache_command(words: list[str]) -> int:
    parser = Parser(
        prog="gendd cache",
        add_help=False,
        allow_abbrev=False,
        usage="gendd cache [DIR TEACHER STUDENT] [OPTION …]",
        description=f"{COMMANDS['cache']}: for training.cache_teacher views of each image. The run then "
        "reads them, as does any other run with the same teacher, images and views. If interrupted, the "
        "same command continues; several at once share the work.",
        epilog="The options are those of gendd distill, whose --dry-run reports the size of the cache.",
    )
    _, config = _of_a_run(parser, words)
    if config is None:
        return 0
    from gendd.run import fill_cache

    try:
        print(fill_cache(config))
    except KeyboardInterrupt:
        print("gendd: interrupted; what was written is kept. Go on with the same command.", file=sys.stderr)
        return 130
    say_next("cache")
    return 0


def profile_command(words: list[str]) -> int:
    parser = Parser(
        prog="gendd profile",
        add_help=False,
        allow_abbrev=False,
        usage="gendd profile [DIR TEACHER STUDENT] [--steps N] [--json] [OPTION …]",
        description=f"{COMMANDS['profile']}: loading, augmentation, teacher, student, head, backward and "
        "optimiser, compared with a step of KD or, without labels, KL. Nothing is trained or written.",
        epilog="The other options are those of gendd distill.",
    )
    parser.add_argument("--steps", metavar="N", type=int, default=20, help="steps timed (default: 20)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given, config = _of_a_run(parser, words)
    if config is None:
        return 0
    if given.steps < 1:
        raise UserError(f"--steps: expected at least 1, got {given.steps}.")
    from gendd.run import profile_run

    profile = profile_run(config, steps=given.steps)
    print(json.dumps(profile.as_dict(), indent=2) if given.json else profile)
    say_next("profile")
    return 0


def watch_command(words: list[str]) -> int:
    parser = Parser(prog="gendd watch", description=f"{COMMANDS['watch']}; ends when the run does.")
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    given = parser.parse_args(words)
    from gendd.run import watch_run

    finished = watch_run(given.run)
    say_next("watch" if finished else "stopped", given.run)
    return 0 if finished else 1


def probe_command(words: list[str]) -> int:
    parser = Parser(
        prog="gendd probe",
        description=f"{COMMANDS['probe']}: the student is frozen, a linear classifier is fitted to its "
        "features of the training images, and the better classifier on the validation images is kept. "
        "Metrics, model card and report are updated.",
        epilog="A run trained without labels (data.labels false) is fitted to its teacher's predictions, or "
        "else to those of readout mean. Labels require --allow-labels; the metrics of readout linear and the "
        "model card are then those of a student trained with labels.",
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--target",
        metavar="{labels,teacher,mean}",
        help="target of the fit (default: labels, if the run may see them, or teacher, or mean without a "
        "teacher, whichever is better on the validation images)",
    )
    parser.add_argument(
        "--allow-labels", action="store_true", help="allow --target labels for a run trained without labels"
    )
    parser.add_argument(
        "--train-images", metavar="N", type=int, help="maximum number of training images (default: all)"
    )
    parser.add_argument(
        "--device", metavar="{auto,cpu,cuda,mps}", help="where to compute (default: as in the run)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(words)
    # before PyTorch is imported, which takes seconds
    check_run(given.run)
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
    say_next("probe", given.run)
    return 0


def predict_command(words: list[str]) -> int:
    parser = Parser(prog="gendd predict", description=COMMANDS["predict"])
    parser.add_argument("run", metavar="RUN", help="a run's folder, a student's folder, or a Hub id")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files or directories of them")
    parser.add_argument("--readout", help="linear, mean or sample; the student's own by default")
    parser.add_argument("--top", type=int, default=5, help="classes per image (default: 5)")
    parser.add_argument(
        "--uncertainty",
        metavar="N",
        type=int,
        default=0,
        help="also estimate the uncertainty from N generated features, such as 32: entropy, its parts "
        "(in nats) and spread",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(words)
    if given.top < 1:
        raise UserError(f"--top: expected a positive integer, got {given.top}.")
    check_student(given.run)
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
    if errors:
        return 2
    say_next("predict", given.run)
    return 0


def export_command(words: list[str]) -> int:
    parser = Parser(prog="gendd export", description=COMMANDS["export"])
    parser.add_argument("run", metavar="RUN", help="a run's folder, a student's folder, or a Hub id")
    parser.add_argument(
        "--to",
        metavar="FORMAT",
        required=True,
        help="onnx, torch-export, timm or safetensors, or path/to/file.py:NAME",
    )
    parser.add_argument("--readout", help="linear, mean or sample; the student's own by default")
    parser.add_argument("--quantize", metavar="int8", help="an ONNX file with 8-bit weights and activations")
    parser.add_argument(
        "--calibration", type=int, default=256, metavar="N", help="calibration images of int8 (default: 256)"
    )
    parser.add_argument("--out", metavar="PATH", help="the file or folder (default: in RUN/export/)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the noise of readout sample (default: 0)"
    )
    parser.add_argument("--steps", type=int, help="sampling steps of readout sample")
    parser.add_argument("--sampler", help="sampler of readout sample: ddpm, ddim or dpm-solver")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing export")
    given = vars(parser.parse_args(words))
    check_student(given["run"])
    from gendd.deploy.export import export

    run = given.pop("run")
    print(export(run, **given, progress=sys.stderr.isatty()))
    say_next("export", run)
    return 0


def import_released_command(words: list[str]) -> int:
    parser = Parser(
        prog="gendd import-released",
        allow_abbrev=False,
        description=COMMANDS["import-released"],
        epilog="The dotted options of gendd distill also apply: --data.name and --data.path of the images to "
        "evaluate on (without them nothing is measured), --readout.steps, --gendd.contraction, …",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="the checkpoint file, of stage 1 or 2")
    parser.add_argument(
        "--student", metavar="NAME", required=True, help="the student network, such as cifar/resnet20"
    )
    parser.add_argument("--teacher", metavar="NAME", required=True, help="the teacher network")
    parser.add_argument("--teacher-weights", metavar="FILE", help="its weights, to measure agreement with it")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: runs/ and the file's name)")
    given, rest = parser.parse_known_args(words)
    settings = given_options("import-released", rest)
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
    say_next("import-released", run.folder)
    return 0


def compare_command(words: list[str]) -> int:
    parser = Parser(
        prog="gendd compare",
        description=COMMANDS["compare"],
        epilog="The same command resumes an interrupted comparison; finished cells are kept. "
        "docs/compare.md describes the file.",
    )
    parser.add_argument("file", metavar="FILE.yaml", help="methods, pairs, data, rates, seeds and budget")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: runs/compare/ and its name)")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="cells at a time (default: 1)")
    parser.add_argument(
        "--results",
        metavar="CSV",
        help="table of results, read and written (default: results.csv in the folder)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and stop")
    parser.add_argument(
        "--only", metavar="METHOD", nargs="+", default=[], help="run only these methods of the file"
    )
    parser.add_argument(
        "--time", metavar="STEPS", type=int, help="time this many training steps of all methods side by side"
    )
    given = parser.parse_args(words)
    # before PyTorch is imported, which takes seconds
    check_file(given.file, f"Comparison {given.file!r}")
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
        say_next("dry run")
        return 0
    print(f"{done}\nreport  {done.report}")
    say_next("compare", done.report)
    return 1 if done.errors else 0
