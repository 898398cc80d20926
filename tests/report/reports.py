"""Data for the tests of reports, and a parser of pages."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

from gendd.evaluation import Answers
from gendd.report import Example, ReportData

STUDENT = {"name": "cifar/resnet20", "parameters": 272_474}
COST = {"multiply_adds": 41_200_000, "latency_ms": 0.9}


def metrics() -> dict[str, Any]:
    return {
        "run": {"name": "x", "method": "gendd", "seed": 7, "test_images": 10_000, "device": "cpu"},
        "teacher": {
            "name": "cifar/resnet56",
            "parameters": 855_770,
            "multiply_adds": 125_800_000,
            "latency_ms": 2.5,
            "top1": 72.34,
            "top5": 92.0,
        },
        "student": STUDENT
        | {
            "readouts": {
                "sample": {
                    "top1": 72.40,
                    "top5": 92.5,
                    "multiply_adds": 18_500_000_000,
                    "latency_ms": 412.0,
                    "steps": 100,
                    "guidance": 2.0,
                    "num_samples": 5,
                },
                "linear": COST | {"top1": 71.90, "top5": 92.1},
                "mean": {"top1": 72.10, "top5": 92.2, "multiply_adds": 43_200_000, "latency_ms": 1.0},
            },
            "readout": "mean",
            "train_seconds": 9000.0,
        },
        "baselines": {
            "supervised": STUDENT | COST | {"top1": 69.06, "top5": 90.0, "train_seconds": 1.0},
            "kl": STUDENT | COST | {"top1": 70.70, "top5": 91.0, "train_seconds": 1.0},
        },
    }


def unlabelled() -> dict[str, Any]:
    plain = metrics()
    entries = [plain["teacher"], *plain["student"]["readouts"].values(), *plain["baselines"].values()]
    for entry in entries:
        entry |= {"top1": None, "top5": None}
    return plain


def agreed() -> dict[str, Any]:
    """Metrics with a teacher of other classes: agreement only."""
    plain = unlabelled()
    for index, entry in enumerate([*plain["student"]["readouts"].values(), *plain["baselines"].values()]):
        entry["agreement"] = 60.0 + index
    return plain


def embedded(readouts: bool = False) -> dict[str, Any]:
    """Metrics with a teacher without a classifier."""
    plain = metrics()
    plain["teacher"] |= {"top1": None, "top5": None, "embedding": {"knn": 70.0, "linear_probe": 71.0}}
    plain["student"]["embedding"] = {
        "feature": COST | {"knn": 64.0, "linear_probe": 68.0, "parameters": 270_000},
        "generated": COST | {"knn": 66.0, "linear_probe": 67.0, "cosine": 0.8124, "parameters": 300_000},
    }
    if not readouts:
        plain["baselines"] = {}
        plain["student"] |= {"readouts": {}, "readout": None}
    return plain


def by_shots() -> dict[str, Any]:
    """With top-1 by training images a class."""
    found = metrics()
    found["run"]["shot_thresholds"] = [20, 100]
    entries = [found["teacher"], *found["student"]["readouts"].values(), *found["baselines"].values()]
    for number, entry in enumerate(entries):
        entry["groups"] = {
            "many": {"top1": 80.0 + number, "classes": 35, "images": 7000},
            "medium": {"top1": 60.5, "classes": 64, "images": 3000},
            "few": {"top1": None, "classes": 1, "images": 0},
        }
    return found


def log(final: float) -> list[dict[str, float]]:
    return [
        {"step": 5 * i, "epoch": i, "train/loss": 2.0 / (i + 1), "train/diffusion": 1.0} for i in range(6)
    ] + [{"step": 5 * i + 4, "epoch": i, "val/top1": final - 6 + i} for i in range(6)]


def full() -> ReportData:
    features = np.random.default_rng(0).normal(size=(60, 8))
    image = (np.arange(64, dtype=np.uint8) * 4).reshape(8, 8)
    return ReportData(
        title="a <run> & more",
        metrics=metrics(),
        curves={"supervised": log(69), "kl": log(70), "gendd": log(72), "teacher": log(73)},
        confusion=torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]]),
        class_names=["<cat>", "$dog$", "猫"],
        teacher_features=features,
        generated_features=features + 0.1,
        feature_labels=np.arange(60) % 3,
        examples=[Example(image, "$dog$", "<cat>", 0.61), Example(image, "猫", "猫", 0.99)] * 15,
        config_yaml="seed: 7\nout: '<script>alert(1)</script>'\n",
    )


def answered(right: Sequence[bool], labels: torch.Tensor, confidence: float = 0.8) -> Answers:
    """Predictions of three classes; wrong ones are the class after the true one."""
    predicted = torch.where(torch.tensor(right), labels, (labels + 1) % 3)
    return Answers(predicted, torch.full((len(labels),), confidence), labels)


def judged() -> ReportData:
    """A report of twelve images, four per class: the student makes five errors, the teacher two."""
    labels = torch.arange(12) % 3
    own, teacher, alone = [True] * 12, [True] * 12, [True] * 12
    for row in (0, 3, 6, 1, 4):
        own[row] = False
    for row in (0, 2):
        teacher[row] = False
    data = full()
    data.folder = "runs/a <run>"
    data.answers = {
        "gendd": answered(own, labels),
        "teacher": answered(teacher, labels),
        "supervised": answered(alone, labels),
    }
    data.picture = lambda row: np.full((8, 8), 20 * row, np.uint8)
    data.metrics["gains"] = {
        "teacher": {"points": -0.24, "low": -1.0, "high": 0.5},
        "supervised": {"points": 3.04, "low": 2.0, "high": 4.1},
        "kl": {"points": 1.4, "low": -0.1, "high": 2.9},
    }
    data.metrics["run"]["latency_batch"] = 32
    mean = data.metrics["student"]["readouts"]["mean"]
    mean |= {"latency_quartiles_ms": [0.9, 1.2], "agreement": 81.5, "parameters": 250_000}
    return data


def decode(url: str) -> bytes:
    return base64.b64decode(url.split(";base64,")[1], validate=True)


def words(figure: ElementTree.Element) -> list[str]:
    return ["".join(node.itertext()) for node in figure.iter("{http://www.w3.org/2000/svg}text")]


class Page(HTMLParser):
    """Collects tags and text, and checks that elements close in order."""

    VOID = frozenset({"meta", "img", "source", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str, **wanted: str) -> int:
        renamed = {key.rstrip("_"): value for key, value in wanted.items()}
        return sum(name == tag and renamed.items() <= attrs.items() for name, attrs in self.tags)

    def figures(self, attribute: str = "src") -> dict[str, ElementTree.Element]:
        """The SVG figures by their alt text; ``srcset`` gives the dark ones."""
        light = {a["alt"]: a["src"] for t, a in self.tags if t == "img" and "svg" in str(a["src"])}
        dark = dict(zip(light, [a["srcset"] for t, a in self.tags if t == "source"], strict=True))
        chosen = light if attribute == "src" else dark
        return {str(alt): ElementTree.fromstring(decode(str(url))) for alt, url in chosen.items()}
