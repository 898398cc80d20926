"""The distillation losses against their papers' formulas, written out in NumPy."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gendd.errors import UserError
from gendd.methods import _torchdistill
from gendd.methods._logits import Distilled, Outputs, readout_loss
from gendd.methods.dist import DIST
from gendd.methods.dkd import DKD
from gendd.methods.feature_cosine import FeatureCosine
from gendd.methods.feature_mse import FeatureMSE
from gendd.methods.kd_std import KDStd
from gendd.methods.label_smoothing import LabelSmoothing
from gendd.methods.mgd import MGD
from gendd.methods.pkt import PKT
from gendd.methods.rkd import RKD
from gendd.methods.sp import SP
from gendd.methods.srd import SRD
from gendd.models import Backbone, create_backbone

CLASSES = 4
WIDTH, TEACHER_WIDTH = 16, 32
METHODS: list[type[Distilled]] = [KDStd, DIST, SRD, RKD, PKT, SP, DKD, MGD, FeatureMSE, FeatureCosine]
OF_FEATURES: list[type[Distilled]] = [RKD, PKT, SP, MGD, FeatureMSE, FeatureCosine]
OF_TORCHDISTILL: list[type[Distilled]] = [KDStd, DIST, SRD, RKD, PKT]
Array = np.ndarray


def network(name: str = "cifar/resnet8x0.25", classes: int = CLASSES, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return create_backbone(name, classes, in_channels=1)


def pair(classes: int = CLASSES) -> tuple[Backbone, Backbone]:
    return network(), network("cifar/resnet8x0.5", classes, seed=1)


def images() -> Tensor:
    return torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def labels() -> Tensor:
    return torch.arange(8) % CLASSES


def built(kind: type[Distilled], classes: int = CLASSES, **settings: Any) -> Distilled:
    torch.manual_seed(2)
    return kind(*pair(classes), kind.Settings(**settings)).eval()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs(teacher_grid: int = 4) -> tuple[Outputs, Outputs]:
    """Example outputs of a student and a teacher for 6 images."""
    student = Outputs(draw(6, WIDTH, seed=1), draw(6, CLASSES, seed=2), draw(6, WIDTH, 4, 4, seed=3))
    grid = (teacher_grid, teacher_grid)
    taught = draw(6, TEACHER_WIDTH, seed=4), draw(6, CLASSES, seed=5), draw(6, TEACHER_WIDTH, *grid, seed=6)
    return student, Outputs(*taught)


def arrays(given: Outputs) -> tuple[Array, Array, Array]:
    feature, logits, found = given
    assert found is not None
    return feature.double().numpy(), logits.double().numpy(), found.double().numpy()


def softmax(logits: Array) -> Array:
    powers: Array = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def kl(p: Array, q: Array) -> float:
    return float((p * np.log(p / q)).sum(-1).mean())


def projected(method: Distilled, feature: Array) -> Array:
    layer = method.get_submodule("projector")
    assert isinstance(layer, torch.nn.Linear)
    moved: Array = feature @ layer.weight.detach().double().numpy().T
    return moved if layer.bias is None else moved + layer.bias.detach().double().numpy()


def kd_std(method: Distilled, student: Outputs, teacher: Outputs, target: Array) -> float:
    def standard(z: Array) -> Array:
        return (z - z.mean(-1, keepdims=True)) / z.std(-1, ddof=1, keepdims=True)

    s, t = (softmax(standard(arrays(each)[1]) / 2.5) for each in (student, teacher))
    return 3.0 * 2.5**2 * kl(t, s)


def dist(method: Distilled, student: Outputs, teacher: Outputs, target: Array) -> float:
    s, t = (softmax(arrays(each)[1] / 3.0) for each in (student, teacher))
    between = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s, t, strict=True)])
    within = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s.T, t.T, strict=True)])
    return float(3.0**2 * (1.5 * between + 0.5 * within))


def srd(method: Distilled, student: Outputs, teacher: Outputs, target: Array) -> float:
    def normal(f: Array) -> Array:
        scaled: Array = (f - f.mean(0)) / np.sqrt(f.var(0) + 1e-4)
        return scaled

    (f, z, _), (g, y, _) = arrays(student), arrays(teacher)
    apart = np.abs(normal(projected(method, f)) - normal(g)) ** 4
    return float(0.5 * (2 * np.log(apart.sum()) + kl(softmax(y), softmax(z))))


def huber(a: float, b: float) -> float:
    gap = abs(a - b)
    return 0.5 * gap**2 if gap < 1 else gap - 0.5


def rkd(method: Distilled, student: Outputs, teacher: Outputs, target: Array) -> float:
    f, g = arrays(student)[0], arrays(teacher)[0]
    count = range(len(f))

    def lengths(x: Array) -> Array:
        found: Array = np.linalg.norm(x[:, None] - x[None], axis=-1)
        return found / found[found > 0].mean()

    def cosine(x: Array, i: int, j: int, k: int) -> float:
        a, b = x[i] - x[j], x[k] - x[j]
        size = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / size) if size > 0 else 0.0

    s, t = lengths(f), lengths(g)
    distance = np.mean([huber(s[i, j], t[i, j]) for i, j in itertools.product(count, count)])
    triples = itertools.product(count, count, count)
    angle = np.mean([huber(cosine(f, *which), cosine(g, *which)) for which in triples])
    return float(20 * distance + 40 * angle)


def pkt(method: Distilled, student: Outputs, teacher: Outputs, target: Array) -> float:
    def similar(f: Array) -> Array:
        unit = f / np.linalg.norm(f, axis=1, keepdims=True)
        scaled = (unit @ unit.T + 1) / 2
        p: Array = scaled / scaled.sum(1, keepdims=True)
        return p

    s, t = similar(arrays(student)[0]), similar(arrays(teacher)[0])
    return float(100 * np.mean(t * np.log(t / s)))


def sp(method: Distilled, student: Outputs, teacher: Outputs, target: Array) -> float:
    def gram(found: Array) -> Array:
        rows = found.reshape(len(found), -1)
        product = rows @ rows.T
        unit: Array = product / np.linalg.norm(product, axis=1, keepdims=True)
        return unit

    apart = gram(arrays(student)[2]) - gram(arrays(teacher)[2])
    return float(200 * (apart**2).sum() / len(apart) ** 2)


def dkd(method: Distilled, student: Outputs, teacher: Outputs, target: Array) -> float:
    s, t = (softmax(arrays(each)[1] / 2.0) for each in (student, teacher))
    total = 0.0
    for p, q, c in zip(t, s, target, strict=True):
        among = kl(np.delete(p, c)[None] / (1 - p[c]), np.delete(q, c)[None] / (1 - q[c]))
        total += 1.5 * kl(np.array([[p[c], 1 - p[c]]]), np.array([[q[c], 1 - q[c]]])) + 6.0 * among
    return 2.0**2 * total / len(s)


def feature_mse(method: Distilled, student: Outputs, teacher: Outputs, target: Array) -> float:
    return float(0.7 * np.mean((projected(method, arrays(student)[0]) - arrays(teacher)[0]) ** 2))


def feature_cosine(method: Distilled, student: Outputs, teacher: Outputs, target: Array) -> float:
    f, g = projected(method, arrays(student)[0]), arrays(teacher)[0]
    cosines = (f * g).sum(1) / np.linalg.norm(f, axis=1) / np.linalg.norm(g, axis=1)
    return float(0.7 * (1 - cosines).mean())


Formula = Callable[[Distilled, Outputs, Outputs, Array], float]
FORMULAS: list[tuple[type[Distilled], Formula, dict[str, float]]] = [
    (KDStd, kd_std, {"temperature": 2.5, "weight": 3.0}),
    (DIST, dist, {"temperature": 3.0, "beta": 1.5, "gamma": 0.5}),
    (SRD, srd, {"weight": 0.5}),
    (RKD, rkd, {"distance": 20.0, "angle": 40.0}),
    (PKT, pkt, {"weight": 100.0}),
    (SP, sp, {"weight": 200.0}),
    (DKD, dkd, {"temperature": 2.0, "alpha": 1.5, "beta": 6.0}),
    (FeatureMSE, feature_mse, {"weight": 0.7}),
    (FeatureCosine, feature_cosine, {"weight": 0.7}),
]


@pytest.mark.parametrize("kind, formula, settings", FORMULAS)
def test_a_distance_is_its_formula(
    kind: type[Distilled], formula: Formula, settings: dict[str, float]
) -> None:
    method = built(kind, **settings)
    student, teacher = outputs()
    target = torch.tensor([0, 1, 2, 3, 3, 0])
    wanted = formula(method, student, teacher, target.numpy())
    assert wanted > 1e-3
    found = method.distance(student, teacher, target, None)
    np.testing.assert_allclose(found.item(), wanted, rtol=1e-4)
    # with tensors of another dtype, and with matrix products in it, as in training
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(
            method.distance(student, teacher, target, None).item(),
            wanted,
            rtol=0.02 if hasattr(method, "projector") else 1e-4,
        )


def mgd(method: Distilled, student: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
    """The squared error for maps of the same grid, without the weight."""
    weights = {key: value.detach() for key, value in method.named_parameters() if "backbone" not in key}
    aligned = torch.einsum("bchw,dc->bdhw", student, weights["align.weight"][:, :, 0, 0])
    x = (aligned + weights["align.bias"][:, None, None]) * kept
    x = F.conv2d(x, weights["generation.0.weight"], weights["generation.0.bias"], padding=1).clamp(min=0)
    x = F.conv2d(x, weights["generation.2.weight"], weights["generation.2.bias"], padding=1)
    return (teacher - x).square().sum((1, 2, 3)).mean()


@pytest.mark.parametrize("masked, shape", [("positions", (6, 1, 4, 4)), ("channels", (6, 32, 1, 1))])
def test_mgd_generates_the_teachers_map_from_a_masked_one(masked: str, shape: tuple[int, ...]) -> None:
    method = built(MGD, weight=0.01, masked=masked, mask_ratio=0.4)
    student, teacher = outputs()
    assert student.map is not None and teacher.map is not None
    losses = []
    for seed in (3, 3, 4):
        kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= 0.4
        assert 0.3 < kept.float().mean() < 0.8
        found = method.distance(student, teacher, None, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(
            found, 0.01 * mgd(method, student.map, teacher.map, kept), rtol=1e-4, atol=0
        )
        losses.append(found.item())
    assert losses[0] == losses[1] != losses[2]


def test_mgd_pools_the_finer_map_to_the_grid_of_the_other() -> None:
    method = built(MGD, weight=0.01, mask_ratio=0.0)
    student, teacher = outputs(teacher_grid=2)
    assert student.map is not None and teacher.map is not None
    pooled = student.map.reshape(6, WIDTH, 2, 2, 2, 2).mean((3, 5))
    wanted = 0.01 * mgd(method, pooled, teacher.map, torch.ones(()))
    torch.testing.assert_close(method.distance(student, teacher, None, None), wanted, rtol=1e-4, atol=0)
    other = Outputs(teacher.feature, teacher.logits, draw(6, TEACHER_WIDTH, 8, 8, seed=6))
    pooled = other.map.reshape(6, TEACHER_WIDTH, 4, 2, 4, 2).mean((3, 5)) if other.map is not None else None
    assert pooled is not None
    wanted = 0.01 * mgd(method, student.map, pooled, torch.ones(()))
    torch.testing.assert_close(method.distance(student, other, None, None), wanted, rtol=1e-4, atol=0)


def test_mgd_aligns_maps_of_other_widths_alone() -> None:
    assert "align.weight" in dict(built(MGD).named_parameters())
    torch.manual_seed(0)
    same = MGD(network(), network(seed=1))
    assert not any(key.startswith("align") for key, _ in same.named_parameters())


def test_sp_takes_features_where_there_is_no_map() -> None:
    method = built(SP, weight=200.0)
    student, teacher = (Outputs(each.feature, each.logits) for each in outputs())
    flat = [Outputs(each.feature, each.logits, each.feature[:, :, None, None]) for each in outputs()]
    found = method.distance(student, teacher, None, None).item()
    np.testing.assert_allclose(found, sp(method, flat[0], flat[1], np.zeros(6)), rtol=1e-4)


def test_numbers_worked_out_by_hand() -> None:
    nothing = torch.zeros(2, 1)
    # classes swapped, images [p, q] and [q, p]: correlation -1 in every row and column
    turned = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    settings = {"temperature": 1.0, "beta": 1.0, "gamma": 3.0}
    found = built(DIST, **settings).distance(
        Outputs(nothing, turned), Outputs(nothing, turned.flip(0)), None, None
    )
    torch.testing.assert_close(found, torch.tensor(2.0 + 3 * 2.0))
    # with two classes the non-target part vanishes; the target class has 1/5, and 1/2 for the student
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 4.0]]).log()
    found = built(DKD, temperature=1.0, alpha=2.0).distance(
        Outputs(nothing, student), Outputs(nothing, teacher), torch.tensor([0]), None
    )
    p = 1 / 5
    torch.testing.assert_close(
        found, torch.tensor(2 * (p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p)))).float()
    )
    # orthogonal images for the student, equal ones for the teacher: rows (1, 0), (0, 1) and (1, 1)/√2
    student_map, teacher_map = torch.eye(2)[:, :, None, None], torch.ones(2, 1, 1, 1)
    found = built(SP, weight=1.0).distance(
        Outputs(nothing, nothing, student_map), Outputs(nothing, nothing, teacher_map), None, None
    )
    torch.testing.assert_close(found, torch.tensor(2 * ((1 - 0.5**0.5) ** 2 + 0.5) / 4))
    # the same direction, and an orthogonal one
    method = built(FeatureCosine)
    with torch.no_grad():
        method.get_parameter("projector.bias").zero_()
        method.get_parameter("projector.weight").copy_(torch.eye(TEACHER_WIDTH)[:, :WIDTH])
    one = torch.eye(WIDTH)[:2]
    two = torch.zeros(2, TEACHER_WIDTH)
    two[0, 0], two[1, 0] = 5.0, 5.0
    found = method.distance(Outputs(one, nothing), Outputs(two, nothing), None, None)
    torch.testing.assert_close(found, torch.tensor(0.5))


@pytest.mark.parametrize("kind", [RKD, PKT, SP, KDStd, DIST])
def test_a_student_like_its_teacher_is_at_no_distance(kind: type[Distilled]) -> None:
    student, _ = outputs()
    found = built(kind).distance(student, student, None, None)
    torch.testing.assert_close(found, torch.tensor(0.0), atol=1e-3, rtol=0)


def forward(method: Distilled, given: Tensor | None) -> Any:
    return method(images(), given, generator=torch.Generator().manual_seed(0))


def through_networks(method: Distilled) -> tuple[Outputs, Outputs]:
    assert method.teacher is not None
    feature, found = method.backbone.with_map(images())
    teacher = method.teacher.backbone
    with torch.no_grad():
        taught, taught_map = teacher.with_map(images())
        theirs = Outputs(taught, teacher.classifier(taught), taught_map)
    return Outputs(feature, method.backbone.classifier(feature), found), theirs


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_the_distance_and_cross_entropy(kind: type[Distilled], soft: bool) -> None:
    method = built(kind, label_weight=0.3)
    given = draw(8, CLASSES, seed=9).softmax(-1) if soft else labels()
    student, teacher = through_networks(method)
    distance = method.distance(student, teacher, given, torch.Generator().manual_seed(0)).detach()
    probabilities = given if soft else torch.eye(CLASSES)[given]
    cross_entropy = -(probabilities * student.logits.detach().log_softmax(-1)).sum(-1).mean()
    out = forward(method, given)
    assert set(out.parts) == {kind.name, "cross_entropy"}
    torch.testing.assert_close(out.parts[kind.name], distance)
    torch.testing.assert_close(out.parts["cross_entropy"], cross_entropy)
    torch.testing.assert_close(out.loss.detach(), distance + 0.3 * cross_entropy)
    torch.testing.assert_close(out.logits, student.logits)


def test_dkd_takes_the_likeliest_class_of_mixed_labels() -> None:
    method = built(DKD)
    student, teacher = outputs()
    soft = draw(6, CLASSES, seed=9).softmax(-1)
    found = method.distance(student, teacher, soft, None)
    assert torch.equal(found, method.distance(student, teacher, soft.argmax(-1), None))


@pytest.mark.parametrize("kind", METHODS)
def test_the_gradient_reaches_the_student_and_never_the_teacher(kind: type[Distilled]) -> None:
    method = built(kind).train()
    assert method.teacher is not None
    forward(method, labels()).loss.backward()
    for name, value in method.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), name
        assert name.endswith("bias") or value.grad.any(), name
    assert all(value.grad is None for value in method.teacher.parameters())
    assert not any("teacher" in key for key in method.state_dict())


@pytest.mark.parametrize("kind", METHODS)
def test_what_only_training_uses_is_not_deployed(kind: type[Distilled]) -> None:
    method = built(kind)
    deployed = method.student()
    assert deployed.readouts == ("linear",) and deployed.backbone is method.backbone
    theirs = {id(value) for value in deployed.parameters()}
    more = [key for key, value in method.named_parameters() if id(value) not in theirs]
    assert all(key.startswith(("projector.", "align.", "generation.")) for key in more)


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind is not DKD])
def test_without_label_weight_no_label_is_read(kind: type[Distilled]) -> None:
    method = built(kind, label_weight=0.0)
    assert not method.needs_labels
    out = forward(method, None)
    assert torch.equal(forward(method, labels()).loss, out.loss)
    assert set(out.parts) == ({kind.name, "readout"} if kind in OF_FEATURES else {kind.name})


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind is not DKD])
def test_with_label_weight_labels_are_needed(kind: type[Distilled]) -> None:
    method = built(kind)
    assert method.needs_labels
    way = rf"Use {kind.name}\.label_weight 0, or a labelled set\.$"
    with pytest.raises(UserError, match=rf"^{kind.label}: expected labels, got none\. {way}"):
        forward(method, None)


def test_dkd_always_needs_labels() -> None:
    method = built(DKD, label_weight=0.0)
    assert method.needs_labels
    assert set(forward(method, labels()).parts) == {"dkd"}
    with pytest.raises(UserError, match=r"^DKD: expected labels, got none\. Use a labelled set\.$"):
        forward(method, None)


@pytest.mark.parametrize("kind", OF_FEATURES)
def test_a_method_of_features_learns_its_readout_from_the_teacher(kind: type[Distilled]) -> None:
    method = built(kind, label_weight=0.0)
    student, teacher = through_networks(method)
    out = forward(method, None)
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=teacher.logits),
        torch.distributions.Categorical(logits=student.logits.detach()),
    ).mean()
    torch.testing.assert_close(out.parts["readout"], wanted)
    torch.testing.assert_close(out.loss.detach(), out.parts[kind.name] + wanted)
    out.loss.backward()
    weight, conv = method.backbone.classifier.weight, method.backbone.get_parameter("net.conv1.weight")
    apart = (student.logits.softmax(-1) - teacher.logits.softmax(-1)).detach()
    assert weight.grad is not None and conv.grad is not None
    torch.testing.assert_close(weight.grad, apart.T @ student.feature.detach() / 8)
    # the backbone learns from the distance alone
    distance = method.distance(student, teacher, None, torch.Generator().manual_seed(0))
    torch.testing.assert_close(conv.grad, torch.autograd.grad(distance, conv)[0])


@pytest.mark.parametrize("kind", OF_FEATURES)
def test_with_a_teacher_of_other_classes_the_readout_learns_from_labels(kind: type[Distilled]) -> None:
    method = built(kind, classes=7, label_weight=0.0)
    assert method.needs_labels
    with pytest.raises(UserError, match=r"expected labels, got none\. Use a labelled set\.$"):
        forward(method, None)
    out = forward(method, labels())
    feature = method.backbone(images())[0].detach()
    wanted = F.cross_entropy(method.backbone.classifier(feature), labels())
    torch.testing.assert_close(out.parts["readout"], wanted.detach())
    assert torch.equal(readout_loss(method.backbone.classifier, feature, None, labels()), wanted)


@pytest.mark.parametrize("kind", [KDStd, DIST, SRD, DKD])
def test_a_method_of_logits_needs_a_teacher_of_the_same_classes(kind: type[Distilled]) -> None:
    with pytest.raises(UserError, match="the student's 4 classes, got one with 7"):
        built(kind, classes=7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("soft", [False, True])
def test_label_smoothing(smoothing: float, soft: bool) -> None:
    method = LabelSmoothing(network(), None, LabelSmoothing.Settings(smoothing)).eval()
    given = draw(8, CLASSES, seed=9).softmax(-1) if soft else labels()
    out = method(images(), given)
    target = (1 - smoothing) * (given if soft else torch.eye(CLASSES)[given]) + smoothing / CLASSES
    wanted = -(target * method.backbone(images())[1].log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(out.loss, wanted)
    assert torch.equal(out.parts["cross_entropy"], out.loss.detach()) and method.teacher is None
    with pytest.raises(UserError, match=r"^label smoothing: expected labels, got none"):
        method(images())


@pytest.fixture
def _without_torchdistill(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchdistill", "torchdistill.losses"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("_without_torchdistill")
@pytest.mark.parametrize("kind", OF_TORCHDISTILL)
def test_torchdistill_is_needed_when_a_method_is_built(kind: type[Distilled]) -> None:
    with pytest.raises(UserError) as caught:
        built(kind)
    assert str(caught.value) == (
        f"{kind.name}: expected the package torchdistill, which is not installed. "
        "Run: pip install 'gendd[compare]'"
    )


@pytest.mark.usefixtures("_without_torchdistill")
@pytest.mark.parametrize("name", ["_torchdistill", *(kind.name for kind in OF_TORCHDISTILL)])
def test_torchdistill_is_not_needed_before(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(_torchdistill.__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location("imported_anew", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "imported_anew", module)
    spec.loader.exec_module(module)


@pytest.mark.parametrize(
    "kind, settings, key",
    [
        (KDStd, {"temperature": 0.0}, "temperature"),
        (KDStd, {"weight": 0.0}, "weight"),
        (DIST, {"gamma": -1.0}, "gamma"),
        (SRD, {"exponent": 0.0}, "exponent"),
        (RKD, {"distance": 0.0, "angle": 0.0}, "distance"),
        (PKT, {"weight": -1.0}, "weight"),
        (SP, {"weight": float("nan")}, "weight"),
        (DKD, {"beta": -0.1}, "beta"),
        (MGD, {"mask_ratio": 1.0}, "mask_ratio"),
        (FeatureMSE, {"weight": 0.0}, "weight"),
        (FeatureCosine, {"weight": 0.0}, "weight"),
        (LabelSmoothing, {"smoothing": 1.0}, "smoothing"),
        *((kind, {"label_weight": -1.0}, "label_weight") for kind in METHODS),
    ],
)
def test_settings_out_of_range(kind: Any, settings: dict[str, float], key: str) -> None:
    with pytest.raises(UserError, match=rf"^{kind.name}\.{key}: expected a .*, got "):
        kind.Settings(**settings)


@pytest.mark.parametrize("kind", METHODS)
def test_no_setting_is_without_its_help(kind: type[Distilled]) -> None:
    told = kind.Settings.__doc__ or ""
    assert all(f"{name}: " in told for name in kind.Settings.__dataclass_fields__)
