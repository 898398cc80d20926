from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from gendd.errors import UserError
from gendd.models import Backbone, Frozen, create_backbone


class Pool(nn.Module):
    """The mean of every channel, then a Linear layer: every output can be computed by hand."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(channels, classes))

    def forward_features(self, x: Tensor) -> Tensor:
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)

    def get_classifier(self) -> nn.Module:
        return self.head[0]


def pool(channels: int = 2, classes: int = 3) -> Backbone:
    return Backbone(
        Pool(channels, classes),
        name="pool",
        in_channels=channels,
        mean=[0.5] * channels,
        std=[0.25] * channels,
    )


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return create_backbone("cifar/resnet8", 5, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])


def test_feature_is_the_mean_of_the_normalised_image_and_logits_its_linear_map() -> None:
    model = pool()
    with torch.no_grad():
        model.classifier.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 10.0]))
    images = torch.tensor([1.0, 0.25]).reshape(1, 2, 1, 1).expand(1, 2, 3, 3)
    feature, logits = model(images)
    torch.testing.assert_close(feature, torch.tensor([[2.0, -1.0]]))
    torch.testing.assert_close(logits, torch.tensor([[2.0, -2.0, 11.0]]))


def test_a_set_classifier_is_the_networks_own_and_is_used() -> None:
    model = pool()
    layer = nn.Linear(2, 7)
    model.classifier = layer
    assert model.net.head[0] is layer  # type: ignore[index]
    assert sorted(key for key, _ in model.named_parameters()) == ["net.head.0.bias", "net.head.0.weight"]
    assert model.num_classes == 7 and model.config()["num_classes"] == 7
    assert model(torch.rand(4, 2, 3, 3))[1].shape == (4, 7)


def test_a_classifier_of_another_width_is_refused() -> None:
    with pytest.raises(UserError, match="classifier of 2 inputs, got 3"):
        pool().classifier = nn.Linear(3, 7)


def test_the_feature_enters_the_classifier(backbone: Backbone) -> None:
    seen: list[Tensor] = []
    backbone.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 8, 8)
    backbone.eval().net((images - backbone.mean) / backbone.std)
    torch.testing.assert_close(backbone.features(images), seen[0], rtol=0, atol=0)


def test_normalisation_is_not_in_the_state_dict(backbone: Backbone) -> None:
    assert {key for key in backbone.state_dict() if not key.startswith("net.")} == set()
    assert backbone.mean.shape == backbone.std.shape == (1, 3, 1, 1)


def test_config_rebuilds_the_network(backbone: Backbone) -> None:
    again = create_backbone(**backbone.config())
    assert (
        again.config()
        == backbone.config()
        == {
            "name": "cifar/resnet8",
            "num_classes": 5,
            "in_channels": 3,
            "mean": [0.1, 0.2, 0.3],
            "std": [0.5, 0.6, 0.7],
        }
    )
    again.load_state_dict(backbone.state_dict())
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(again.eval()(images), backbone.eval()(images), rtol=0, atol=0)


def test_a_copy_is_independent_and_equal(backbone: Backbone) -> None:
    backbone.eval()
    images = torch.rand(2, 3, 8, 8)
    before = backbone(images)
    twin = copy.deepcopy(backbone)
    torch.testing.assert_close(twin(images), before, rtol=0, atol=0)
    twin.classifier = nn.Linear(64, 2)
    torch.testing.assert_close(backbone(images), before, rtol=0, atol=0)


def test_channels_last_and_autocast_change_no_shape_and_little_else(backbone: Backbone) -> None:
    backbone.eval()
    images = torch.rand(2, 3, 8, 8)
    feature, logits = backbone(images)
    last = copy.deepcopy(backbone).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images.to(memory_format=torch.channels_last)), (feature, logits))
    with torch.autocast("cpu", torch.bfloat16):
        half = backbone(images)
    assert half[1].dtype == torch.bfloat16
    torch.testing.assert_close(half[1].float(), logits, rtol=0.1, atol=0.1)


def test_every_parameter_gets_a_gradient_from_the_logits(backbone: Backbone) -> None:
    backbone(torch.rand(4, 3, 8, 8))[1].square().sum().backward()
    assert [key for key, value in backbone.named_parameters() if value.grad is None] == []


def test_export_keeps_the_outputs_for_another_batch_size(backbone: Backbone) -> None:
    backbone.eval()
    dynamic = {"images": {0: torch.export.Dim("batch", min=2, max=8)}}
    exported = torch.export.export(backbone, (torch.rand(2, 3, 8, 8),), dynamic_shapes=dynamic)
    images = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(exported.module()(images), backbone(images))


@pytest.mark.parametrize(
    "images",
    [torch.rand(2, 1, 8, 8), torch.rand(3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)],
    ids=["channels", "no batch", "uint8"],
)
def test_images_of_another_kind_are_refused(backbone: Backbone, images: Tensor) -> None:
    with pytest.raises(
        UserError, match=r"cifar/resnet8: expected floating-point images of shape \(B, 3, H, W\)"
    ):
        backbone(images)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5], [0.2] * 3, "mean: expected 3 numbers"),
        ([0.5] * 3, [0.2] * 2, "std: expected 3 numbers"),
        ([0.5] * 3, [0.2, 0.0, 0.2], "std: expected positive"),
    ],
)
def test_a_wrong_normalisation_is_refused(mean: list[float], std: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_backbone("cifar/resnet8", 5, mean=mean, std=std)


def test_a_classifier_that_is_not_linear_is_refused() -> None:
    net = Pool(2, 3)
    net.head = nn.Sequential(nn.Identity())
    with pytest.raises(UserError, match=r"pool: expected .* single Linear layer, got Identity"):
        Backbone(net, name="pool", in_channels=2, mean=[0, 0], std=[1, 1])


@pytest.mark.parametrize("width", [None, 2])
def test_an_embedding_network_has_a_feature_and_empty_logits(width: int | None) -> None:
    net = Pool(2, 3)
    model = Backbone(
        net, name="pool", in_channels=2, mean=[0, 0], std=[1, 1], classifier=False, feature_dim=width
    )
    images = torch.rand(4, 2, 3, 3)
    assert (model.feature_dim, model.num_classes, model.training) == (2, 0, True)
    for network in (model, Frozen(model)):
        feature, logits = network(images)
        torch.testing.assert_close(feature, images.mean((2, 3)))
        assert logits.shape == (4, 0)
        assert not network.has_classifier and network.num_classes == 0
        with pytest.raises(UserError, match="pool: expected a network with a classifier, got an embedding"):
            _ = network.classifier
    with pytest.raises(UserError, match="classifier"):
        model.classifier = nn.Linear(2, 3)


def test_frozen_gives_the_same_outputs_and_never_changes(backbone: Backbone) -> None:
    images = torch.rand(4, 3, 8, 8)
    expected = copy.deepcopy(backbone).eval()(images)
    before = copy.deepcopy(backbone.state_dict())
    holder = nn.Sequential(Frozen(backbone))
    holder.train()
    torch.testing.assert_close(holder(images), expected, rtol=0, atol=0)
    assert not any(module.training for module in holder[0].modules())
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)
    assert not any(value.requires_grad for value in holder.parameters())


def test_frozen_outputs_are_constants_of_a_graph(backbone: Backbone) -> None:
    teacher = Frozen(backbone)
    feature, logits = teacher(torch.rand(2, 3, 8, 8))
    assert not feature.requires_grad and not logits.requires_grad and not feature.is_inference()
    student = torch.ones_like(feature, requires_grad=True)
    (student * feature).sum().backward()
    torch.testing.assert_close(student.grad, feature)


def test_frozen_shows_what_the_backbone_has(backbone: Backbone) -> None:
    teacher = Frozen(backbone)
    assert (teacher.feature_dim, teacher.num_classes) == (64, 5)
    assert teacher.classifier is backbone.classifier
