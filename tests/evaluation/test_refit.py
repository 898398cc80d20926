from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from flat import CLASSES, flat, student
from torch import nn

from gendd.config import DataConfig
from gendd.data import Batches, Data, ImageSet, load_data
from gendd.errors import UserError
from gendd.evaluation import refit as refit_module
from gendd.evaluation.embedding import collect_features
from gendd.evaluation.linear_fit import agreement, choose_classifier
from gendd.evaluation.refit import Refit, Target, check_refit, refit_linear
from gendd.evaluation.rows import Rows
from gendd.models import Frozen


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(DataConfig(train_images=300, validation_images="all"))


@pytest.mark.parametrize("target, labels", [("labels", True), ("teacher", False), ("mean", False)])
def test_the_better_readout_stays(target: str, labels: bool, data: Data) -> None:
    whole, teacher = student(classifier=True), Frozen(flat(16, 1))
    assert data.val is not None
    held = collect_features(whole, teacher, data.val)
    assert held.labels is not None and held.teacher_logits is not None
    wanted = held.labels if labels else held.teacher_logits.softmax(-1)
    before = agreement(whole.backbone.classifier(held.own), wanted)
    refit = refit_linear(whole, teacher, data, target, labels=labels)  # type: ignore[arg-type]
    after = agreement(whole.backbone.classifier(held.own), wanted)
    assert (refit.target, refit.trained) == (target, round(100 * before, 2))
    assert refit.judged_by == ("labels" if labels else "teacher")
    assert (refit.images, refit.held_images) == (300, len(data.val))
    if target == "mean":  # an untrained generator's predictions have little to do with the teacher's
        assert round(100 * after, 2) == max(refit.trained, refit.refitted)
        return
    assert refit.kept == "refitted" and refit.refitted == round(100 * after, 2) > 80
    # a second fit finds nothing better
    again = refit_linear(whole, teacher, data, target, labels=labels)  # type: ignore[arg-type]
    assert again.kept == "trained" and again.trained == again.refitted == refit.refitted


@pytest.mark.parametrize("val", [True, False])
def test_of_several_targets_the_best_one_counts(val: bool, data: Data) -> None:
    data, teacher = data if val else replace(data, val=None), Frozen(flat(16, 1))
    alone = {
        name: refit_linear(student(), teacher, data, name, labels=True)
        for name in get_args(Target)
        if name != "mean"
    }
    both = student()
    refit = refit_linear(both, teacher, data, ["teacher", "labels"], labels=True)
    shares = {name: each.refitted for name, each in alone.items()}
    assert refit.tried == shares and shares["labels"] > shares["teacher"] + 10
    assert replace(refit, tried={}) == replace(alone["labels"], tried={})
    single = student()
    refit_linear(single, teacher, data, "labels", labels=True)
    assert torch.equal(both.backbone.classifier.weight, single.backbone.classifier.weight)
    assert str(refit).endswith(
        f"to labels of {refit.images} images {refit.refitted:.2f} %, to the teacher's predictions "
        f"{shares['teacher']:.2f} %; kept the refitted one"
    )


