"""Dense supervision: regression of feature maps in GenDD and SimKD, and the deployed students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import images
from torch import Tensor
from torch.nn import functional as F

import gendd
from gendd.config import GenDDConfig, registry
from gendd.deploy import deploy
from gendd.errors import UserError
from gendd.methods import GenDD
from gendd.methods._maps import MapRegression
from gendd.models import Backbone, Frozen, create_backbone, multiply_adds
from gendd.models.maps import thinned
from gendd.models.projector import Projected, one_grid, pools_its_map, project, projector_width
from gendd.student.generator import head_width, repeats

CLASSES = 5
SMALL: dict[str, Any] = {"token_width": 16, "repeats": 2, "head_width": 16, "head_depth": 1, "timesteps": 50}


def network(name: str = "cifar/resnet8x0.5", classes: int = CLASSES) -> Backbone:
    return create_backbone(name, classes, in_channels=1)


def distiller(**settings: Any) -> GenDD:
    torch.manual_seed(0)
    method = GenDD(network(), network("cifar/resnet8"), **{**SMALL, **settings})
    method.prepare([(images(32, 9), torch.arange(32) % CLASSES)])
    return method


def net_of(backbone: Backbone) -> Projected:
    assert isinstance(backbone.net, Projected)
    return backbone.net


# --- the projector ---


@pytest.mark.parametrize("rectified", [True, False])
@pytest.mark.parametrize("name", ["cifar/resnet8x0.5", "timm/test_resnet", "torchvision/resnet18"])
def test_a_projected_network_s_feature_is_the_mean_of_its_projected_map(name: str, rectified: bool) -> None:
    backbone = project(create_backbone(name, CLASSES), 12, 8, 7, rectified).eval()
    batch = torch.rand(2, 3, 64, 64)
    feature, logits = backbone(batch)
    _, found = backbone.with_map(batch)
    assert found is not None
    projected = net_of(backbone).expanded(found)
    assert feature.shape == (2, 12) and logits.shape == (2, 7) and projected.shape[1] == 12
    torch.testing.assert_close(feature, projected.mean((2, 3)), rtol=1e-5, atol=1e-6)
    assert not rectified or bool((projected >= 0).all())


def test_projecting_leaves_the_network_whole_and_shares_its_weights() -> None:
    backbone = network().eval()
    before = backbone(images(6))[1]
    projected = project(backbone, 12, 8, CLASSES)
    torch.testing.assert_close(backbone(images(6))[1], before, rtol=0, atol=0)
    names = dict(projected.named_parameters())
    assert names["net.body.net.conv1.weight"] is dict(backbone.named_parameters())["net.conv1.weight"]
    assert not [name for name in names if name.startswith("net.body.net.fc")]  # no unused parameters


def test_a_projected_student_is_saved_and_loaded(tmp_path: Path) -> None:
    student = gendd.Student(project(network(), 12, 8, CLASSES, rectified=False)).eval()
    student.save(tmp_path)
    torch.testing.assert_close(gendd.load(tmp_path)(images(6)), student(images(6)), rtol=0, atol=0)
    again = gendd.load(tmp_path, backbone=network())  # its network is built in Python
    torch.testing.assert_close(again(images(6)), student(images(6)), rtol=0, atol=0)


def test_a_network_without_maps_is_not_projected() -> None:
    backbone = gendd.wrap(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Linear(8, 3))
    )
    with pytest.raises(UserError, match=r"expected a network with a map before its feature"):
        project(backbone, 12, 8, CLASSES)


def test_the_projector_costs_at_most_a_quarter_of_the_student() -> None:
    for name in ("cifar/resnet8x0.25", "cifar/resnet20"):
        backbone = create_backbone(name, CLASSES)
        hidden = projector_width(backbone, 1280)
        added = multiply_adds(
            project(backbone, 1280, hidden, CLASSES, rectified=False).net, torch.rand(1, 3, 32, 32)
        )
        assert hidden == 8 or added <= 1.26 * multiply_adds(backbone.net, torch.rand(1, 3, 32, 32))
    assert projector_width(create_backbone("cifar/resnet20", CLASSES), 64) == 32  # SimKD's factor 2


def test_maps_are_pooled_to_the_smaller_grid() -> None:
    one, other = torch.rand(2, 3, 8, 4), torch.rand(2, 5, 4, 8)
    pooled, same = one_grid(one, other)
    assert pooled.shape == (2, 3, 4, 4) and same.shape == (2, 5, 4, 4)
    torch.testing.assert_close(pooled[0, 0, 0, 0], one[0, 0, :2, 0].mean())


def test_which_networks_pool_their_map() -> None:
    assert pools_its_map(network()) and pools_its_map(create_backbone("timm/test_resnet", 3))
    assert not pools_its_map(create_backbone("timm/mobilenetv3_small_050", 3))  # a layer after pooling
    assert not pools_its_map(create_backbone("timm/test_vit", 3))  # the class token


# --- stages ---


def test_stages_are_the_last_maps_of_finer_grids() -> None:
    backbone = create_backbone("cifar/resnet20", CLASSES).eval()
    batch = torch.rand(2, 3, 32, 32)
    feature, found, stages = backbone.with_stages(batch)
    net: Any = backbone.net
    x = F.relu(net.bn1(net.conv1(backbone.prepare(batch))))
    first = net.layer1(x)
    second = net.layer2(first)
    assert backbone.stage_shapes == [(16, 32, 32), (32, 16, 16)] and found is not None
    for got, expected in zip([*stages, found], [first, second, net.layer3(second)], strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    torch.testing.assert_close(feature, backbone(batch)[0], rtol=0, atol=0)
    for asked in ((True, True), (False, True), (True,), (), (False, False, True)):
        thin = backbone.with_stages(batch, asked)[2]
        kept = list(zip(stages[::-1], asked[::-1], strict=False))[::-1]
        assert len(thin) == len(kept)
        for got, (whole, flag) in zip(thin, kept, strict=True):
            expected = whole[:, :, :: whole.shape[-1] // 8, :: whole.shape[-1] // 8] if flag else whole
            assert got.shape == expected.shape and torch.equal(got, thinned(whole) if flag else whole)


@pytest.mark.parametrize(
    "name, count", [("timm/test_resnet", 4), ("timm/test_vit", 0), ("torchvision/resnet18", 4)]
)
def test_stages_of_other_libraries(name: str, count: int) -> None:
    backbone = create_backbone(name, CLASSES)
    size = backbone.image_size or (64, 64)
    stages = backbone.with_stages(torch.rand(2, 3, *size))[2]
    grids = [each.shape[-1] for each in stages]
    assert len(stages) == count and grids == sorted(grids, reverse=True)
    assert [each.shape[1] for each in stages] == [shape[0] for shape in backbone.stage_shapes]


# --- the losses ---


def test_the_errors_are_relative_to_what_is_regressed() -> None:
    teacher = Frozen(network("cifar/resnet8"))
    maps = MapRegression(network(), teacher, 8, deployed=True).eval()
    student = maps.student.eval()
    feature, found, stages = student.with_stages(images(6, side=32))
    teacher_feature, _, teacher_map, teacher_stages = teacher.with_stages(images(6, side=32))
    assert found is not None and teacher_map is not None
    losses = maps(feature, found, stages, teacher_feature, teacher_map, teacher_stages)
    projected = net_of(student).expanded(found)
    expected = (projected - teacher_map).square().mean() / teacher_map.var()
    torch.testing.assert_close(losses.map, expected)
    errors = []
    assert [each.shape[-1] for each in stages] == [32, 16]
    # eight positions per row and column
    every = [slice(1, None, 2), slice(2, None, 4)]
    for layer, own, other, part in zip(maps.stages, stages[::-1], teacher_stages[::-1], every, strict=True):
        own, other = own[:, :, part, part], other[:, :, part, part]
        assert own.shape[-1] == other.shape[-1] == 8
        mean, std = other.mean((0, 2, 3), keepdim=True), other.std((0, 2, 3), keepdim=True, unbiased=False)
        standard = (other - mean) / (std.square() + 1e-5).sqrt()
        errors.append((layer(own) - standard).square().mean() / standard.var())
    torch.testing.assert_close(losses.stages, torch.stack(errors).mean())


def test_the_projector_of_a_teacher_with_negative_features_ends_linearly() -> None:
    plain = MapRegression(network(), Frozen(network("cifar/resnet8")), 8, deployed=True)
    assert net_of(plain.student).projector.expand_norm is not None
    convnext = create_backbone("timm/test_convnext", CLASSES)
    other = MapRegression(create_backbone("timm/test_resnet", CLASSES), Frozen(convnext), 8, deployed=True)
    assert net_of(other.student).projector.expand_norm is None


@pytest.mark.parametrize("labels", [None, torch.arange(6) % CLASSES])
def test_every_part_reaches_the_student(labels: Tensor | None) -> None:
    method = distiller(stage_weight=1.0)
    out = method(images(6), labels, generator=torch.Generator().manual_seed(0))
    assert list(out.parts) == ["diffusion", "map", "stages", "probe"]
    total = sum(float(part) for part in out.parts.values())
    assert float(out.loss.detach()) == pytest.approx(total, rel=1e-5)
    out.loss.backward()
    assert all(p.grad is not None for name, p in method.named_parameters() if p.requires_grad), [
        name for name, p in method.named_parameters() if p.requires_grad and p.grad is None
    ]


@pytest.mark.parametrize(
    "settings, parts",
    [
        ({"stage_weight": 0.0}, ["diffusion", "map", "probe"]),
        ({"map_weight": 0.0}, ["diffusion", "probe"]),
        ({"projector": 0}, ["diffusion", "map", "stages", "probe"]),
    ],
)
def test_parts_are_switched_off(settings: dict[str, Any], parts: list[str]) -> None:
    assert list(distiller(**settings)(images(6)).parts) == parts


def test_weights_multiply_their_parts() -> None:
    def loss(**settings: Any) -> tuple[float, dict[str, Tensor]]:
        out = distiller(**settings)(images(6), generator=torch.Generator().manual_seed(0))
        return float(out.loss.detach()), out.parts

    _, parts = loss(stage_weight=1.0)
    weighted, _ = loss(map_weight=2.0, stage_weight=0.5, diffusion_weight=0.25)
    expected = 0.25 * parts["diffusion"] + 2 * parts["map"] + 0.5 * parts["stages"] + parts["probe"]
    assert weighted == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("weight, reaches", [(0.0, False), (0.5, True), (1.0, True)])
def test_the_labels_reach_the_student_by_their_weight(weight: float, reaches: bool) -> None:
    method = distiller(label_weight=weight)
    feature = torch.randn(4, 64, requires_grad=True)
    seen = method._for_probe(feature, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(seen, feature)
    if not reaches:
        assert not seen.requires_grad
        return
    seen.sum().backward()
    torch.testing.assert_close(feature.grad, torch.full_like(feature, weight))


def test_labels_reach_the_student_by_themselves_where_the_teacher_lacks_the_classes() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    feature = torch.randn(4, 64, requires_grad=True)
    assert not distiller()._for_probe(feature, labels).requires_grad
    other = GenDD(network(), network("cifar/resnet8", 9), **{**SMALL, "contraction": 0.0})
    assert other._for_probe(feature, labels).requires_grad
    assert not other._for_probe(feature, None).requires_grad  # no gradient without labels


# --- the student ---


def test_the_projected_feature_conditions_the_head() -> None:
    student = distiller().student().eval()
    assert student.readouts == ("linear", "mean", "sample") and student.generator is not None
    assert student.generator.condition_width == student.generator.feature_width == 64
    with torch.no_grad():
        logits = student.logits(student.features(images(6)), "mean")
        torch.testing.assert_close(deploy(student, "mean")(images(6)), logits, rtol=1e-4, atol=1e-5)


def test_an_estimating_student_is_saved_with_what_it_generates(tmp_path: Path) -> None:
    method = distiller(residual=True, token_width=8, zero_init=True)
    assert method.generator.residual and method.generator.num_tokens == 8
    method.eval()
    student = method.student()
    batch = images(3, 4)
    with torch.no_grad():
        estimated = student.features(batch)
        torch.testing.assert_close(student.embed(batch), estimated, rtol=1e-3, atol=1e-4)
        expected = {name: student.logits(estimated, name) for name in ("linear", "mean")}
        loaded = gendd.load(student.save(tmp_path / "student")).eval()
        for name, logits in expected.items():
            torch.testing.assert_close(loaded.logits(loaded.features(batch), name), logits)
        torch.testing.assert_close(
            deploy(loaded, readout="mean")(batch), expected["mean"], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("settings", [{"projector": 0}, {"map_weight": 0.0}, {"prediction": "v"}])
def test_without_an_estimate_there_is_no_difference_to_it(settings: dict[str, Any]) -> None:
    assert not distiller(**settings).generator.residual
    with pytest.raises(UserError, match=r"gendd\.residual true: expected a student with a projector"):
        distiller(residual=True, **settings)


def test_without_a_deployed_projector_the_student_is_the_network_itself() -> None:
    method = distiller(projector=0)
    student = method.student()
    assert not isinstance(student.backbone.net, Projected) and method.config.projector == 0
    assert student.generator is not None and student.generator.condition_width == 32


def test_the_whole_student_is_saved_with_its_generator(tmp_path: Path) -> None:
    student = distiller().student().eval()
    student.save(tmp_path)
    again = gendd.load(tmp_path)
    for readout in ("linear", "mean"):
        student.readout = again.readout = readout
        torch.testing.assert_close(again(images(6)), student(images(6)), rtol=0, atol=0)
    one, other = (
        each.generate(images(6), generator=torch.Generator().manual_seed(0)) for each in (student, again)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_head_follows_the_student() -> None:
    small, large = create_backbone("cifar/resnet8x0.25", CLASSES), create_backbone("cifar/resnet20", CLASSES)
    config = GenDDConfig()
    assert head_width(large, 64, config) == 128 > head_width(small, 64, config)
    assert GenDD(network(), network("cifar/resnet8")).config.head_width == head_width(network(), 64, config)


def test_networks_without_maps_learn_from_the_pooled_feature() -> None:
    vector = gendd.wrap(
        torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, CLASSES)
        ),
        in_channels=1,
        input_size=8,
    )
    method = GenDD(network(), vector, **{**SMALL, "token_width": 8})
    assert method.maps is None and method.config.projector == 0


# --- SimKD ---


def test_simkd_regresses_the_map_and_reads_with_the_teacher_s_classifier() -> None:
    torch.manual_seed(0)
    teacher = Frozen(network("cifar/resnet8"))
    method = registry.method_class("simkd")(network(), teacher)
    method.train()
    twin = [value.clone() for value in method.backbone.state_dict().values()]
    out = method(images(6))
    method.backbone.load_state_dict(dict(zip(method.backbone.state_dict(), twin, strict=True)))
    projected = method.backbone.with_map(images(6))[1]
    assert projected is not None
    target = teacher.with_map(images(6))[2]
    torch.testing.assert_close(out.loss, (projected - target).square().mean())
    feature = projected.mean((2, 3))
    torch.testing.assert_close(
        out.logits, F.linear(feature, teacher.classifier.weight, teacher.classifier.bias)
    )
    assert not method.backbone.classifier.weight.requires_grad
    # factor 2: the inner convolutions have half the teacher's 64 channels
    assert net_of(method.backbone).projector.spread.weight.shape == (32, 32, 3, 3)


def test_simkd_wants_a_teacher_that_pools_its_map() -> None:
    teacher = create_backbone("timm/mobilenetv3_small_050", CLASSES)
    with pytest.raises(UserError, match=r"^SimKD: expected a teacher whose feature is the mean of its map"):
        registry.method_class("simkd")(create_backbone("cifar/resnet8", CLASSES), teacher)


def test_a_projected_student_is_distilled_again_from_its_network() -> None:
    first = project(network(), 12, 8, CLASSES)
    again = GenDD(first, network("cifar/resnet8"), **SMALL)
    assert not isinstance(net_of(again.backbone).body.net, Projected)  # no projector behind a projector
    assert again.backbone.feature_dim == 64


def test_costs_and_maps_are_those_of_the_images_that_come() -> None:
    backbone = create_backbone("cifar/resnet8", CLASSES)
    large = backbone.noise_cost()  # of 32 pixels a side
    assert backbone.expect((8, 8)).map_shape == (64, 2, 2)
    assert backbone.noise_cost() == pytest.approx(large / 16, rel=0.01)
    assert project(backbone, 12, 8, CLASSES).noise_cost() < large / 8  # with a projector too
    small = create_backbone("timm/test_resnet", CLASSES)
    assert small.has_map and not small.expect((16, 16)).has_map  # of one position: the pooled form


def test_images_too_small_for_a_map_are_learned_from_all_the_same() -> None:
    student, teacher = (
        create_backbone("timm/test_resnet", CLASSES),
        create_backbone("timm/test_resnet", CLASSES),
    )
    for size in (None, (16, 16)):
        if size is not None:
            student.expect(size)
        method = GenDD(student, teacher, **SMALL)
        batch = torch.rand(4, 3, 16, 16)
        method.prepare([(batch, torch.arange(4))])
        assert torch.isfinite(method(batch).loss)


@pytest.mark.parametrize(("width", "rows"), [(16, 8), (64, 8), (65, 4), (200, 2), (1280, 2)])
def test_an_image_has_eight_rows_and_a_token_two(width: int, rows: int) -> None:
    assert repeats(width, GenDDConfig()) == rows
    assert repeats(width, GenDDConfig(repeats=5)) == 5


def test_labels_of_other_classes_than_the_teachers_train_the_students_own_feature() -> None:
    def projector(labels: bool | None, classes: int = 7, **settings: Any) -> int:
        teacher = network("cifar/resnet8", classes)
        method = GenDD(network(), teacher, labels=labels, **{**SMALL, "contraction": 0, **settings})
        assert method.maps is not None
        assert isinstance(method.backbone.net, Projected) == (method.maps.hidden > 0)
        return method.maps.hidden

    assert projector(True) == 0
    assert projector(True, CLASSES) > 0
    # the student's feature is its estimate of the teacher's
    assert projector(False) > 0
    assert projector(True, projector=5) == 5
