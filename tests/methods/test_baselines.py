from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers import images
from torch import Tensor
from torch.nn import functional as F

from gendd.errors import UserError
from gendd.methods import KD, KDConfig, LinearProbe, Pretraining, Supervised
from gendd.models import Backbone, create_backbone

CLASSES = 4


def network(name: str = "cifar/resnet8x0.25", classes: int = CLASSES, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return create_backbone(name, classes, in_channels=1)


def labels() -> Tensor:
    return torch.arange(8) % CLASSES


def soft_labels() -> Tensor:
    return torch.rand(8, CLASSES, generator=torch.Generator().manual_seed(1)).softmax(-1)


def pair() -> tuple[Backbone, Backbone]:
    """A student and a teacher in eval mode whose logits are far apart."""
    student, teacher = network(), network("cifar/resnet8x0.5", seed=1)
    with torch.no_grad():
        for backbone in (student, teacher):
            backbone.classifier.weight.mul_(30)
    return student.eval(), teacher.eval()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def logits_of(backbone: Backbone) -> np.ndarray:
    with torch.no_grad():
        values: np.ndarray = backbone(images())[1].double().numpy()
    return values


@pytest.mark.parametrize("temperature, weight", [(4.0, 0.9), (1.0, 1.0), (2.5, 0.0), (0.5, 0.3)])
@pytest.mark.parametrize("soft", [False, True])
def test_kd_is_its_formula(temperature: float, weight: float, soft: bool) -> None:
    student, teacher = pair()
    target = soft_labels() if soft else labels()
    out = KD(student, teacher, KDConfig(temperature, weight)).eval()(images(), target)
    s, t = logits_of(student), logits_of(teacher)
    probabilities = soft_labels().double().numpy() if soft else np.eye(CLASSES)[labels().numpy()]
    cross_entropy = -(probabilities * log_softmax(s)).sum(-1).mean()
    p = log_softmax(t / temperature)
    kl = temperature**2 * (np.exp(p) * (p - log_softmax(s / temperature))).sum(-1).mean()
    assert kl > 0.01
    np.testing.assert_allclose(out.loss.item(), (1 - weight) * cross_entropy + weight * kl, rtol=1e-4)
    np.testing.assert_allclose(out.parts["kl"].item(), kl, rtol=1e-4)
    assert ("cross_entropy" in out.parts) == (weight < 1)


def test_kl_is_torchs_divergence_and_reads_no_label() -> None:
    student, teacher = pair()
    method = KD(student, teacher, KDConfig(1.0, 1.0)).eval()
    assert not method.needs_labels
    out = method(images())
    with torch.no_grad():
        wanted = torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=teacher(images())[1]),
            torch.distributions.Categorical(logits=student(images())[1]),
        ).mean()
    torch.testing.assert_close(out.loss.detach(), wanted)
    assert torch.equal(method(images(), labels()).loss, out.loss)
    assert list(out.parts) == ["kl"]


def test_a_student_like_its_teacher_has_no_divergence() -> None:
    student, _ = pair()
    out = KD(student, copy.deepcopy(student), KDConfig(3.0, 1.0)).eval()(images())
    torch.testing.assert_close(out.loss, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_kd_trains_the_student_and_never_the_teacher() -> None:
    student, teacher = pair()
    method = KD(student, teacher).train()
    before = copy.deepcopy(teacher.state_dict())
    out = method(images(), labels())
    out.loss.backward()
    torch.optim.SGD(method.parameters(), lr=0.1).step()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not teacher.training and student.training
    assert not any("teacher" in key for key in method.state_dict())
    torch.testing.assert_close(
        out.loss.detach(), 0.9 * out.parts["kl"] + 0.1 * out.parts["cross_entropy"], rtol=1e-5, atol=1e-6
    )


def test_kd_without_labels_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"expected labels, got none\. Use kd\.weight 1 or method kl\."):
        KD(*pair())(images())


def test_kd_needs_a_teacher_of_the_same_classes() -> None:
    with pytest.raises(UserError, match="the student's 4 classes, got one with 7"):
        KD(network(), network(classes=7))
    with pytest.raises(UserError, match=r"Use a teacher trained on these classes, or data\.labels false\."):
        KD(network(), network(classes=7), KDConfig(1.0, 1.0))


def test_kd_needs_a_teacher_with_a_classifier() -> None:
    whole = network()
    teacher = Backbone(whole.net, name=whole.name, in_channels=1, mean=[0.5], std=[0.25], classifier=False)
    with pytest.raises(UserError, match="a teacher with a classifier, got one that gives features only"):
        KD(network(), teacher)
    with pytest.raises(UserError, match=r"got one without a classifier\. Set training\.stage1_epochs 0\."):
        Pretraining(network(), teacher)


def test_pretraining_needs_a_teacher_of_the_same_classes() -> None:
    with pytest.raises(UserError, match="the data's 4 classes, got one with 7"):
        Pretraining(network(), network(classes=7))


