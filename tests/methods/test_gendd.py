from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from helpers import images, seeded
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.config import GenDDConfig, RunConfig
from gendd.diffusion import LossRows
from gendd.diffusion.draws import beta, gamma
from gendd.errors import UserError
from gendd.methods import KD, KL, GenDD, KDConfig, Supervised, build_method
from gendd.methods._moments import Moments
from gendd.models import Backbone, Frozen, create_backbone

CLASSES = 4
# settings where gradients reach the student from the first step, with every part of the loss
TINY: dict[str, Any] = {
    "token_width": 16,
    "repeats": 2,
    "head_width": 16,
    "head_depth": 1,
    "timesteps": 50,
    "zero_init": False,
    "map_weight": 0.0,
    "standardise": False,
}


def network(name: str = "cifar/resnet8x0.25", classes: int = CLASSES) -> Backbone:
    return create_backbone(name, classes, in_channels=1)


def build(teacher_classes: int = CLASSES, **settings: Any) -> GenDD:
    torch.manual_seed(0)
    return GenDD(network(), network("cifar/resnet8x0.5", teacher_classes), **{**TINY, **settings})


def labels(count: int = 8) -> Tensor:
    return torch.arange(count) % CLASSES


def teacher_of(method: GenDD) -> Frozen:
    assert method.teacher is not None
    return method.teacher


@dataclass
class Rows:
    """Records the inputs of the head's loss."""

    targets: Tensor
    condition: Tensor
    t: Tensor
    noise: Tensor
    keep: Tensor | None


def rows(method: GenDD, targets: Tensor, condition: Tensor, monkeypatch: pytest.MonkeyPatch) -> Rows:
    caught: list[Rows] = []

    def catch(*given: Tensor) -> LossRows:
        caught.append(Rows(*given))
        return LossRows(torch.zeros(1), None)

    monkeypatch.setattr(method.generator, "loss_rows", catch)
    method._diffuse(targets, condition, seeded(3))
    return caught[0]


# --- the teacher ---


def test_the_teacher_is_no_part_of_the_module() -> None:
    method = build()
    teacher = teacher_of(method)
    own = {id(parameter) for parameter in method.parameters()}
    assert not own & {id(parameter) for parameter in teacher.parameters()}
    assert not {id(module) for module in method.modules()} & {id(module) for module in teacher.modules()}
    assert {key.split(".")[0] for key in method.state_dict()} == {
        "backbone",
        "generator",
        "centres",
        "prepared",
    }


def test_the_teacher_stays_in_eval_mode_and_nothing_of_it_moves() -> None:
    method = build().train()
    teacher = teacher_of(method)
    before = copy.deepcopy(teacher.state_dict())
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1)
    student_before = copy.deepcopy(method.backbone.state_dict())
    for _ in range(2):
        optimiser.zero_grad()
        method(images(), labels(), generator=seeded()).loss.backward()
        optimiser.step()
    assert method.backbone.training
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    moved = method.backbone.state_dict()
    assert not torch.equal(moved["net.bn1.running_mean"], student_before["net.bn1.running_mean"])
    assert not torch.equal(moved["net.conv1.weight"], student_before["net.conv1.weight"])


def test_the_teacher_follows_the_method() -> None:
    method = build()
    method.to(torch.float64)
    assert {parameter.dtype for parameter in teacher_of(method).parameters()} == {torch.float64}
    method.float()
    assert {parameter.dtype for parameter in teacher_of(method).parameters()} == {torch.float32}


def test_a_frozen_teacher_is_taken_as_it_is() -> None:
    frozen = Frozen(network())
    assert GenDD(network(), frozen, **TINY).teacher is frozen


def test_a_deepcopy_computes_the_same_and_shares_the_teacher_alone() -> None:
    method = build()
    twin = copy.deepcopy(method)
    assert torch.equal(
        twin(images(), labels(), generator=seeded()).loss, method(images(), labels(), generator=seeded()).loss
    )
    assert twin.teacher is method.teacher  # shared, as it is frozen and may be large
    with torch.no_grad():
        twin.backbone.classifier.weight.zero_()
    assert method.backbone.classifier.weight.abs().sum() > 0


# --- the loss ---


