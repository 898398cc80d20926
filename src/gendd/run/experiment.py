"""A run from configuration to report: the teacher, the baselines, the student, its metrics and its files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gendd import report
from gendd.config import RunConfig, dump, with_settings
from gendd.config.registry import method_class, section
from gendd.data import Data, describe, empty_classes, load_data
from gendd.errors import UserError
from gendd.files import check_path, locked, trusted_code, write_json, write_text
from gendd.messages import Log, logged, say
from gendd.models import Backbone, Frozen, count_parameters, load_weights, teacher_class_names
from gendd.models.provenance import provenance
from gendd.processes import barrier, first_then_all, from_first, is_first, rank
from gendd.report.model_card import write_card
from gendd.run import exhibits
from gendd.run.advice import advice, best_on_validation
from gendd.run.checks import check_names, check_networks
from gendd.run.finished import Run
from gendd.run.measuring import measure
from gendd.run.networks import teacher_network, with_classes
from gendd.run.output import LOCK, adopt, check_folder, check_images, claim, finish, restore
from gendd.run.settings import methods_of, sized, trains_teacher
from gendd.run.teacher import freeze, teacher_run
from gendd.run.training import Trained, settle_readout, train
from gendd.student import Student
from gendd.training import join, resolve_device, resolve_precision, restarted


def execute(
    config: RunConfig,
    *,
    overwrite: bool = False,
    resume: bool = False,
    networks: Mapping[str, nn.Module] | None = None,
    teacher_wrapper: Callable[[Frozen], Frozen] | None = None,
    fresh_teacher: bool = False,
) -> Run:
    """Execute a configuration, from data to report; see :func:`gendd.distill`.

    Args:
        config: Configuration of the run.
        overwrite: See :func:`gendd.distill`.
        resume: See :func:`gendd.distill`.
        networks: A ``teacher`` or ``student`` built in Python.
        teacher_wrapper: Wraps the frozen teacher; the result is used in its place.
        fresh_teacher: See :func:`gendd.distill`.
    """
    networks = networks or {}
    with trusted_code(named_code(config)):
        return _execute(config, overwrite, resume, networks, teacher_wrapper, fresh_teacher)


def named_code(config: RunConfig) -> list[str]:
    """Return the settings that may name Python code; whoever wrote the configuration trusts that code."""
    names = [config.teacher.name, config.student.name, config.data.name, config.method, *config.baselines]
    return [*names, config.data.path or "", config.data.test_path or ""]


def _execute(
    config: RunConfig,
    overwrite: bool,
    resume: bool,
    networks: Mapping[str, nn.Module],
    teacher_wrapper: Callable[[Frozen], Frozen] | None,
    fresh_teacher: bool,
) -> Run:
    config = with_settings(config)
    if fresh_teacher and (resume or not trains_teacher(config)):
        came = "--resume, whose run has one" if resume else "one that comes with weights, or none"
        raise UserError(
            f"--fresh-teacher: expected a teacher that is trained first, got {came}; leave it out."
        )
    if config.out is None:
        stem = section(config.method)
        images = config.data.name.rpartition(":")[2]
        config = dataclasses.replace(config, out=f"runs/{stem}-{images}")
    assert config.out is not None
    config = dataclasses.replace(config, out=os.path.expanduser(config.out))
    folder = Path(str(config.out))
    check_path(folder, "--out")
    device = resolve_device(config.training.device)
    for training in (config.training, config.teacher_training):
        resolve_precision(training.precision, device)
    join(config.training, device)
    if restarted() and from_first((folder / "config.yaml").is_file):
        overwrite, resume = False, True
    from_first(lambda: check_folder(folder, config, overwrite, resume))
    busy = f"Output folder {str(folder)!r}: another run writes there; wait for it, or give another --out."
    with locked(folder / LOCK, busy) if is_first() else nullcontext():

        def begin() -> None:
            restore(folder)
            # another run may have finished there in the meantime
            check_folder(folder, config, overwrite, resume)

        from_first(begin)
        with logged() as log:
            return _run(config, folder, device, resume, networks, teacher_wrapper, fresh_teacher, log)


def opened(config: RunConfig, networks: Mapping[str, nn.Module]) -> tuple[RunConfig, Data, Backbone | None]:
    """Load the data and build the teacher, and check that everything fits together.

    Returns:
        The configuration with batch size and epochs as numbers, the data, and the teacher if there is one.

    Raises:
        UserError: something does not fit together.
    """
    check_names(config, networks)
    data = load_data(config.data, config.evaluation.images)
    network = first_then_all(lambda: teacher_network(config, data, networks))
    data = with_classes(config, data, network)
    say(describe(data))
    if (line := empty_classes(data)) is not None:
        say(line)
    config = sized(config, data)
    check_networks(config, data, network, networks)
    return config, data, network


def _run(
    config: RunConfig,
    folder: Path,
    device: torch.device,
    resume: bool,
    networks: Mapping[str, nn.Module],
    teacher_wrapper: Callable[[Frozen], Frozen] | None,
    fresh_teacher: bool,
    log: Log,
) -> Run:
    config, data, network = opened(config, networks)
    if network is not None:
        say(f"teacher {network.describe()}")
    if config.data.labels and not data.labelled:
        kept = " (a folder of images holds train/CLASS/ or CLASS/)" if data.name == "folder" else ""
        say(
            f"data.labels is true, but the training images of {data.name!r} have no labels{kept}: training "
            "without labels; set data.labels false if that is intended"
        )

    def begin() -> None:
        # before the teacher is trained, so that a run stopped there can be resumed too
        if not resume:
            claim(folder, config)
        check_images(folder, data, resume)
        log.open(folder / "logs" / "console.log")
        if resume:
            adopt(folder, config)

    from_first(begin)
    for skipped in data.skipped:
        skipped.record(folder / "logs" / f"skipped{f'.{rank()}' if rank() else ''}.txt")
    teacher, teacher_folder = prepared_teacher(config, data, network, device, fresh_teacher)
    if teacher is not None and teacher_wrapper is not None:
        teacher = teacher_wrapper(teacher)

    results: dict[str, Trained] = {}
    for name in methods_of(config):
        part = dataclasses.replace(config, method=name)
        place = _place(folder, config, name)
        results[name] = train(part, data, teacher, place, resume, networks.get("student"))
    for trained in results.values():
        if config.readout.name in trained.student.readouts:
            trained.student.readout = config.readout.name
    main = results[config.method].student
    pick = settle_readout(main, config, data, teacher, device)
    main.info |= _info(config, data, teacher)
    if is_first():
        # before the evaluation, which can take long with a sampling readout
        main.save(folder / "student")
    metrics, confusion, answers = measure(config, data, teacher, results, device)
    if not is_first():
        barrier()
        return Run(folder)
    if pick is not None:
        metrics["student"]["readout_pick"] = {"metric": pick.metric, "percent": pick.percent}
    write_card(folder / "student" / "README.md", main, metrics)
    for name in metrics["baselines"]:
        _save_baseline(
            _place(folder, config, name), config, name, results[name].student, data, teacher, metrics
        )
    warnings = advice(config, metrics, confusion, results[config.method].result.steps)
    metrics["run"]["warnings"] = warnings
    for line in warnings:
        say(f"warning: {line}")
    best = best_on_validation(metrics)
    if best is not None and metrics["baselines"]:
        name, percent = best
        place = _place(folder, config, name)
        metrics["run"]["best"] = {
            "method": name,
            "percent": percent,
            "folder": str(place.relative_to(folder)),
        }
    content = report.ReportData(
        title=folder.name,
        metrics=metrics,
        curves=_curves(folder, config, teacher_folder),
        confusion=confusion,
        class_names=data.class_names,
        examples=exhibits.examples(main, data, device, config.seed),
        answers=answers,
        picture=exhibits.picture_of(data.test, metrics["run"].get("test_images")),
        config_yaml=dump(config),
        folder=str(folder),
        **exhibits.features(main, teacher, data.test, device, config.seed),
    )
    report.write_report(content, folder / "report.html")
    # last, as this file marks a run as finished
    write_json(folder / "metrics.json", metrics)
    finish(folder)
    barrier()
    return Run(folder)


def _save_baseline(
    place: Path,
    config: RunConfig,
    name: str,
    student: Student,
    data: Data,
    teacher: Frozen | None,
    metrics: dict[str, Any],
) -> None:
    """Turn the folder a baseline was trained in into a finished run of its own, without a report."""
    own = with_settings(dataclasses.replace(config, method=name, baselines=[], out=str(place)))
    student.info |= _info(own, data, teacher)
    student.save(place / "student")
    figures = metrics["baselines"][name]
    fitted = {key: figures[key] for key in ("name", "train_seconds", "loading_seconds", "validation")}
    readout = {key: value for key, value in figures.items() if key not in (*fitted, "label")}
    found = {
        "run": {**metrics["run"], "method": name, "name": place.name},
        "teacher": metrics["teacher"] if method_class(name).needs_teacher else None,
        "student": {
            **fitted,
            "parameters": count_parameters(student.backbone),
            "readouts": {student.readout: readout},
            "readout": student.readout,
        },
        "baselines": {},
    }
    write_card(place / "student" / "README.md", student, found)
    write_text(place / "config.yaml", dump(own))
    write_json(place / "metrics.json", found)


def prepared_teacher(
    config: RunConfig, data: Data, network: Backbone | None, device: torch.device, fresh: bool = False
) -> tuple[Frozen | None, Path | None]:
    """Return the frozen teacher, and the folder it was trained in, if it was trained here."""
    if network is None:
        return None, None
    folder = None
    if trains_teacher(config):
        folder = trained_teacher(config, data, network, device, fresh)
        load_weights(network, folder)
    return freeze(network, config, device), folder


def trained_teacher(
    config: RunConfig, data: Data, network: Backbone, device: torch.device, fresh: bool = False
) -> Path:
    """Return the run folder of a teacher trained on the labels: cached (unless ``fresh``) or trained now."""
    folder, training = teacher_run(config, data, network, device)
    # two runs that need the same teacher train it once
    with locked(folder.with_name(folder.name + ".lock")) if is_first() else nullcontext():
        done = folder / "metrics.json"
        when = from_first(lambda: done.stat().st_mtime if done.is_file() and not fresh else None)
        if when is not None:
            date = f"{datetime.fromtimestamp(when):%Y-%m-%d %H:%M}"
            say(f"teacher {config.teacher.name}: cached, trained {date}, from {folder}")
            return folder
        say(f"teacher {config.teacher.name}: training (cached afterwards in {folder})")
        there = from_first((folder / "config.yaml").is_file)
        execute(
            dataclasses.replace(training, out=str(folder)),
            overwrite=there and fresh,
            resume=there and not fresh,
        )
    return folder


def _info(config: RunConfig, data: Data, teacher: Frozen | None) -> dict[str, Any]:
    """Return the provenance and input description stored with a student."""
    info = {
        "class_names": data.class_names,
        "image_size": data.image_size,
        "framing": data.test.framing,
        "data": data.name,
        "method": config.method,
        "teacher": None if teacher is None else config.teacher.name,
        **provenance(config.student, None if teacher is None else config.teacher),
    }
    if teacher is not None and teacher.num_classes not in (0, data.num_classes):
        names = teacher_class_names(config.teacher, teacher.num_classes)
        if names is not None:
            info["teacher_class_names"] = names
    return info


def _curves(folder: Path, config: RunConfig, teacher_folder: Path | None) -> dict[str, list[exhibits.Row]]:
    """Return the curves of each training, including the teacher's if it was trained."""
    found: dict[str, list[exhibits.Row]] = {
        name: exhibits.curves(_place(folder, config, name), config.readout.name)
        for name in methods_of(config)
    }
    if teacher_folder is not None:
        found["teacher"] = exhibits.curves(teacher_folder)
    return found


def _place(folder: Path, config: RunConfig, name: str) -> Path:
    """Return the folder a method of the run is trained in."""
    return folder if name == config.method else folder / "baselines" / section(name)
