"""`gendd probe`: refit the linear readout of a finished run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Finished
from torch import nn

import gendd
from gendd.cli import main
from gendd.config import RunConfig, dump, load_config
from gendd.deploy.predict import predict
from gendd.errors import UserError
from gendd.evaluation.refit import Refit
from gendd.models import memory_format
from gendd.report.model_card import fit_of
from gendd.run import Run, evaluate_run, probe_run
from gendd.run.probing import Probed

Capture = pytest.CaptureFixture[str]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def configure(folder: Path, change: Callable[[RunConfig], RunConfig]) -> None:
    (folder / "config.yaml").write_text(dump(change(load_config(folder / "config.yaml"))))


def without_labels(config: RunConfig) -> RunConfig:
    return replace(config, data=replace(config.data, labels=False))


def refused(capsys: Capture, *words: str) -> str:
    """Run a command that must fail, and return its one-line error."""
    capsys.readouterr()
    assert main(["probe", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line.removeprefix("gendd: ")


@pytest.fixture
def run(digits_run: Finished, tmp_path: Path) -> Path:
    """The finished run without its report, and with an untrained classifier."""
    folder = tmp_path / "run"
    ignored = shutil.ignore_patterns("report.html", "checkpoints", "baselines", "logs")
    shutil.copytree(digits_run.folder, folder, ignore=ignored)
    spoil(folder)
    return folder


def spoil(folder: Path) -> None:
    student = gendd.load(folder)
    nn.init.zeros_(student.backbone.classifier.weight)
    student.save(folder / "student")


@pytest.fixture(scope="module")
def probed(
    digits_run: Finished, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, bytes], str]:
    """A probed run, its files before the probe, and the output."""
    folder = tmp_path_factory.mktemp("probed") / "digits"
    shutil.copytree(digits_run.folder, folder)
    spoil(folder)
    before = contents(folder)
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("builtins.print", lambda *values, **_: said.extend(map(str, values)))
        assert main(["probe", str(folder)]) == 0
    return folder, before, "\n".join(said)


# --- what it does ------------------------------------------------------------------------------------


def test_the_better_readout_is_in_the_run(probed: tuple[Path, dict[str, bytes], str]) -> None:
    folder, before, said = probed
    old, new = json.loads(before["metrics.json"]), figures(folder)
    probe = new["student"].pop("probe")
    assert (probe["kept"], probe["target"], probe["judged_by"]) == ("refitted", "labels", "labels")
    assert (probe["images"], probe["held_images"]) == (200, 144)
    assert probe["refitted"] > 40 > probe["trained"]
    linear = old["student"]["readouts"].pop("linear")
    assert probe["before"] == {name: linear[name] for name in ("top1", "top5", "agreement")}
    assert probe["trained_along"] == probe["before"] and probe["labels_seen_by"] == "training"
    # the metrics are those of the files on disk
    scores = evaluate_run(folder, "linear")["linear"]
    came = new["student"]["readouts"].pop("linear")
    assert {name: came[name] for name in ("top1", "top5")} == {
        name: scores[name] for name in ("top1", "top5")
    }
    assert probe["after"] == {name: came[name] for name in ("top1", "top5", "agreement")}
    assert came["agreement"] is not None and came["top1"] != linear["top1"]
    assert {name: came[name] for name in ("parameters", "multiply_adds", "latency_ms")} == {
        name: linear[name] for name in ("parameters", "multiply_adds", "latency_ms")
    }
    # and all others are unchanged
    assert new == old
    assert said.splitlines() == [
        f"held-out top-1                        {probe['trained']:>6.2f} % → {probe['refitted']:.2f} %  "
        f"({probe['refitted'] - probe['trained']:+.2f})",
        f"test top-1                            {linear['top1']:>6.2f} % → {came['top1']:.2f} %  "
        f"({came['top1'] - linear['top1']:+.2f})",
        f"test agreement with the teacher       {linear['agreement']:>6.2f} % → {came['agreement']:.2f} %  "
        f"({came['agreement'] - linear['agreement']:+.2f})",
        f"new classifier kept: fitted to labels of 200 images, weight decay {probe['l2']:g}, judged on 144; "
        f"a fit to the teacher's predictions {probe['tried']['teacher']:.2f} %",
        f"next: gendd predict {folder} IMAGE…, or gendd export {folder} --to onnx",
    ]


@pytest.mark.parametrize("held, warned", [(99, True), (100, False)])
def test_few_held_out_images_are_told(held: int, warned: bool) -> None:
    shares: dict[str, float | None] = {"top1": 80.0, "top5": None, "agreement": None}
    told = str(Probed(Refit("labels", "labels", 0.1, 80.0, 85.0, "refitted", 180, held), shares, shares, 1.0))
    assert ("warning: 99 images say little about which classifier is better" in told) is warned


def test_nothing_else_in_the_folder_changes(probed: tuple[Path, dict[str, bytes], str]) -> None:
    folder, before, _ = probed
    after = contents(folder)
    assert set(after) == set(before)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"metrics.json", "report.html", "student/README.md", "student/model.safetensors"}


def test_the_student_is_frozen(probed: tuple[Path, dict[str, bytes], str], tmp_path: Path) -> None:
    folder, before, _ = probed
    (tmp_path / "config.json").write_bytes(before["student/config.json"])
    (tmp_path / "model.safetensors").write_bytes(before["student/model.safetensors"])
    new, old = gendd.load(folder).state_dict(), gendd.load(tmp_path).state_dict()
    differing = {name for name in new if not torch.equal(new[name], old[name])}
    assert differing == {"backbone.net.fc.weight", "backbone.net.fc.bias"}


def test_card_and_report_tell_the_new_figures(probed: tuple[Path, dict[str, bytes], str]) -> None:
    folder, before, _ = probed
    own = figures(folder)["student"]
    linear, mean = own["readouts"]["linear"]["top1"], own["readouts"]["mean"]["top1"]
    was = own["probe"]["trained_along"]["top1"]
    card = (folder / "student" / "README.md").read_text()
    assert f"| linear | a linear classifier on the student's feature | {linear:.2f} % |" in card
    assert (
        "The linear readout was fitted afterwards, to the labels of 200 images (the one trained along had "
        f"{was:.2f} % top-1)." in card
    )
    assert ", with labels, " in card
    page, old = (folder / "report.html").read_text(), before["report.html"].decode()
    titles = [re.findall(r"<h2>(.*?)</h2>", text) for text in (page, old)]
    assert titles[0] == titles[1] and len(titles[0]) == 13
    sections = [dict(re.findall(r"(?s)<section><h2>(.*?)</h2>(.*?)</section>", text)) for text in (page, old)]
    changed = {title for title in sections[0] if sections[0][title] != sections[1][title]}
    # the chosen readout is mean, whose sections are kept
    assert changed == {"Comparison", "Accuracy against inference cost", "Settings"}
    assert f'<td class="n">{linear:.2f}</td>' in page and f'<td class="n">{mean:.2f}</td>' in page
    assert "<dt>Linear readout</dt><dd>refitted to labels</dd>" in page


def test_what_is_not_better_leaves_the_student(
    probed: tuple[Path, dict[str, bytes], str], tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(probed[0], folder)
    before, first = contents(folder), figures(folder)
    # the same fit is as good
    assert main(["probe", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    after = contents(folder)
    assert {name for name in after if after[name] != before[name]} == {"metrics.json"}
    metrics = figures(folder)
    probe, last = metrics["student"].pop("probe"), first["student"].pop("probe")
    assert metrics == first
    assert probe["kept"] == "trained" and probe["trained"] == probe["refitted"] == last["refitted"]
    assert probe["before"] == probe["after"] == last["after"]
    # the classifier from training is still recorded
    assert probe["trained_along"] == last["trained_along"] != probe["before"]
    assert told == {name: probe[name] for name in told}
    assert set(probe) - set(told) == {"trained_along", "labels_seen_by", "fit"}
    # as is the target of the readout that is kept
    assert probe["fit"] == last["fit"] == {"target": "labels", "images": last["images"]}
    assert fit_of(probe) == probe["fit"]


@pytest.mark.parametrize("target, least", [("teacher", 20), ("mean", 0)])
def test_other_targets(run: Path, target: str, least: float, capsys: Capture) -> None:
    assert main(["probe", str(run), "--target", target, "--train-images", "150", "--device", "cpu"]) == 0
    probe = figures(run)["student"]["probe"]
    # labels may be used, so they judge the fit
    assert (probe["target"], probe["judged_by"], probe["images"]) == (target, "labels", 150)
    assert probe["tried"] == {target: probe["refitted"]}
    assert probe["refitted"] >= least
    assert (probe["kept"] == "refitted") == (probe["refitted"] > probe["trained"])
    said = {"teacher": "the teacher's predictions", "mean": "the predictions of readout mean"}[target]
    assert f"fitted to {said} of 150 images, weight decay " in capsys.readouterr().out
    # there was no report to update
    assert not (run / "report.html").exists()


def test_from_python(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.memory_format] = []
    features = gendd.Student.features

    def watched(self: gendd.Student, images: torch.Tensor) -> torch.Tensor:
        if len(images) == 200:
            seen.append(memory_format(self))
        return features(self, images)

    monkeypatch.setattr(gendd.Student, "features", watched)
    net = gendd.create_backbone("cifar/resnet8x0.25", 10, 1).net
    probed = Run.open(run).probe(backbone=net, train_images=200)
    assert probed.refit.kept == "refitted" and probed.after["top1"] is not None
    assert seen == [torch.channels_last]
    # the network passed in now has the run's weights
    with torch.no_grad():
        assert torch.equal(net.conv1.weight, gendd.load(run).backbone.net.body.net.conv1.weight)


def test_auto_picks_its_readout_anew(run: Path, digits_run: Finished, capsys: Capture) -> None:
    shutil.copy(digits_run.folder / "report.html", run)
    metrics = figures(run)
    pick = {"metric": "top1", "percent": {"linear": 9.0, "mean": 20.0, "sample": 19.0}}
    metrics["student"]["readout_pick"] = pick
    (run / "metrics.json").write_text(json.dumps(metrics))
    old = (run / "report.html").read_text()
    assert main(["probe", str(run)]) == 0
    own = figures(run)["student"]
    assert own["readout_pick"]["percent"] == pick["percent"] | {"linear": own["probe"]["refitted"]}
    assert own["readout"] == gendd.load(run).readout == "linear"
    assert (
        "readout linear, the cheapest one close to the best; top-1 on validation images: "
        in capsys.readouterr().err
    )
    assert "| linear (default) |" in (run / "student" / "README.md").read_text()
    page = (run / "report.html").read_text()
    for title in ("Confusion matrix", "Examples"):
        new, was = (
            re.search(rf"<section><h2>{title}</h2>.*?</section>", text, re.DOTALL) for text in (page, old)
        )
        assert new is not None and was is not None and new[0] != was[0]


def test_auto_says_where_it_does_not_pick_anew(run: Path, capsys: Capture) -> None:
    metrics = figures(run)
    pick = {"metric": "agreement", "percent": {"linear": 9.0, "mean": 20.0, "sample": 19.0}}
    metrics["student"]["readout_pick"] = pick
    (run / "metrics.json").write_text(json.dumps(metrics))
    # judged by labels now, which is not comparable with the others' agreement
    assert main(["probe", str(run)]) == 0
    own = figures(run)["student"]
    assert own["probe"]["kept"] == "refitted" and own["readout_pick"] == pick
    assert own["readout"] == gendd.load(run).readout == "mean"
    assert (
        "readout.name auto: not picked again, as it was picked by agreement of the validation images; "
        "the student still uses 'mean'"
    ) in " ".join(capsys.readouterr().err.split())


def test_what_was_not_measured_before_is_measured(run: Path, capsys: Capture) -> None:
    """As for a checkpoint imported without images."""
    metrics = figures(run)
    first = metrics["student"]["readouts"]["linear"]
    unknown = dict.fromkeys(("top1", "top5", "agreement", "parameters"))
    metrics["student"]["readouts"]["linear"] = unknown
    del metrics["run"]["labels_used"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "student" / "README.md").unlink()
    assert main(["probe", str(run)]) == 0
    assert re.search(r"test top-1 +– → [\d.]+ %\n", capsys.readouterr().out)
    metrics = figures(run)
    linear = metrics["student"]["readouts"]["linear"]
    assert linear["top1"] > 40 and linear["agreement"] is not None
    assert linear["multiply_adds"] == first["multiply_adds"] and linear["parameters"] == first["parameters"]
    assert "labels_used" not in metrics["run"]
    assert not (run / "student" / "README.md").exists()


# --- labels ------------------------------------------------------------------------------------------


def test_a_run_without_labels_is_fitted_to_its_teacher(run: Path, capsys: Capture) -> None:
    configure(run, without_labels)
    metrics = figures(run)
    metrics["run"]["labels_used"] = False
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert main(["probe", str(run)]) == 0
    assert capsys.readouterr().out.startswith("held-out agreement with the teacher ")
    metrics = figures(run)
    probe = metrics["student"]["probe"]
    assert (probe["target"], probe["judged_by"], probe["kept"]) == ("teacher", "teacher", "refitted")
    assert probe["labels_seen_by"] is None and metrics["run"]["labels_used"] is False
    assert ", without labels, " in (run / "student" / "README.md").read_text()


def test_labels_are_refused_to_a_run_that_saw_none_unless_they_are_allowed(
    run: Path, capsys: Capture
) -> None:
    configure(run, without_labels)
    before = contents(run)
    assert refused(capsys, str(run), "--target", "labels") == (
        "--target: expected teacher or mean for a run that saw no labels (data.labels false), got 'labels'; "
        "give --allow-labels too where its linear readout may see them, and say so with its figures."
    )
    assert contents(run) == before
    assert main(["probe", str(run), "--target", "labels", "--allow-labels"]) == 0
    metrics = figures(run)
    probe = metrics["student"]["probe"]
    assert (probe["target"], probe["judged_by"], probe["labels_seen_by"]) == ("labels", "labels", "readout")
    assert metrics["run"]["labels_used"] is True
    assert ", without labels but for the linear readout, " in (run / "student" / "README.md").read_text()
    # this holds as long as this readout is in use
    assert main(["probe", str(run), "--target", "labels", "--allow-labels"]) == 0
    metrics = figures(run)
    assert metrics["student"]["probe"]["kept"] == "trained"
    assert metrics["student"]["probe"]["labels_seen_by"] == "readout"
    assert metrics["run"]["labels_used"] is True
    spoil(run)
    assert main(["probe", str(run)]) == 0
    metrics = figures(run)
    assert metrics["student"]["probe"]["labels_seen_by"] is None
    assert metrics["run"]["labels_used"] is False


def test_a_teacher_that_is_gone(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENDD_CACHE", str(tmp_path / "empty"))
    message = refused(capsys, str(run), "--target", "teacher")
    assert message.startswith(
        "--target: expected labels or mean, got 'teacher': Teacher: expected the one trained for "
        f"the run in '{tmp_path}/empty/teachers/"
    )
    assert message.endswith("found none; set GENDD_CACHE to the cache folder used then.")
    # its agreement is not reported as if it were known
    assert main(["probe", str(run)]) == 0
    assert "the agreement with the teacher is no longer known: Teacher: " in capsys.readouterr().err
    assert figures(run)["student"]["readouts"]["linear"]["agreement"] is None
    assert set(figures(run)["student"]["probe"]["tried"]) == {"labels", "mean"}
    # without labels the mean readout stands in for it
    spoil(run)
    configure(run, without_labels)
    assert main(["probe", str(run)]) == 0
    probe = figures(run)["student"]["probe"]
    assert (probe["target"], probe["judged_by"]) == ("mean", "mean")
    assert not (tmp_path / "empty").exists()


@pytest.fixture
def embedding(run: Path, cache: Path) -> Path:
    """A run whose teacher has no classifier and whose student saw no labels: it has no readout."""
    teachers = [file.parent for file in cache.glob("teachers/*/metrics.json")]
    (weights,) = [path for path in teachers if load_config(path / "config.yaml").data.train_images == 200]
    configure(
        run,
        lambda config: replace(
            without_labels(config), teacher=replace(config.teacher, weights=str(weights), classifier=False)
        ),
    )
    student = gendd.load(run)
    gendd.Student(student.backbone, student.generator, None, student.settings, student.info, False).save(
        run / "student"
    )
    metrics = figures(run)
    own = metrics["student"]
    own["embedding"] = {"feature": {"knn": 70.0, "linear_probe": 80.0, **costs(own["readouts"]["linear"])}}
    metrics["student"] = own | {"readouts": {}, "readout": None}
    metrics["baselines"] = {}
    metrics["teacher"] |= {"top1": None, "top5": None, "embedding": {"knn": 90.0, "linear_probe": 95.0}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


def costs(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("parameters", "multiply_adds", "latency_ms")}


def test_a_student_of_features_alone_gets_a_readout(
    embedding: Path,
    digits_run: Finished,
    digit_files: Callable[[int], list[str]],
    capsys: Capture,
) -> None:
    assert gendd.load(embedding).readouts == ()
    assert refused(capsys, str(embedding)) == (
        "The run has nothing to fit a linear readout to: the teacher has no classes and the student's "
        "classifier 10; --target labels with --allow-labels fits to the labels, which the run did not see."
    )
    shutil.copy(digits_run.folder / "report.html", embedding)
    assert main(["probe", str(embedding), "--target", "labels", "--allow-labels"]) == 0
    out = capsys.readouterr().out
    assert re.match(r"held-out top-1 +– → [\d.]+ %\ntest top-1 +– → [\d.]+ %\nnew classifier kept", out)
    student = gendd.load(embedding)
    assert student.readouts == ("linear",) and student.readout == "linear"
    own = figures(embedding)["student"]
    first = json.loads((digits_run.folder / "metrics.json").read_text())["student"]["readouts"]["linear"]
    linear = own["readouts"]["linear"]
    assert own["readout"] == "linear" and linear["top1"] > 40 and linear["agreement"] is None
    assert {name: linear[name] for name in ("parameters", "multiply_adds")} == {
        name: first[name] for name in ("parameters", "multiply_adds")
    }
    assert evaluate_run(embedding)["linear"]["top1"] == linear["top1"]
    assert set(predict(embedding, digit_files(1))[0].classes) <= {str(digit) for digit in range(10)}
    card = (embedding / "student" / "README.md").read_text()
    assert "| linear (default) |" in card and "logits = student(images)" in card
    assert "The linear readout was fitted afterwards, to the labels of 200 images." in card
    assert "Student, top-1" in (embedding / "report.html").read_text()


# --- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--target", "label"],
            "--target: expected labels, teacher or mean, got 'label'. Did you mean 'labels'?",
        ),
        (["--train-images", "0"], "--train-images: expected a positive integer, got 0."),
        (
            ["--device", "tpu"],
            "--device: expected a device of this machine, got 'tpu'; use 'auto' or 'cpu'.",
        ),
        (["--reset"], "unrecognized arguments: --reset. See: gendd probe --help."),
    ],
)
def test_options_that_are_wrong(run: Path, words: list[str], message: str, capsys: Capture) -> None:
    before = contents(run)
    assert refused(capsys, str(run), *words) == message
    assert contents(run) == before


def test_folders_that_are_no_run(run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert refused(capsys, str(run / "student")) == (
        f"Expected a run's folder, got only a student's, '{run}/student'; give '{run}'."
    )
    alone = tmp_path / "alone"
    shutil.copytree(run / "student", alone)
    assert refused(capsys, str(alone)) == (
        f"Expected a run's folder, got only a student's, '{alone}'; the images are in the run's config.yaml."
    )
    assert refused(capsys, str(tmp_path / "none")) == (
        f"No run at '{tmp_path}/none': expected a folder with config.yaml, written by gendd."
    )
    (run / "probe.tmp").write_text("in the way")
    assert refused(capsys, str(run)) == (
        f"Expected a run's folder that can be written, got '{run}' (File exists)."
    )


def test_images_that_are_gone(run: Path, tmp_path: Path, capsys: Capture) -> None:
    configure(
        run, lambda config: replace(config, data=replace(config.data, name="folder", path=f"{tmp_path}/gone"))
    )
    before = contents(run)
    message = refused(capsys, str(run))
    assert message.startswith(f"The run at '{run}': expected its images where its config.yaml says; ")
    assert f"'{tmp_path}/gone'" in message
    assert contents(run) == before


def test_classes_that_are_others(run: Path, capsys: Capture) -> None:
    student = gendd.load(run)
    student.info["class_names"][3] = "three"
    student.save(run / "student")
    for words in ([], ["--target", "labels"], ["--target", "mean"]):
        assert refused(capsys, str(run), *words) == (
            "Images of 'digits': expected the 10 classes the student was trained on, got 10 that differ from "
            "number 3 on; restore the images."
        )


def test_a_method_without_a_teacher(run: Path, capsys: Capture) -> None:
    configure(run, lambda config: replace(config, method="supervised", baselines=[]))
    student = gendd.load(run)
    gendd.Student(student.backbone, info=student.info).save(run / "student")
    assert refused(capsys, str(run), "--target", "teacher") == (
        "--target: expected labels, got 'teacher': Teacher: expected a run with one, got one of method "
        "'supervised', which has none."
    )
    assert refused(capsys, str(run), "--target", "mean") == (
        "--target: expected labels, got 'mean': nothing that this student generates is read as one of 10 "
        "classes."
    )


def test_a_teacher_made_in_python_has_to_be_given(run: Path, cache: Path) -> None:
    configure(
        run, lambda config: replace(config, teacher=replace(config.teacher, name="module/Net", weights=None))
    )
    with pytest.raises(UserError, match=r"got 'teacher': Teacher: expected 'module/Net', which was built in"):
        probe_run(run, "teacher")
    teacher = gendd.create_backbone("cifar/resnet8x0.5", 10, 1)
    assert probe_run(run, "teacher", teacher=teacher).refit.target == "teacher"


def test_classifiers_that_cannot_be_fitted(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = gendd.load(run)
    student.backbone.classifier = nn.Linear(32, 10, bias=False)
    monkeypatch.setattr("gendd.student.folders.load", lambda *_, **__: student)
    assert refused(capsys, str(run)) == (
        f"The run at '{run}': expected a student whose classifier has a bias, got cifar/resnet8x0.25 without."
    )
    student = gendd.load(run)
    student.backbone.classifier = nn.Linear(32, 7)
    assert refused(capsys, str(run), "--target", "labels") == (
        "--target: expected teacher or mean, as the student's classifier is of 7 classes and the labels are "
        "of 10, got 'labels'."
    )
    student.backbone.classifier_names = ()
    assert refused(capsys, str(run)) == (
        f"The run at '{run}': expected a student with a classifier, got cifar/resnet8x0.25 as an embedding "
        "network, which has none to fit."
    )


@pytest.mark.parametrize("place", ["gendd.run.probing.refit_linear", "gendd.run.probing.write_card"])
def test_an_interruption_leaves_the_run_as_it_was(
    run: Path, place: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = contents(run)
    monkeypatch.setattr(place, stopped)
    assert main(["probe", str(run)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "gendd: interrupted; the run is as it was."
    assert contents(run) == before


def test_validation_images_are_not_called_test_images() -> None:
    refit = Refit("teacher", "teacher", 0.1, 4.0, 41.0, "refitted", 432, 48)
    before: dict[str, float | None] = {"top1": None, "top5": None, "agreement": 4.0}
    said = str(Probed(refit, before, {**before, "agreement": 41.0}, 1.0, "validation"))
    assert said.splitlines()[1].startswith("validation agreement with the teacher ") and "test" not in said