@pytest.mark.parametrize("prediction", ["sample", "epsilon", "v"])
@pytest.mark.parametrize("learned", [False, True])
def test_the_parts_are_finite_and_add_up(prediction: str, learned: bool) -> None:
    method = build(prediction=prediction, learned_variance=learned, mixup=1.0)
    out = method(images(), labels(), generator=seeded())
    assert list(out.parts) == ["diffusion", *(["vlb"] if learned else []), "probe"]
    assert all(bool(part.isfinite()) and part.ndim == 0 for part in out.parts.values())
    assert not any(part.requires_grad for part in out.parts.values())
    torch.testing.assert_close(torch.stack(list(out.parts.values())).sum(), out.loss.detach())
    assert out.logits.shape == (8, CLASSES)


def test_a_head_that_starts_at_zero_has_the_loss_of_predicting_zero() -> None:
    method = build(zero_init=True, prediction="epsilon", repeats=200, probe="none")
    out = method(images(), labels(), generator=seeded())
    # E ε² = 1; 8 · 2 · 200 · 16 draws
    torch.testing.assert_close(out.loss, torch.tensor(1.0), atol=0.03, rtol=0)
    method = build(zero_init=True, probe="none", contraction=0.0)
    feature = teacher_of(method)(images())[0]
    torch.testing.assert_close(method(images()).loss, feature.square().mean())


def test_the_probe_sends_no_gradient_to_the_backbone() -> None:
    gradients = {}
    for probe in ("labels", "none"):
        method = build(probe=probe)
        method(images(), labels(), generator=seeded()).loss.backward()
        gradients[probe] = {name: value.grad for name, value in method.backbone.named_parameters()}
    for name, gradient in gradients["none"].items():
        with_probe = gradients["labels"][name]
        if name.startswith("net.fc"):
            assert gradient is None and with_probe is not None and with_probe.abs().sum() > 0
        else:
            assert gradient is not None and with_probe is not None
            assert gradient.abs().sum() > 0 and torch.equal(gradient, with_probe)


@pytest.mark.parametrize(
    "probe, labelled, target",
    [
        ("auto", True, "labels"),
        ("auto", False, "teacher"),
        ("labels", True, "labels"),
        ("teacher", True, "teacher"),
        ("teacher", False, "teacher"),
    ],
)
def test_what_the_probe_learns_from(probe: str, labelled: bool, target: str) -> None:
    method = build(probe=probe)
    with torch.no_grad():
        teacher_of(method).classifier.weight.mul_(20)
    out = method(images(), labels() if labelled else None, generator=seeded())
    probabilities = teacher_of(method)(images())[1].softmax(-1)
    wanted = F.cross_entropy(out.logits, labels() if target == "labels" else probabilities)
    torch.testing.assert_close(out.parts["probe"], wanted.detach())


def test_without_a_probe_the_loss_is_the_diffusion_loss_alone() -> None:
    out = build(probe="none")(images(), labels(), generator=seeded())
    assert list(out.parts) == ["diffusion"] and torch.equal(out.parts["diffusion"], out.loss.detach())


def test_without_contraction_labels_change_nothing() -> None:
    method = build(contraction=0.0, probe="none").eval()
    with_labels = method(images(), labels(), generator=seeded()).loss
    assert torch.equal(with_labels, method(images(), None, generator=seeded()).loss)
    contracted = build(contraction=0.5, probe="none").eval()
    assert not torch.equal(with_labels, contracted(images(), labels(), generator=seeded()).loss)


def test_hard_labels_and_their_one_hot_form_give_the_same_loss() -> None:
    method = build(contraction=0.6, contract="all", alpha=0.7).eval()
    hard = method(images(), labels(), generator=seeded())
    soft = method(images(), F.one_hot(labels(), CLASSES).float(), generator=seeded())
    assert torch.equal(hard.parts["diffusion"], soft.parts["diffusion"])
    torch.testing.assert_close(hard.loss, soft.loss)