def test_the_teacher_answers_once_where_it_judges_too(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, seen = Frozen(flat(16, 1)), 0
    forward = Frozen.forward

    def counted(self: Frozen, images: torch.Tensor) -> Any:
        nonlocal seen
        seen += len(images)
        return forward(self, images)

    monkeypatch.setattr(Frozen, "forward", counted)
    refit_linear(student(), teacher, replace(data, val=None), "teacher", labels=False)
    assert seen == 300


def test_a_limit_takes_the_labelled_images_that_judge(data: Data) -> None:
    assert isinstance(data.train, ImageSet) and data.train.labels is not None
    labels = torch.where(torch.arange(300) % 12 == 5, data.train.labels, -1)
    part = replace(data, train=replace(data.train, labels=labels), val=None)
    # 25 labelled ones, which a sample of 30 would hardly meet
    refit = refit_linear(student(), Frozen(flat(16, 1)), part, "teacher", labels=True, limit=30)
    assert (refit.judged_by, refit.held_images, refit.images) == ("labels", 3, 27)


def test_of_equally_good_targets_the_first_is_taken(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        refit_module,
        "choose_classifier",
        lambda *given, **more: replace(choose_classifier(*given, **more), accuracy=0.99),
    )
    teacher = Frozen(flat(16, 1))
    for targets in (["labels", "teacher"], ["teacher", "labels"]):
        refit = refit_linear(student(), teacher, data, targets, labels=True)  # type: ignore[arg-type]
        assert refit.target == targets[0] and list(refit.tried) == targets


def test_images_without_a_label_are_fitted_to_the_teacher_alone(data: Data) -> None:
    assert isinstance(data.train, ImageSet) and data.train.labels is not None
    labels = data.train.labels.clone()
    labels[50:] = -1
    data = replace(data, train=replace(data.train, labels=labels))
    teacher, found = Frozen(flat(16, 1)), {}
    for targets in (["labels"], ["teacher"], ["labels", "teacher"], ["teacher", "labels"]):
        found[tuple(targets)] = refit_linear(student(), teacher, data, targets, labels=True)  # type: ignore[arg-type]
    alone = found["labels",], found["teacher",]
    assert [each.images for each in alone] == [50, 300]
    assert alone[0].refitted > alone[1].refitted
    for targets, refit in found.items():
        if len(targets) == 2:
            assert (refit.target, refit.images) == ("labels", 50)
            assert refit.tried == {name: found[name,].refitted for name in targets}
    # a limit takes the labelled ones first
    refit = refit_linear(student(), teacher, data, ["labels", "teacher"], labels=True, limit=30)
    assert (refit.target, refit.images) == ("labels", 30)
    refit = refit_linear(student(), teacher, data, ["teacher"], labels=True, limit=30)
    assert refit.images == 30


def test_without_labelled_validation_images_the_teacher_does_not_judge_itself(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(data.train, ImageSet) and data.train.labels is not None and data.val is not None
    teacher, both = Frozen(flat(16, 1)), ["labels", "teacher"]
    train = data.train
    assert train.labels is not None

    def fitted(labelled: int, val: ImageSet | None) -> Refit:
        labels = torch.where(torch.arange(len(train)) < labelled, train.labels, -1)
        part = replace(data, train=replace(train, labels=labels), val=val)
        return refit_linear(student(), teacher, part, both, labels=True)  # type: ignore[arg-type]

    unlabelled = replace(data.val, labels=None)
    monkeypatch.setattr(refit_module, "_ENOUGH", 100)
    for val in (None, unlabelled):
        # every tenth labelled image judges
        refit = fitted(100, val)
        assert (refit.target, refit.judged_by) == ("labels", "labels")
        assert (refit.images, refit.held_images) == (90, 10)
        assert refit.tried["labels"] > refit.tried["teacher"]
        # too few of them
        refit = fitted(99, val)
        assert (refit.judged_by, set(refit.tried)) == ("teacher", {"teacher"})
        assert refit.images == (300 if val is not None else 270)


def test_a_worse_readout_is_not_taken(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = student()
    refit_linear(whole, Frozen(flat(16, 1)), data, "labels", labels=True)
    before = whole.backbone.classifier.weight.clone()
    monkeypatch.setattr(
        refit_module,
        "choose_classifier",
        lambda *given, **more: replace(choose_classifier(*given, **more), accuracy=0.0),
    )
    refit = refit_linear(whole, Frozen(flat(16, 1)), data, "labels", labels=True)
    assert refit.kept == "trained" and torch.equal(whole.backbone.classifier.weight, before)


def test_without_validation_images_every_tenth_decides(data: Data) -> None:
    whole = student()
    refit = refit_linear(whole, Frozen(flat(16, 1)), replace(data, val=None), "labels", labels=True)
    found = collect_features(whole, None, data.train)
    assert found.labels is not None
    right = agreement(whole.backbone.classifier(found.own[::10]), found.labels[::10])
    assert refit.kept == "refitted" and refit.refitted == round(100 * right, 2)


def test_too_few_images_to_hold_some_out_are_refused(data: Data) -> None:
    whole = student()
    before = whole.backbone.classifier.weight.clone()
    with pytest.raises(UserError, match=r"expected at least 20 training images, as .*, got 19; take more"):
        refit_linear(whole, None, replace(data, val=None), "labels", labels=True, limit=19)
    assert torch.equal(whole.backbone.classifier.weight, before)
    refit = refit_linear(whole, None, replace(data, val=None), "labels", labels=True, limit=20)
    assert (refit.images, refit.held_images) == (18, 2)
    assert refit_linear(whole, None, data, "labels", labels=True, limit=1).images == 1


def test_all_images_are_fitted_to_however_many(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that don't fit in memory are read from files, with the same result."""
    teacher = Frozen(flat(16, 1))
    for target, labels, val in (("labels", True, data.val), ("teacher", False, None)):
        found = []
        for limit in (2**28, 3000):  # of 300 rows of 24 numbers, and 10 of the teacher
            monkeypatch.setattr("gendd.evaluation.linear_fit.HELD_NUMBERS", limit)
            monkeypatch.setattr("gendd.evaluation.refit.HELD_NUMBERS", limit)
            part = replace(data, val=val)
            found.append(refit_linear(student(), teacher, part, target, labels=labels))  # type: ignore[arg-type]
        held, many = found
        assert many.images == held.images == (270 if val is None else 300)
        assert many.kept == "refitted" and abs(many.refitted - held.refitted) < 5


def test_files_of_features_are_whole_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    random = torch.Generator().manual_seed(0)
    features, targets = torch.randn(7, 3, generator=random), torch.rand(7, 2, generator=random)
    rows = Rows(["teacher"], on_disk=True)
    for part in (slice(0, 4), slice(4, 7)):
        rows.add(features[part], {"teacher": targets[part]})
    assert torch.equal(rows.features, features) and torch.equal(rows.of("teacher"), targets)
    classes = Rows(["labels"], on_disk=True)
    classes.add(features[:4], {"labels": torch.tensor([0, 1, -1, 3])})
    classes.add(features[4:], {"labels": torch.arange(4, 7)})
    there = torch.tensor([0, 1, 3, 4, 5, 6])
    assert torch.equal(classes.of("labels"), there) and torch.equal(classes.features, features[there])
    assert set(classes.files) == {"features"}
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_the_features_is_told(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(np.ndarray[Any, Any]):
        def tofile(self, *_: object) -> None:  # type: ignore[override]
            raise OSError("256 requested and 0 written")

    monkeypatch.setattr("gendd.evaluation.refit.HELD_NUMBERS", 100)
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: np.empty(1).view(Full))
    with pytest.raises(UserError) as caught:
        refit_linear(student(), None, data, "labels", labels=True)
    message = str(caught.value)
    assert message.startswith("Features of the training images: expected room for them in ")
    assert "got none after 0 images (256 requested and 0 written); set TMPDIR" in message


def test_a_student_without_a_linear_readout_gets_one(data: Data) -> None:
    whole = student(linear=False)
    assert whole.readouts == ()
    refit = refit_linear(whole, None, data, "labels", labels=True)
    assert (refit.trained, refit.kept) == (None, "refitted") and refit.refitted > 80
    assert whole.readouts == ("linear",) and whole.readout == "linear"
    assert str(refit).startswith(
        "linear readout on held-out images: none before, refitted to labels of 300 images "
    )
    # a student that reads generated features keeps its readout
    other = student(classifier=True, linear=False)
    refit_linear(other, None, data, "mean", labels=False)
    assert other.readouts == ("linear", "mean", "sample") and other.readout == "mean"


def test_without_labels_and_teacher_the_mean_readout_judges(data: Data) -> None:
    whole = student(classifier=True)
    refit = refit_linear(whole, None, data, "mean", labels=False)
    assert data.val is not None and refit.judged_by == "mean"
    found = collect_features(whole, None, data.val)
    with torch.no_grad():
        said = whole.logits(found.own, "mean").argmax(-1)
        right = agreement(whole.logits(found.own, "linear"), said)
    assert round(100 * right, 2) == max(refit.trained or 0, refit.refitted)


def test_no_more_images_are_fitted_to_than_asked_for(data: Data) -> None:
    refit = refit_linear(student(), None, data, "labels", labels=True, limit=120)
    assert data.val is not None and (refit.images, refit.held_images) == (120, len(data.val))


def test_training_images_are_framed_as_those_of_the_test() -> None:
    seen: list[float] = []
    data = load_data(DataConfig(train_images=40))
    data = replace(data, test=replace(data.test, framing=0.75))
    original = refit_module.sample_loader

    def watched(images: Any, *given: Any) -> Any:
        loader = original(images, *given)
        assert isinstance(loader, Batches)
        seen.append(loader.images.framing)
        return loader

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refit_module, "sample_loader", watched)
        refit_linear(student(), None, data, "labels", labels=True)
    assert seen == [0.75, 0.75]


def test_features_in_bf16_give_the_same_readout(data: Data) -> None:
    """Autocast changes the features of the fit slightly, but not its result."""
    exact, coarse = student(), student()
    wanted = refit_linear(exact, None, data, "labels", labels=True)
    came = refit_linear(coarse, None, data, "labels", labels=True, dtype=torch.bfloat16)
    assert data.val is not None
    held = collect_features(exact, None, data.val).own
    with torch.no_grad():
        logits = [each.backbone.classifier(held) for each in (exact, coarse)]
    assert not torch.equal(*logits)  # it was used
    assert agreement(logits[1], logits[0].argmax(-1)) > 0.97
    assert came.trained == wanted.trained and abs(came.refitted - wanted.refitted) <= 2


def test_what_a_readout_cannot_be_fitted_to() -> None:
    same, other, none = Frozen(flat(16, 1)), Frozen(flat(16, 1, 7)), Frozen(flat(16, 1, classifier=False))
    for target in ("labels", "teacher", "mean", "auto"):
        check_refit(student(classifier=True), same, target, True)
    check_refit(student(), same, "auto", False)
    for teacher, target, labels, there in (
        (same, "labels", False, "teacher or none"),
        (same, "mean", True, "labels or teacher or auto or none"),  # nothing reads what is generated
        (other, "teacher", True, "labels or none"),
        (none, "teacher", False, "none"),
        (none, "mean", False, "none"),
        (none, "auto", False, "none"),
    ):
        with pytest.raises(UserError) as caught:
            check_refit(student(), teacher, target, labels)
        assert str(caught.value) == (
            f"gendd.refit: expected {there} for this teacher and these labels, got {target!r}."
        )
    whole = student()
    whole.backbone.classifier = nn.Linear(24, CLASSES, bias=False)
    with pytest.raises(UserError, match="expected a student whose classifier has a bias"):
        check_refit(whole, same, "labels", True)
