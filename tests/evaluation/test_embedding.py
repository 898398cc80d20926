from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from flat import CLASSES, flat, student
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

import gendd
from gendd.config import DataConfig, GenDDConfig
from gendd.data import Data, ImageSet, load_data
from gendd.evaluation import embedding
from gendd.evaluation.embedding import collect_features, embedding_scores, neighbour_votes
from gendd.evaluation.linear_fit import agreement, choose_classifier
from gendd.models import Frozen
from gendd.student.generator import FeatureGenerator


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
    # a generator that returns its condition
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


def test_votes_are_counted_by_hand() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    votes = neighbour_votes(
        torch.tensor([[5.0, 0.0]]), bank, torch.tensor([0, 1, 1]), 3, neighbours=3, temperature=0.5
    )
    # cosines 1, 0 and √½, less the largest
    wanted = [1.0, math.exp(-2.0) + math.exp((math.sqrt(0.5) - 1) / 0.5), 0.0]
    torch.testing.assert_close(votes, torch.tensor([wanted]))


def test_one_neighbour_is_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, classes = load_digits(return_X_y=True)
    features, labels = torch.tensor(pixels[:500]), torch.tensor(classes[:500])
    reference = KNeighborsClassifier(1, metric="cosine").fit(features[:300].numpy(), labels[:300].numpy())
    monkeypatch.setattr(embedding, "_CHUNK_NUMBERS", 300 * 64)
    votes = neighbour_votes(features[300:], features[:300], labels[:300], 10, neighbours=1)
    assert votes.argmax(-1).tolist() == reference.predict(features[300:].numpy()).tolist()


def test_a_bank_smaller_than_the_neighbours_votes_whole() -> None:
    votes = neighbour_votes(torch.ones(2, 3), torch.eye(3), torch.tensor([0, 1, 1]), 2, neighbours=20)
    torch.testing.assert_close(votes, torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