def test_mixed_labels_contract_and_probe_by_their_weights() -> None:
    method = build(contraction=0.6, contract="all", standardise=False).eval()
    hard = F.one_hot(labels(), CLASSES).float()
    soft = 0.7 * hard + 0.3 * hard.flip(0)
    feature, logits = teacher_of(method)(images())
    rows = teacher_of(method).classifier.weight
    own, other = rows[labels()], rows[labels().flip(0)]
    wanted = 0.4 * feature + 0.6 * (0.7 * own + 0.3 * other)
    torch.testing.assert_close(method.targets(feature, logits, soft), wanted)
    out = method(images(), soft, generator=seeded())
    log = out.logits.log_softmax(-1)
    losses = [F.nll_loss(log, target) for target in (labels(), labels().flip(0))]
    torch.testing.assert_close(out.parts["probe"], (0.7 * losses[0] + 0.3 * losses[1]).detach())


def test_the_generator_decides_every_draw() -> None:
    method = build(mixup=0.4).eval()
    losses = [method(images(), labels(), generator=seeded(seed)).loss for seed in (1, 1, 2)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])
    state = torch.get_rng_state()
    method(images(), labels(), generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_few_steps_lower_the_loss() -> None:
    method = build().train()
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = method(images(), labels(), generator=seeded()).loss
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


# --- targets ---


def test_targets_are_contracted_by_hand() -> None:
    method = build(contraction=0.3, contract="all")
    feature, logits = teacher_of(method)(images())
    centres = teacher_of(method).classifier.weight[labels()]
    torch.testing.assert_close(
        method.targets(feature, logits, labels()), 0.7 * feature + 0.3 * centres, rtol=0, atol=1e-6
    )
    assert torch.equal(method.targets(feature, logits, None), feature)


def test_by_default_each_target_is_contracted_as_much_as_the_teacher_contradicts_its_label() -> None:
    method = build(contraction=0.5)
    feature = torch.arange(64.0).view(2, 32) / 64
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    weight = teacher_of(method).classifier.weight.detach()
    probability = np.exp(2.0) / (np.exp(2.0) + 3)
    # right at the first image's label, as good as ignorant of the second's
    for index, label, share in ((0, 0, 1 - probability), (0, 1, 1 - 1 / (np.exp(2.0) + 3)), (1, 2, 0.75)):
        came = method.targets(feature[[index]], logits[[index]], torch.tensor([label])).detach()
        wanted = torch.lerp(feature[index], weight[label], 0.5 * share)
        torch.testing.assert_close(came[0], wanted, rtol=0, atol=1e-6)
    # a label that is the teacher's own prediction, and none
    own = torch.stack([logits[0].softmax(-1), torch.zeros(4)])
    torch.testing.assert_close(method.targets(feature, logits, own), feature, rtol=0, atol=1e-6)
    unknown = torch.tensor([-1, -1])
    assert torch.equal(method.targets(feature, logits, unknown), feature)


def test_alpha_blends_the_label_with_the_teachers_prediction() -> None:
    method = build(contraction=0.5, contract="all", alpha=0.25)
    feature = torch.zeros(2, 32)
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    e = np.exp(2.0)
    predicted = np.array([[e, 1, 1, 1], [0.25 * (e + 3)] * 4]) / (e + 3)
    one_hot = np.eye(4)[[1, 3]]
    weight = teacher_of(method).classifier.weight.detach().double().numpy()
    wanted = 0.5 * (0.25 * one_hot + 0.75 * predicted) @ weight
    came = method.targets(feature, logits, torch.tensor([1, 3])).detach()
    np.testing.assert_allclose(came.numpy(), wanted, atol=1e-6)


def test_labels_of_other_classes_than_the_teachers_name_no_centre() -> None:
    method = build(teacher_classes=7, contraction=0.5)
    with pytest.raises(
        UserError, match=r"expected a teacher with the data's 4 classes, got one with 7\. Set"
    ):
        method(images(), labels())


def test_without_labels_the_teacher_may_have_other_classes() -> None:
    method = build(teacher_classes=7, contraction=0.5)
    out = method(images(), None, generator=seeded())
    assert list(out.parts) == ["diffusion"] and out.logits.shape == (8, CLASSES)
    out.loss.backward()
    assert method.backbone.classifier.weight.grad is None
    labelled = build(teacher_classes=7, contraction=0.0)(images(), labels(), generator=seeded())
    assert list(labelled.parts) == ["diffusion", "probe"]


# --- teachers of other classes, or of none ---


def embedding(name: str = "cifar/resnet8x0.5") -> Backbone:
    """A network that gives its feature alone."""
    whole = network(name)
    return Backbone(whole.net, name=name, in_channels=1, mean=[0.5], std=[0.25], classifier=False)


def taught(teacher: Backbone, labels: bool | None = True, **settings: Any) -> GenDD:
    torch.manual_seed(0)
    return GenDD(network(), teacher, labels=labels, **{**TINY, **settings})


@pytest.mark.parametrize(
    "classes, settings, message",
    [
        (
            7,
            {"contraction": 0.3},
            "Contraction: expected a teacher with the data's 4 classes, got one with 7. Set gendd.centres "
            "means, gendd.contraction 0, or data.labels false.",
        ),
        (
            0,
            {"contraction": 0.3},
            "Contraction: expected a teacher with the data's 4 classes, got one without a classifier. Set "
            "gendd.centres means, gendd.contraction 0, or data.labels false.",
        ),
        (
            7,
            {"centres": "means", "alpha": 0.5},
            "gendd.alpha 0.5: expected a teacher with the data's 4 classes, got one with 7. "
            "Set gendd.alpha 1.",
        ),
        (
            0,
            {"contraction": 0.0, "probe": "teacher"},
            "gendd.probe 'teacher': expected a teacher with the data's 4 classes, got one without a "
            "classifier. Set gendd.probe labels.",
        ),
    ],
)
def test_what_labels_need_of_the_teacher_is_said_at_once(
    classes: int, settings: dict[str, Any], message: str
) -> None:
    teacher = network("cifar/resnet8x0.5", classes) if classes else embedding()
    with pytest.raises(UserError) as caught:
        taught(teacher, **settings)
    assert str(caught.value) == message
    # without labels there is no error
    assert taught(teacher, False, **settings)(images()).loss.isfinite()


def test_a_teacher_without_a_classifier_and_no_labels() -> None:
    method = taught(embedding(), False)
    out = method(images(), labels(), generator=seeded())  # labels are ignored
    assert list(out.parts) == ["diffusion"]
    assert torch.equal(out.loss, method(images(), None, generator=seeded()).loss)
    feature, logits = teacher_of(method)(images())
    assert logits.shape == (8, 0)
    assert torch.equal(method.targets(feature, logits, None), feature)
    student = method.student()
    assert student.readouts == () and student.classifier is None
    assert student.embed(images()).shape == (8, 32)
    assert method.predict(images()) == {}


def test_a_teacher_without_a_classifier_and_labels_without_contraction() -> None:
    method = taught(embedding(), contraction=0.0)
    assert list(method(images(), labels(), generator=seeded()).parts) == ["diffusion", "probe"]
    assert method.student().readouts == ("linear",)


@pytest.mark.parametrize("teacher", ["none", "other"])
@pytest.mark.parametrize("contraction", [0.0, 0.4])
@pytest.mark.parametrize("standardise", [True, False])
def test_the_nearest_class_mean_reads_in_place_of_a_classifier(
    teacher: str, contraction: float, standardise: bool
) -> None:
    torch.manual_seed(1)
    network_ = embedding() if teacher == "none" else network("cifar/resnet8x0.5", 7)
    method = taught(network_, centres="means", contraction=contraction, standardise=standardise)
    with pytest.raises(UserError, match="Call prepare"):
        method(images(), labels())
    every = images(24, seed=5)
    method.prepare([(every[:10], labels(24)[:10]), (every[10:], labels(24)[10:])])
    assert method(images(), labels(), generator=seeded()).loss.isfinite()

    features = teacher_of(method)(every)[0].double()
    standard = (features - method.generator.feature_mean) / method.generator.feature_scale
    means = torch.stack([standard[label::CLASSES].mean(0) for label in range(CLASSES)])
    torch.testing.assert_close(method.centres.double(), means, atol=1e-4, rtol=1e-3)
    within = standard - means[labels(24)]
    distances = means - means.mean(0)
    variance = (distances @ within.T).square().mean(1).sum() / distances.square().sum()
    torch.testing.assert_close(method.class_variance.double(), variance, rtol=1e-3, atol=0)

    student = method.student()
    assert student.readouts == ("linear", "mean", "sample") and student.num_classes("mean") == CLASSES
    generated = method.generator.standardise(student.embed(images())).double()
    wanted = -(generated[:, None] - means).square().sum(-1) / (2 * variance)
    came = student.logits(student.features(images()), "mean").double()
    torch.testing.assert_close(came.softmax(-1), wanted.softmax(-1), atol=2e-3, rtol=0)


def test_the_means_that_read_are_moved_as_the_features_are() -> None:
    """Scaled centres are not means: generated features of class c have mean (1-λ) μ_c + λ c_c."""
    torch.manual_seed(1)
    plain = taught(embedding(), centres="means", contraction=0.4)
    matched = taught(teacher_of(plain).backbone, centres="means", contraction=0.4, centre_scale="match")
    for method in (plain, matched):
        method.prepare([(images(24, seed=5), labels(24))])
    assert torch.equal(plain.class_means, plain.centres)
    torch.testing.assert_close(matched.class_means, 0.6 * plain.centres + 0.4 * matched.centres)


def test_class_means_that_read_travel_in_the_state_dict() -> None:
    method = taught(embedding(), centres="means")
    method.prepare([(images(24, seed=5), labels(24))])
    twin = taught(teacher_of(method).backbone, centres="means")
    twin.load_state_dict(method.state_dict())
    feature = method.student().features(images())
    with torch.no_grad():
        assert torch.equal(twin.student().logits(feature), method.student().logits(feature))


def test_classes_that_never_vary_read_at_temperature_one() -> None:
    moments = Moments(2, 2, scatter=True)
    moments.add(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    assert moments.variance_between_means(torch.ones(2)) == 1.0


def test_without_labels_class_means_are_not_asked_for() -> None:
    method = taught(network("cifar/resnet8x0.5"), False, centres="means")
    assert method(images()).loss.isfinite()
    assert method.student().readouts == ("linear", "mean", "sample")
    assert torch.equal(method.centres, teacher_of(method).classifier.weight)


def test_the_validation_loss_is_that_of_a_step_without_mixup_and_dropout() -> None:
    settings: dict[str, Any] = {"probe": "none", "contraction": 0.3}
    method = build(mixup=1.0, condition_dropout=0.5, **settings).eval()
    came = method.diffusion_loss(images(), labels(), seeded())
    assert torch.equal(came, build(**settings).eval()(images(), labels(), generator=seeded()).loss.detach())
    assert not came.requires_grad
    assert torch.equal(method.diffusion_loss(images(), labels(), seeded()), came)
    assert not torch.equal(method.diffusion_loss(images(), labels(), seeded(1)), came)
    assert not torch.equal(method.diffusion_loss(images(), None, seeded()), came)


# --- randomness of the rows ---


@pytest.mark.parametrize("concentration", [0.3, 1.0, 4.0])
def test_the_mixup_weight_is_beta_distributed(concentration: float) -> None:
    generator, device = seeded(1), torch.device("cpu")
    draws = torch.stack([beta(concentration, generator, device) for _ in range(2000)]).double().numpy()
    variance = 1 / (4 * (2 * concentration + 1))
    assert abs(draws.mean() - 0.5) < 4 * np.sqrt(variance / len(draws))
    np.testing.assert_allclose(draws.var(), variance, rtol=0.1)
    assert stats.kstest(draws, "beta", (concentration, concentration)).pvalue > 0.01


def test_the_gamma_draws_behind_it_have_their_mean() -> None:
    generator, device = seeded(2), torch.device("cpu")
    draws = torch.stack([gamma(1.0, generator, device) for _ in range(4000)])
    assert abs(draws.mean().item() - 1) < 4 / np.sqrt(4000)


def test_mixup_takes_the_drawn_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def drawn(concentration: float, *_: Any) -> Tensor:
        asked.append(concentration)
        return torch.tensor(0.25)

    monkeypatch.setattr("gendd.methods.gendd.beta", drawn)
    targets = torch.eye(6, 32)
    mixed = rows(build(mixup=0.7), targets, torch.randn(6, 16), monkeypatch).targets
    assert asked == [0.7]
    assert set(mixed.flatten().tolist()) <= {0.0, 0.25, 0.75, 1.0} and (mixed == 0.25).sum() >= 4


def test_mixup_mixes_targets_and_conditions_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 6
    targets = torch.randn(count, 32, generator=seeded(1))
    condition = torch.randn(count, 16, generator=seeded(2))
    mixed = rows(build(mixup=1.0), targets, condition, monkeypatch)
    # rows are linearly independent, so the mixture can be read off
    matrix = mixed.targets @ torch.linalg.pinv(targets)
    torch.testing.assert_close(mixed.condition @ torch.linalg.pinv(condition), matrix, rtol=0, atol=1e-4)
    torch.testing.assert_close(matrix.sum(1), torch.ones(count))
    permutation = torch.where(matrix.fill_diagonal_(0) > 1e-3, 1.0, 0.0)
    assert permutation.sum() >= 4 and permutation.sum(0).max() == 1 and permutation.sum(1).max() == 1
    parts = matrix[permutation > 0]
    torch.testing.assert_close(parts, parts[0].expand_as(parts), rtol=0, atol=1e-4)


def test_without_mixup_rows_pass_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, condition = torch.randn(3, 32), torch.randn(3, 16)
    caught = rows(build(mixup=0.0), targets, condition, monkeypatch)
    assert torch.equal(caught.targets, targets) and torch.equal(caught.condition, condition)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_times_follow_their_distribution(power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(time_power=power, timesteps=20, repeats=2500)
    t = rows(method, torch.randn(4, 32), torch.randn(4, 16), monkeypatch).t
    assert t.shape == (4 * 2 * 2500,) and t.dtype == torch.int64
    # t = T (1 - (1-u)^p) is below x T with probability 1 - (1-x)^(1/p)
    x = np.arange(21) / 20
    below = 1 - (1 - x) ** (1 / power)
    counts = np.bincount(t.numpy(), minlength=20)
    assert stats.chisquare(counts, len(t) * np.diff(below)).pvalue > 0.01


@pytest.mark.parametrize("timesteps", [2, 7])
def test_every_time_of_a_short_schedule_is_drawn(timesteps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(timesteps=timesteps, repeats=200)
    t = rows(method, torch.randn(4, 32), torch.randn(4, 16), monkeypatch).t
    assert t.unique().tolist() == list(range(timesteps))


def test_noise_is_standard_normal_and_each_rows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = rows(build(repeats=500), torch.randn(2, 32), torch.randn(2, 16), monkeypatch).noise
    assert noise.shape == (2000, 16) and stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    assert len(noise[:, 0].unique()) > 1990


@pytest.mark.parametrize("probability", [0.2, 0.7])
def test_the_share_of_dropped_conditions(probability: float, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(condition_dropout=probability, repeats=2500)
    keep = rows(method, torch.randn(4, 32), torch.randn(4, 16), monkeypatch).keep
    assert keep is not None and keep.dtype == torch.bool and keep.shape == (20000,)
    assert abs(1 - keep.float().mean().item() - probability) < 4 * np.sqrt(0.25 / 20000)


def test_without_dropout_every_condition_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(condition_dropout=0.0)
    assert rows(method, torch.randn(4, 32), torch.randn(4, 16), monkeypatch).keep is None


# --- statistics ---


@dataclass
class Batched:
    images: Tensor
    labels: Tensor | None


def prepared(**settings: Any) -> tuple[GenDD, np.ndarray]:
    """A method prepared on 24 images in three batches of both forms, and its teacher's features."""
    method = build(**{"standardise": True, **settings})
    every = images(24, seed=5)
    method.prepare(
        [
            (every[:10], labels(24)[:10]),
            Batched(every[10:20], labels(24)[10:20]),
            (every[20:], labels(24)[20:]),
        ]
    )
    return method, teacher_of(method)(every)[0].double().numpy()


def test_statistics_are_those_of_all_batches() -> None:
    method, features = prepared()
    scale = features.std(0)
    wanted = np.where(scale > 1e-6 * scale.max(), scale, 1.0)
    np.testing.assert_allclose(method.generator.feature_mean.numpy(), features.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(method.generator.feature_scale.numpy(), wanted, rtol=1e-4)
    weight = teacher_of(method).classifier.weight.detach().double().numpy()
    np.testing.assert_allclose(method.centres.numpy(), weight * wanted, rtol=1e-4, atol=1e-7)
    assert bool(method.prepared)


def test_class_means_are_exact() -> None:
    method, features = prepared(centres="means")
    standard = (features - features.mean(0)) / method.generator.feature_scale.double().numpy()
    wanted = np.stack([standard[label::CLASSES].mean(0) for label in range(CLASSES)])
    np.testing.assert_allclose(method.centres.numpy(), wanted, rtol=1e-3, atol=1e-4)
    raw, features = prepared(centres="means", standardise=False)
    wanted = np.stack([features[label::CLASSES].mean(0) for label in range(CLASSES)])
    np.testing.assert_allclose(raw.centres.numpy(), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("centres", ["classifier", "means"])
@pytest.mark.parametrize("standardise", [True, False])
def test_matched_centres_have_the_norm_of_the_features(centres: str, standardise: bool) -> None:
    method, features = prepared(centres=centres, centre_scale="match", standardise=standardise)
    plain, _ = prepared(centres=centres, standardise=standardise)
    if standardise:
        features = (features - features.mean(0)) / method.generator.feature_scale.double().numpy()
    came = method.centres.double().numpy()
    np.testing.assert_allclose((came**2).sum(1).mean(), (features**2).sum(1).mean(), rtol=1e-3)
    np.testing.assert_allclose(came.mean(0), 0, atol=1e-5)
    centred = (plain.centres - plain.centres.mean(0)).double().numpy()
    ratio = np.linalg.norm(came) / np.linalg.norm(centred)
    np.testing.assert_allclose(came, ratio * centred, rtol=1e-3, atol=1e-5)


def test_the_loss_uses_the_statistics() -> None:
    method, features = prepared(contraction=0.0, zero_init=True, probe="none")
    came = method(images(24, seed=5), generator=seeded()).loss
    # a zero head's loss is the mean square of the standardised feature: 1 where the feature varies
    varies = (features.std(0) > 1e-6 * features.std(0).max()).mean()
    torch.testing.assert_close(came, torch.tensor(varies, dtype=torch.float32), rtol=1e-3, atol=0)


def test_statistics_travel_in_the_state_dict() -> None:
    method, _ = prepared(centres="means")
    twin = build(standardise=True, centres="means")
    twin.load_state_dict(method.state_dict())
    twin._teacher = method._teacher
    came = twin.eval()(images(), labels(), generator=seeded()).loss
    assert torch.equal(came, method.eval()(images(), labels(), generator=seeded()).loss)


def test_a_class_without_images_has_no_mean() -> None:
    method = build(centres="means")
    with pytest.raises(UserError, match=r"all 4 classes, got none of \[1, 3\]. Use gendd.centres"):
        method.prepare([(images(4), torch.tensor([0, 2, 0, 2]))])


def test_class_means_need_labels() -> None:
    with pytest.raises(
        UserError, match=r"expected labelled images of all 4 classes, got none of \[0, 1, 2, 3\]"
    ):
        build(centres="means").prepare([(images(4), None)])


def test_statistics_need_a_batch() -> None:
    with pytest.raises(UserError, match="at least one batch of training images, got none"):
        build(standardise=True).prepare([])


@pytest.mark.parametrize(
    "settings, needed",
    [
        ({"standardise": True}, True),
        ({"centres": "means"}, True),
        ({"centre_scale": "match"}, True),
        ({"centres": "means", "centre_scale": "match", "contraction": 0.0}, False),
        ({}, False),
    ],
)
def test_a_step_before_the_statistics_is_refused(settings: dict[str, Any], needed: bool) -> None:
    method = build(**settings)
    if not needed:
        assert method(images(), labels()).loss.isfinite()
        return
    with pytest.raises(UserError, match=r"Call prepare\(batches\)") as error:
        method(images(), labels())
    assert "\n" not in str(error.value)
    method.prepare([(images(), labels())])
    assert method(images(), labels()).loss.isfinite()


# --- settings, and what comes out ---


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"setting 'contractoin'\. Did you mean 'contraction'\?"):
        build(contractoin=0.5)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"gendd\.contraction: expected a number in"):
        build(contraction=1.5)


def test_single_settings_change_a_config() -> None:
    config = GenDDConfig(contraction=0.8, head_width=8)
    method = GenDD(network(), network(), config, contraction=0.1)
    assert (method.config.contraction, method.config.head_width, config.contraction) == (0.1, 8, 0.8)


def test_the_student_shares_its_weights_and_reads_the_teachers_classifier() -> None:
    method = build()
    student = method.student()
    assert student.backbone is method.backbone and student.generator is method.generator
    assert student.readouts == ("linear", "mean", "sample") and student.readout == "mean"
    assert student.classifier is not None
    source = teacher_of(method).classifier
    assert student.classifier is not source and not student.classifier.weight.requires_grad
    assert torch.equal(student.classifier.weight, source.weight)
    assert torch.equal(student.classifier.bias, source.bias)


def test_a_teacher_classifier_without_bias_reads_with_none() -> None:
    teacher = network("cifar/resnet8x0.5")
    teacher.classifier = nn.Linear(teacher.feature_dim, CLASSES, bias=False)
    student = GenDD(network(), teacher, **TINY).student()
    assert student.classifier is not None and not student.classifier.bias.any()


def test_only_the_generator_is_exempt_from_decay() -> None:
    method = build()
    exempt = {id(parameter) for parameter in method.undecayed()}
    assert exempt == {id(parameter) for parameter in method.generator.parameters()}


def test_the_config_names_the_method() -> None:
    student, teacher = network(), network()
    assert isinstance(build_method(RunConfig(method="supervised"), student, None), Supervised)
    assert isinstance(build_method(RunConfig(), student, teacher), GenDD)
    kd = build_method(RunConfig(method="kd", settings={"kd": KDConfig(2.0, 0.5)}), student, teacher)
    kl = build_method(RunConfig(method="kl", settings={"kd": KDConfig(2.0, 0.5)}), student, teacher)
    assert isinstance(kd, KD) and kd.settings == KDConfig(2.0, 0.5) and kd.needs_labels
    assert isinstance(kl, KL) and not kl.needs_labels


def test_prepare_takes_no_more_batches_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gendd.methods._moments.STATISTICS_IMAGES", 10)
    taken = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(5):
            taken.append(index)
            yield images(4), torch.tensor([0, 1, 2, 3])

    build(standardise=True).prepare(batches())
    assert taken == [0, 1, 2]
    taken.clear()
    build(centres="means").prepare(batches())  # a class mean is over all images of the class
    assert taken == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_module_that_is_no_backbone_is_refused(role: str) -> None:
    networks = {"student": network(), "teacher": network(), role: torch.nn.Linear(2, 2)}
    with pytest.raises(UserError, match=f"expected a gendd.Backbone as {role}, got Linear"):
        GenDD(networks["student"], networks["teacher"], **TINY)  # type: ignore[arg-type]


# by the compiler, which inspects tensors
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("settings", [{"map_weight": 1.0}, {"token_width": 5, "condition_dropout": 0.2}])
def test_compiled_losses_have_the_same_values_and_gradients(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile, graphs = torch.compile, []

    def traced(function: Any) -> Any:
        def backend(graph: Any, inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        return compile(function, backend=backend, fullgraph=True)

    monkeypatch.setattr(torch, "compile", traced)

    def gradients(compiled: bool) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(0)
        method = build(**settings)
        method.prepare([(images(), labels())])
        if compiled:
            method.compile_losses()
            # a copy, as of an average of the weights, computes with its own weights
            method = copy.deepcopy(method)
        loss = method(images(), labels(), generator=seeded(1)).loss
        return loss, list(torch.autograd.grad(loss, [*method.parameters()], allow_unused=True))

    torch.testing.assert_close(gradients(True), gradients(False), rtol=1e-5, atol=1e-6)
    assert len(graphs) == (2 if "map_weight" in settings else 1)
    torch.compiler.reset()


def test_without_a_compiler_losses_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any) -> Any:
        def fail(*_: Any) -> None:
            raise RuntimeError("no compiler found\nmore")

        return fail

    method = build(map_weight=1.0)
    method.prepare([(images(), labels())])
    expected = method(images(), labels(), generator=seeded(1)).loss
    monkeypatch.setattr(torch, "compile", broken)
    method.compile_losses()
    with pytest.warns(UserWarning, match=r"loss: not compiled \(no compiler found\)$") as raised:
        losses = [method(images(), labels(), generator=seeded(1)).loss for _ in range(2)]
    assert len(raised) == 2
    torch.testing.assert_close(losses, [expected, expected], rtol=0, atol=0)
