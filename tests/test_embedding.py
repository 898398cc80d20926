from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gendd
from gendd import embedding
from gendd.config import DataConfig, GenDDConfig
from gendd.data import Data, ImageSet, load_data
from gendd.embedding import check_refit, collect_features, embedding_scores, refit_linear
from gendd.errors import UserError
from gendd.generator import FeatureGenerator
from gendd.models import Backbone, Frozen
from gendd.probe import agreement, choose_classifier, neighbour_votes

CLASSES = 10


class Flat(nn.Module):
    """A network whose feature is a linear map of the image."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.map = nn.Linear(64, width)
        self.fc = nn.Linear(width, classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.map(x.flatten(1))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Module:
        return self.fc


def flat(width: int, seed: int, classes: int = CLASSES, classifier: bool = True) -> Backbone:
    torch.manual_seed(seed)
    net = Flat(width, classes)
    return Backbone(
        net,
        name="flat",
        in_channels=1,
        mean=[0.0],
        std=[1.0],
        image_size=(8, 8),
        classifier=classifier,
        feature_dim=None if classifier else width,
    )


def student(classifier: bool = False, linear: bool = True) -> gendd.Student:
    backbone = flat(24, 0)
    config = GenDDConfig(token_width=8, head_width=16, head_depth=1, timesteps=20)
    generator = FeatureGenerator(24, 16, config)
    reader = nn.Linear(16, CLASSES).requires_grad_(False) if classifier else None
    return gendd.Student(backbone, generator, reader, linear=linear).eval()


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(DataConfig(train_images=300))


def test_features_are_those_of_the_images_as_they_are(data: Data) -> None:
    whole, teacher = student(), Frozen(flat(16, 1))
    found = collect_features(whole, teacher, data.test)
    images = data.test.images(range(len(data.test))).float() / 255
    with torch.no_grad():
        torch.testing.assert_close(found.own, whole.features(images))
        torch.testing.assert_close(found.generated, whole.embed(images))
        torch.testing.assert_close((found.teacher, found.teacher_logits), teacher(images))
    assert found.labels is not None and torch.equal(found.labels, data.test.labels)
    alone = collect_features(gendd.Student(flat(24, 0)).eval(), None, replace(data.test, labels=None))
    assert (alone.generated, alone.teacher, alone.teacher_logits, alone.labels) == (None, None, None, None)


def test_no_more_images_are_taken_than_asked_for_and_they_are_spread(data: Data) -> None:
    found = collect_features(student(), None, data.train, limit=3)
    images = data.train.images([0, 150, 299]).float() / 255
    torch.testing.assert_close(found.own, student().features(images).detach())
    assert found.labels is not None and data.train.labels is not None
    assert torch.equal(found.labels, data.train.labels[[0, 150, 299]])


def test_scores_are_those_of_the_features(data: Data) -> None:
    whole, teacher = student(), Frozen(flat(16, 1, classifier=False))
    scores = embedding_scores(whole, teacher, data.train, data.test, CLASSES)
    assert list(scores) == ["teacher", "feature", "generated"]
    assert set(scores["feature"]) == {"knn", "linear_probe"}
    bank, test = (collect_features(whole, teacher, part) for part in (data.train, data.test))
    assert bank.labels is not None and test.labels is not None
    assert bank.teacher is not None and test.teacher is not None and test.generated is not None
    votes = neighbour_votes(test.teacher, bank.teacher, bank.labels, CLASSES)
    assert scores["teacher"]["knn"] == round(100 * agreement(votes, test.labels), 2)
    held = torch.arange(300) % 10 == 0
    choice = choose_classifier(bank.own[~held], bank.labels[~held], bank.own[held], bank.labels[held])
    right = agreement(F.linear(test.own, choice.weight, choice.bias), test.labels)
    assert scores["feature"]["linear_probe"] == round(100 * right, 2) > 80
    mean = bank.teacher.mean(0)
    cosine = F.cosine_similarity(test.generated - mean, test.teacher - mean, dim=-1).mean()
    assert scores["generated"]["cosine"] == pytest.approx(float(cosine), abs=1e-4)


def test_the_teacher_s_own_feature_has_cosine_one(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gendd.Student(flat(16, 1), FeatureGenerator(16, 16, GenDDConfig(token_width=8)), linear=False)
    assert whole.generator is not None
    # one that generates what conditions it
    monkeypatch.setattr(whole.generator, "condition", lambda features: features)
    monkeypatch.setattr(whole.generator, "mean", lambda condition: condition)
    teacher = Frozen(flat(16, 1, classifier=False))
    scores = embedding_scores(whole.eval(), teacher, data.train, data.test, CLASSES)
    assert scores["generated"].pop("cosine") == 1.0
    assert scores["generated"] == scores["feature"] == scores["teacher"]


@pytest.mark.parametrize("part", ["bank", "test"])
def test_without_labels_there_is_the_cosine_alone(part: str, data: Data) -> None:
    sets: dict[str, ImageSet] = {"bank": data.train, "test": data.test}
    sets[part] = replace(sets[part], labels=None)
    scores = embedding_scores(student(), Frozen(flat(16, 1)), sets["bank"], sets["test"], CLASSES)
    assert scores["teacher"] == scores["feature"] == {"knn": None, "linear_probe": None}
    cosine = scores["generated"].pop("cosine")
    assert cosine is not None and -1 <= cosine <= 1
    assert scores["generated"] == {"knn": None, "linear_probe": None}


# --- the linear readout, fitted anew ---


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
    if target == "mean":  # what an untrained generator says has little to do with the teacher
        assert round(100 * after, 2) == max(refit.trained, refit.refitted)
        return
    assert refit.kept == "refitted" and refit.refitted == round(100 * after, 2) > 80
    # again there is nothing better
    again = refit_linear(whole, teacher, data, target, labels=labels)  # type: ignore[arg-type]
    assert again.kept == "trained" and again.trained == again.refitted == refit.refitted


def test_a_worse_readout_is_not_taken(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = student()
    refit_linear(whole, Frozen(flat(16, 1)), data, "labels", labels=True)
    before = whole.backbone.classifier.weight.clone()
    monkeypatch.setattr(
        embedding,
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


def test_what_a_readout_cannot_be_fitted_to() -> None:
    same, other, none = Frozen(flat(16, 1)), Frozen(flat(16, 1, 7)), Frozen(flat(16, 1, classifier=False))
    for target in ("labels", "teacher", "mean"):
        check_refit(student(classifier=True), same, target, True)
    for teacher, target, labels, there in (
        (same, "labels", False, "teacher or none"),
        (same, "mean", True, "labels or teacher or none"),  # nothing reads what is generated
        (other, "teacher", True, "labels or none"),
        (none, "teacher", False, "none"),
        (none, "mean", False, "none"),
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
