from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import gendd
from gendd.config import GenDDConfig, ReadoutName
from gendd.data import ImageSet
from gendd.data.encoded import Files
from gendd.deploy import deploy
from gendd.deploy.costs import OutputName, readout_costs
from gendd.errors import UserError
from gendd.evaluation import Scores, evaluate, pick_readout
from gendd.evaluation.long_tail import Shots
from gendd.models import Backbone, Frozen, memory_format
from gendd.student.generator import FeatureGenerator


class Pixels(nn.Module):
    """A network whose feature is the image itself."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Module:
        return self.fc


def reader(classes: int, weight: Tensor) -> Backbone:
    net = Pixels(16, classes)
    with torch.no_grad():
        net.fc.weight.copy_(weight)
        net.fc.bias.zero_()
    return Backbone(net, name="pixels", in_channels=1, mean=[0.0], std=[1.0])


def images(classes: list[int], labels: list[int] | None) -> ImageSet:
    """Images with one lit pixel, whose position is the class predicted by ``reader`` with an identity."""
    pixels = torch.zeros(len(classes), 16, dtype=torch.uint8)
    pixels[range(len(classes)), classes] = 255
    target = None if labels is None else torch.tensor(labels)
    return ImageSet(pixels.reshape(-1, 1, 4, 4), target, channels=1, size=4)


def test_accuracies_are_counts() -> None:
    student = gendd.Student(reader(3, torch.eye(3, 16))).eval()
    scores = evaluate(student, images([0, 1, 2, 2], [0, 1, 2, 1]))
    assert set(scores) == {"linear"}
    assert scores["linear"].top1 == 75.0
    assert scores["linear"].top5 is None  # of three classes
    assert scores["linear"].agreement is None
    confusion = scores["linear"].confusion
    assert confusion is not None
    assert confusion.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]


def test_top5_counts_the_first_five() -> None:
    # for every image class 0 ranks first, then 1, 2, …
    weight = torch.arange(7.0).flip(0)[:, None].expand(7, 16)
    student = gendd.Student(reader(7, weight)).eval()
    scores = evaluate(student, images([3] * 4, [0, 4, 5, 6]))["linear"]
    assert scores.top1 == 25.0
    assert scores.top5 == 50.0


def test_agreement_is_with_the_teacher_and_needs_no_labels() -> None:
    student = gendd.Student(reader(3, torch.eye(3, 16))).eval()
    teacher = Frozen(reader(3, torch.eye(3, 16)[[1, 0, 2]]))
    scores = evaluate(student, images([0, 1, 2, 2], None), teacher=teacher)["linear"]
    assert scores.agreement == 50.0
    assert (scores.top1, scores.top5, scores.confusion) == (None, None, None)


def test_a_readout_of_other_classes_than_the_labels_has_agreement_alone() -> None:
    student = gendd.Student(reader(3, torch.eye(3, 16))).eval()
    teacher = Frozen(reader(3, torch.eye(3, 16)[[1, 0, 2]]))
    labelled = images([0, 1, 2, 2], [0, 9, 2, 1])
    scores = evaluate(student, labelled, teacher=teacher, num_classes=10)["linear"]
    assert scores.agreement == 50.0
    assert (scores.top1, scores.top5, scores.confusion) == (None, None, None)
    other = evaluate(student, images([0, 1], [0, 1]), teacher=Frozen(reader(4, torch.eye(4, 16))))["linear"]
    assert (other.top1, other.agreement) == (100.0, None)


def test_a_student_without_readouts_has_no_scores() -> None:
    whole = generative()
    student = gendd.Student(whole.backbone, whole.generator, linear=False).eval()
    assert evaluate(student, images([0], [0])) == {}


def test_costs_of_features() -> None:
    student = generative()
    batch = torch.rand(2, 1, 4, 4)
    names: tuple[OutputName, ...] = ("feature", "generated", "mean", "sample")
    own, generated, mean, sample = (readout_costs(student, name, batch) for name in names)
    assert (own["parameters"], own["multiply_adds"]) == (0, 0)  # its feature is the image itself
    assert sample["parameters"] - generated["parameters"] == 8 * 6 + 6
    # logits are cheaper than the feature itself: their last layers are one
    assert 0 < mean["multiply_adds"] < generated["multiply_adds"]


def test_corrupt_images_are_in_no_figure(tmp_path: Path) -> None:
    paths = []
    for number, pixels in enumerate(images([0, 1, 2, 2], None).images(range(4))):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(pixels[0].numpy()).save(paths[-1])
    Path(paths[1]).write_bytes(b"nothing")
    some = ImageSet(Files(paths), torch.tensor([0, 0, 2, 1]), channels=1, size=4, max_corrupt=0.25)
    student = gendd.Student(reader(3, torch.eye(3, 16))).eval()
    teacher = Frozen(reader(3, torch.eye(3, 16)[[0, 2, 1]]))
    shots = Shots(torch.tensor([200, 50, 5]))
    scores = evaluate(student, some, teacher=teacher, shots=shots, workers=0)["linear"]
    # of three images the first and third are correct; the teacher disagrees on the last two
    assert scores.images == 3 and len(some.skipped) == 1
    assert scores.top1 == pytest.approx(200 / 3) and scores.agreement == pytest.approx(100 / 3)
    assert scores.as_dict()["groups"] == {
        "many": {"top1": 100.0, "classes": 1, "images": 1},
        "medium": {"top1": 0.0, "classes": 1, "images": 1},
        "few": {"top1": 100.0, "classes": 1, "images": 1},
    }


def test_batches_are_added_up() -> None:
    count = 600  # three batches
    student = gendd.Student(reader(3, torch.eye(3, 16))).eval()
    wrong = images([0] * count, [0] * (count - 3) + [1, 2, 1])
    assert evaluate(student, wrong)["linear"].top1 == pytest.approx(99.5)


def test_scores_are_rounded_to_two_decimals() -> None:
    assert Scores(100 / 3, None, 200 / 3, None).as_dict() == {
        "top1": 33.33,
        "top5": None,
        "agreement": 66.67,
    }


@pytest.mark.parametrize(
    "top1, picked",
    [
        ({"linear": 75.0, "mean": 76.0, "sample": 76.05}, "mean"),
        ({"linear": 75.0, "mean": 76.0, "sample": 76.5}, "sample"),
        # 0.1 below is near, on numbers as they are printed
        ({"linear": 75.2, "mean": 75.3, "sample": 70.0}, "linear"),
        ({"linear": 75.19, "mean": 75.3, "sample": 70.0}, "mean"),
        ({"linear": None, "mean": 10.0, "sample": 9.0}, "mean"),
        ({"sample": 9.0}, "sample"),
    ],
)
def test_the_cheapest_readout_near_the_best_is_picked(
    top1: dict[ReadoutName, float | None], picked: ReadoutName
) -> None:
    # independent of the order, and of the other metric
    scores = {name: Scores(value, None, 50.0, None) for name, value in reversed(top1.items())}
    pick = pick_readout(scores, "top1")
    assert pick.name == picked
    assert pick.percent == {name: value for name, value in top1.items() if value is not None}
    assert pick_readout(scores, "agreement").name == next(iter(top1))


def test_a_pick_says_what_it_compared() -> None:
    scores: dict[ReadoutName, Scores] = {
        "linear": Scores(None, None, 70.0, None),
        "mean": Scores(None, None, 71.234, None),
    }
    assert str(pick_readout(scores, "agreement")) == (
        "readout mean, the cheapest one close to the best; agreement with the teacher on validation images: "
        "linear 70.00 %, mean 71.23 %"
    )
    with pytest.raises(UserError, match="expected linear, mean or sample where no readout can be judged"):
        pick_readout(scores, "top1")


def generative(settings: dict[str, Any] | None = None) -> gendd.Student:
    torch.manual_seed(0)
    config = GenDDConfig(token_width=4, head_width=8, head_depth=1, **(settings or {}))
    generator = FeatureGenerator(16, 8, config)
    nn.init.normal_(generator.head.final.weight)
    readout = gendd.ReadoutConfig("sample", steps=2, num_samples=1)
    return gendd.Student(reader(6, torch.eye(6, 16)), generator, nn.Linear(8, 6), readout).eval()


def test_only_the_readouts_asked_for_and_sampling_by_the_seed() -> None:
    student = generative()
    some = images([0, 1, 2, 3] * 8, [0, 1, 2, 3] * 8)
    assert list(evaluate(student, some)) == ["linear", "mean", "sample"]
    assert list(evaluate(student, some, readouts=("mean",))) == ["mean"]

    def confusion(seed: int) -> Tensor:
        torch.manual_seed(torch.initial_seed() + 1)  # the global generator plays no part
        found = evaluate(student, some, readouts=("sample",), seed=seed)["sample"].confusion
        assert found is not None
        return found

    assert torch.equal(confusion(1), confusion(1))
    assert not torch.equal(confusion(1), confusion(2))


def test_costs_are_of_the_parts_in_use() -> None:
    student = generative()
    batch = torch.rand(2, 1, 4, 4)
    linear = readout_costs(student, "linear", batch)
    mean = readout_costs(student, "mean", batch)
    assert linear["parameters"] == 16 * 6 + 6
    assert linear["multiply_adds"] == 16 * 6
    assert student.generator is not None and student.classifier is not None
    generator = sum(p.numel() for p in student.generator.parameters())
    # the backbone has no layer but its classifier
    assert mean["parameters"] == sum(p.numel() for p in deploy(student, "mean").reader.parameters())
    assert mean["multiply_adds"] > 8 * 6
    sample = readout_costs(student, "sample", batch)
    assert sample["parameters"] == generator + 8 * 6 + 6 > mean["parameters"] > 0
    assert sample["multiply_adds"] > mean["multiply_adds"]
    assert min(cost["latency_ms"] for cost in (linear, mean, sample)) > 0


def test_latency_is_in_the_memory_format_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Tensor] = []

    def timings(fn: Any, images: Tensor, **options: Any) -> list[float]:
        timed.append(images)
        return [0.0, 0.0]

    monkeypatch.setattr("gendd.deploy.costs.timings", timings)
    student = gendd.Student(gendd.create_backbone("cifar/resnet8x0.25", 4)).eval()
    batch = torch.rand(2, 3, 8, 8)
    assert memory_format(student) == torch.contiguous_format
    readout_costs(student, "linear", batch)
    student.to(memory_format=torch.channels_last)
    assert memory_format(student) == torch.channels_last
    readout_costs(student, "linear", batch)
    formats = [
        [
            images.is_contiguous(memory_format=layout)
            for layout in (torch.contiguous_format, torch.channels_last)
        ]
        for images in timed
    ]
    assert formats == [[True, False], [False, True]]
    assert all(torch.equal(images, batch) for images in timed)


def test_a_teacher_is_asked_once_for_several_students() -> None:
    student = gendd.Student(reader(3, torch.eye(3, 16))).eval()
    teacher = Frozen(reader(3, torch.eye(3, 16)[[1, 0, 2]]))
    asked: list[int] = []
    teacher.register_forward_hook(lambda module, given, out: asked.append(len(given[0])))
    told: dict[int, Tensor] = {}
    for classes in ([0, 1, 2, 2], [2, 2, 2, 2]):
        shown = images(classes, None)
        own = evaluate(student, shown, teacher=teacher)["linear"].agreement
        told = {}
        for _ in range(3):
            assert evaluate(student, shown, teacher=teacher, told=told)["linear"].agreement == own
    assert asked == [4, 4] * 2
    # one image less is another batch
    evaluate(student, images([0, 1, 2], None), teacher=teacher, told=told)
    assert asked[-1] == 3 and len(told[0]) == 3