@pytest.mark.parametrize("soft", [False, True])
def test_supervised_is_cross_entropy(soft: bool) -> None:
    student, _ = pair()
    out = Supervised(student).eval()(images(), soft_labels() if soft else labels())
    probabilities = soft_labels().double().numpy() if soft else np.eye(CLASSES)[labels().numpy()]
    wanted = -(probabilities * log_softmax(logits_of(student))).sum(-1).mean()
    np.testing.assert_allclose(out.loss.item(), wanted, rtol=1e-5)
    assert torch.equal(out.parts["cross_entropy"], out.loss.detach())
    np.testing.assert_allclose(out.logits.detach().numpy(), logits_of(student), rtol=1e-5)


def test_supervised_has_no_teacher() -> None:
    method = Supervised(network())
    assert method.teacher is None and method.needs_labels
    method.to(torch.float64)
    assert method.backbone.classifier.weight.dtype == torch.float64


def test_supervised_needs_labels() -> None:
    with pytest.raises(UserError, match=r"^student alone: expected labels, got none"):
        Supervised(network())(images())


def test_pretraining_reads_the_feature_through_the_teachers_classifier() -> None:
    student, teacher = pair()
    method = Pretraining(student, teacher).eval()
    out = method(images(), labels())
    with torch.no_grad():
        feature = student.features(images()) @ method.projection.weight.T + method.projection.bias
        wanted = feature @ teacher.classifier.weight.T + teacher.classifier.bias
    torch.testing.assert_close(out.logits.detach(), wanted)
    torch.testing.assert_close(out.loss.detach(), F.cross_entropy(wanted, labels()))


def test_pretraining_trains_backbone_and_map_and_leaves_the_classifier() -> None:
    student, teacher = pair()
    method = Pretraining(student, teacher).train()
    frozen = {key: value.clone() for key, value in teacher.state_dict().items()}
    before = copy.deepcopy(method.state_dict())
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1)
    method(images(), labels()).loss.backward()
    optimiser.step()
    assert all(torch.equal(value, frozen[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    after = method.state_dict()
    for key in ("backbone.net.conv1.weight", "projection.weight", "projection.bias"):
        assert not torch.equal(after[key], before[key]), key
    # the student's own classifier is not trained
    assert torch.equal(after["backbone.net.fc.weight"], before["backbone.net.fc.weight"])


def test_pretraining_is_judged_by_what_it_trains() -> None:
    student, teacher = pair()
    method = Pretraining(student, teacher).eval()
    predicted = method.predict(images())
    assert list(predicted) == ["linear"]
    assert torch.equal(predicted["linear"], method(images(), labels()).logits)


def test_pretraining_needs_labels() -> None:
    with pytest.raises(UserError, match=r"expected labels, got none\. Set training\.stage1_epochs 0"):
        Pretraining(*pair())(images())


def test_pretraining_takes_soft_labels() -> None:
    student, teacher = pair()
    out = Pretraining(student, teacher).eval()(images(), soft_labels())
    wanted = (
        -(soft_labels().double().numpy() * log_softmax(out.logits.detach().double().numpy())).sum(-1).mean()
    )
    np.testing.assert_allclose(out.loss.item(), wanted, rtol=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_a_linear_probe_is_cross_entropy_on_features_in_eval_mode(soft: bool) -> None:
    backbone = network().train()
    with torch.no_grad():
        features = copy.deepcopy(backbone).eval().features(images())
    statistics = copy.deepcopy(dict(backbone.named_buffers()))
    method = LinearProbe(backbone).train()
    assert not any(module.training for module in backbone.modules()) and method.training
    out = method(images(), soft_labels() if soft else labels())
    wanted = features @ backbone.classifier.weight.T + backbone.classifier.bias
    torch.testing.assert_close(out.logits, wanted)
    probabilities = soft_labels() if soft else torch.eye(CLASSES)[labels()]
    torch.testing.assert_close(out.loss, -(probabilities * wanted.log_softmax(-1)).sum(-1).mean())
    out.loss.backward()
    trained = {name for name, value in method.named_parameters() if value.grad is not None}
    assert trained == {"backbone.net.fc.weight", "backbone.net.fc.bias"}
    assert all(torch.equal(value, statistics[name]) for name, value in backbone.named_buffers())


def test_a_linear_probes_classifier_is_new() -> None:
    backbone = network()
    old = backbone.classifier.weight.detach().clone()
    torch.manual_seed(5)
    method = LinearProbe(backbone)
    torch.manual_seed(5)
    assert torch.equal(backbone.classifier.weight, torch.nn.Linear(old.shape[1], old.shape[0]).weight)
    assert not torch.equal(backbone.classifier.weight, old)
    assert method.student().readouts == ("linear",) and method.teacher is None and method.needs_labels


def test_a_linear_probe_needs_labels() -> None:
    with pytest.raises(UserError, match=r"^linear probe: expected labels, got none\."):
        LinearProbe(network())(images())


@pytest.mark.parametrize("kind", [Supervised, KD, Pretraining])
def test_the_student_shares_the_backbone_and_reads_linearly(kind: type) -> None:
    student, teacher = pair()
    method = kind(student) if kind is Supervised else kind(student, teacher)
    deployed = method.student()
    assert deployed.backbone is student and deployed.readouts == ("linear",)
    assert deployed.readout == "linear"
    np.testing.assert_allclose(deployed(images()).detach().numpy(), logits_of(student), rtol=1e-5)
    assert list(method.undecayed()) == []
    assert copy.deepcopy(method).backbone is not student
