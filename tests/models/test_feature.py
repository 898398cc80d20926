from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.errors import UserError
from gendd.models import Backbone, Frozen, multiply_adds
from gendd.models.module import wrap


class Plain(nn.Module):
    """A convolution, a norm, an average and a Linear layer, without timm's interface."""

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        )
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, classes))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x).mean((2, 3)))


class Tokens(nn.Module):
    """Patches as tokens, with the first one classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, 4)
        self.norm = nn.LayerNorm(6)
        self.classifier = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Any:
        return self.classifier(self.norm(self.embed(x).flatten(2).mT)[:, 0])


class TwoHeads(Plain):
    """The mean of two Linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x).mean((2, 3))
        return (self.head(x) + self.other(x)) / 2


def images(side: int = 8) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def built(kind: type[nn.Module] = Plain) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def test_the_feature_of_a_plain_module_is_the_input_of_its_last_linear() -> None:
    net = built()
    backbone = wrap(net)
    feature, logits = backbone(images())
    torch.testing.assert_close(feature, net.body(images()).mean((2, 3)), rtol=0, atol=0)  # type: ignore[operator]
    torch.testing.assert_close(logits, net(images()), rtol=0, atol=0)
    assert backbone.classifier is net.head[1]  # type: ignore[index]
    assert (backbone.feature_dim, backbone.num_classes, backbone.image_size) == (6, 5, None)
    assert backbone.describe() == "module/Plain: feature = input of head.1 (Linear), D 6, K 5"


def test_reading_leaves_the_network_as_it_is() -> None:
    net = built()
    net.body.train()  # type: ignore[union-attr]
    before, keys = copy.deepcopy(net.state_dict()), [key for key, _ in net.named_modules()]
    torch.manual_seed(3)
    backbone = wrap(net)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    torch.testing.assert_close(drawn, torch.rand(2), rtol=0, atol=0)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert not net.training and net.body.training  # type: ignore[union-attr]
    net.eval()
    backbone(images())
    assert [key for key, _ in net.named_modules()] == keys
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_the_classifier_is_not_computed_where_the_feature_is_asked_for() -> None:
    net = built()
    backbone = wrap(net)
    assert backbone.reading is not None and backbone.reading.skips
    assert multiply_adds(backbone, images()[:1]) == multiply_adds(net, images()[:1])


def test_gradients_training_mode_and_a_new_classifier_reach_the_network() -> None:
    backbone = wrap(built()).train()
    backbone.classifier = nn.Linear(6, 2)
    backbone(images())[1].square().sum().backward()
    assert [key for key, value in backbone.named_parameters() if value.grad is None] == []
    assert float(backbone.net.body[1].running_mean.abs().sum()) > 0  # type: ignore[index,union-attr]
    assert backbone(images())[1].shape == (2, 2)


@pytest.mark.parametrize("kind", [Plain, Tokens])
def test_a_frozen_plain_module_never_changes(kind: type[nn.Module]) -> None:
    backbone = wrap(built(kind))
    expected, before = backbone(images()), copy.deepcopy(backbone.state_dict())
    teacher = Frozen(backbone).train()
    torch.testing.assert_close(teacher(images()), expected, rtol=0, atol=0)
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)


def test_a_copy_reads_its_own_weights() -> None:
    backbone = wrap(built())
    expected = backbone(images())
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        for value in backbone.parameters():
            value.zero_()
    torch.testing.assert_close(twin(images()), expected, rtol=0, atol=0)


def test_a_plain_module_is_exported() -> None:
    backbone = wrap(built())
    exported = torch.export.export(backbone, (images(),))
    torch.testing.assert_close(exported.module()(images()), backbone(images()))


class Output(dict[str, Tensor]):
    """An output of named tensors, as transformers has them."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


@pytest.mark.parametrize(
    "shape", [lambda x: (x, x), lambda x: {"loss": x.sum(), "logits": x}, lambda x: Output(logits=x)]
)
def test_logits_may_be_the_first_of_a_tuple_or_named(shape: Any) -> None:
    class Shaped(Plain):
        def forward(self, x: Tensor) -> Any:
            return shape(super().forward(x))

    assert wrap(built(Shaped)).feature_dim == 6


def test_a_linear_of_one_pixel_is_flattened() -> None:
    class Last(Plain):
        def forward(self, x: Tensor) -> Any:
            return self.head(self.body(x).mean((2, 3), keepdim=True).permute(0, 2, 3, 1)).flatten(1)

    backbone = wrap(built(Last))
    assert backbone(images())[0].shape == (2, 6)
    torch.testing.assert_close(backbone(images())[1], backbone.net(images()))


def normed(x: Tensor) -> Tensor:
    return F.batch_norm(x, torch.zeros(5), torch.ones(5))


@pytest.mark.parametrize("change", [normed, F.relu, lambda x: x.softmax(-1)])
def test_what_changes_the_last_linears_output_is_refused(change: Any) -> None:
    class Changed(Plain):
        def forward(self, x: Tensor) -> Any:
            return change(super().forward(x))

    with pytest.raises(UserError) as caught:
        wrap(built(Changed))
    message = str(caught.value)
    assert message.startswith("module/Changed: expected a network whose output is that of one Linear layer")
    assert "teacher.feature" in message and "Candidates: head (5), head.1 (5)" in message
    assert "\n" not in message


def test_two_heads_on_a_feature_are_one_of_their_mean_even_where_both_give_zeros() -> None:
    net = built(TwoHeads)
    with torch.no_grad():
        for layer in (net.head[1], net.other):  # type: ignore[index]
            layer.weight.zero_()  # type: ignore[union-attr]
            layer.bias.zero_()  # type: ignore[union-attr]
    backbone = wrap(net)
    with torch.no_grad():
        net.head[1].weight.normal_()  # type: ignore[index,union-attr]
        net.other.bias.normal_()  # type: ignore[union-attr]
    feature, logits = backbone(images())
    assert feature.shape == (2, 6) and logits.shape == (2, 5)
    torch.testing.assert_close(logits, net(images()))
    chosen = wrap(net, feature="other")
    assert chosen.classifier is net.other and chosen.reading is not None
    assert chosen.feature_dim == 6


def test_a_chosen_linear_need_not_be_skippable() -> None:
    class Deep(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(5, 9)

        def forward(self, x: Tensor) -> Any:
            return self.last(super().forward(x))

    net = built(Deep)
    backbone = wrap(net, feature="head.1")
    assert backbone.reading is not None and not backbone.reading.skips
    assert (backbone.feature_dim, backbone.num_classes) == (6, 5)
    torch.testing.assert_close(backbone(images())[0], net.body(images()).mean((2, 3)))  # type: ignore[operator]
    half = Frozen(backbone, dtype=torch.bfloat16)(images())
    assert half[0].dtype == half[1].dtype == torch.float32


def test_maps_are_averaged_and_the_classifier_kept_if_it_takes_just_that() -> None:
    net = built()
    backbone = wrap(net, feature="body")
    assert backbone.classifier is net.head[1]  # type: ignore[index]
    torch.testing.assert_close(backbone(images()), wrap(net)(images()))
    # before the ReLU that works in place
    early = wrap(net, feature="body.1")
    expected = net.body[1](net.body[0](images())).mean((2, 3))  # type: ignore[index,operator]
    torch.testing.assert_close(early(images())[0], expected)
    assert not early.has_classifier and early.num_classes == 0
    assert early.describe() == "module/Plain: feature = output of body.1 (BatchNorm2d), D 6, no classifier"


def test_of_tokens_the_mean_or_the_one_that_is_chosen() -> None:
    net = built(Tokens)
    tokens = net.norm(net.embed(images()).flatten(2).mT)  # type: ignore[operator]
    mean, first = wrap(net, feature="norm"), wrap(net, feature="norm[0]")
    torch.testing.assert_close(mean(images())[0], tokens.mean(1))
    torch.testing.assert_close(first(images())[0], tokens[:, 0])
    assert not mean.has_classifier and first.classifier is net.classifier
    assert first.describe().endswith("output of norm (LayerNorm), token 0, D 6, K 5")
    assert first.config()["feature"] == "norm[0]"


def test_without_a_classifier_the_feature_is_the_same_or_the_output() -> None:
    net = built()
    embedding = wrap(net, classifier=False)
    torch.testing.assert_close(embedding(images())[0], wrap(net)(images())[0])
    assert not embedding.has_classifier and embedding(images())[1].shape == (2, 0)
    net.head = nn.Identity()
    whole = wrap(net, classifier=False)
    assert whole.describe() == "module/Plain: feature = output of the network, D 6, no classifier"
    torch.testing.assert_close(whole(images())[0], net(images()))
    output = wrap(built(), feature="output")
    assert output.feature_dim == 5 and not output.has_classifier


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ("boby", r"expected feature to name one of its modules, got 'boby'\. Did you mean 'body'\?"),
        ("head.2", "Did you mean"),
        ("body[1]x", "expected feature to name one of its modules"),
        ("unused", r"expected a module that runs and gives a feature, got 'unused'.*Candidates: head"),
    ],
)
def test_a_feature_that_is_not_there_is_refused(feature: str, message: str) -> None:
    net = built()
    net.unused = nn.ReLU()
    with pytest.raises(UserError, match=message) as caught:
        wrap(net, feature=feature)
    assert "\n" not in str(caught.value)


class Fixed(nn.Module):
    """Takes images of one size only."""

    def __init__(self, side: int = 28) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 4), nn.ReLU(), nn.Linear(4, 5))

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


def test_the_only_size_and_the_channels_of_a_network_are_found() -> None:
    backbone = wrap(built(Fixed))
    assert (backbone.image_size, backbone.channels, backbone.in_channels) == ((28, 28), 1, 3)
    assert backbone(images(8))[0].shape == (2, 4)
    with pytest.raises(
        UserError, match=r"got none for 3 or 1 channels and sides of 8 to 518 pixels \(.*input_size"
    ):
        wrap(Fixed(27))
    assert wrap(Fixed(27), input_size=27).image_size == (27, 27)


def test_what_a_network_keeps_of_the_sizes_it_is_tried_at_is_put_back() -> None:
    class Windowed(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.window = 8

        def forward(self, x: Tensor) -> Any:
            self.window = min(self.window, x.shape[-1])
            return super().forward(F.avg_pool2d(x, self.window))

    net = built(Windowed)
    expected = net(images(32))
    backbone = wrap(net, input_size=8)
    wrap(net, channels=3).on_noise()
    multiply_adds(net, images(4)[:1])
    torch.testing.assert_close(net(images(32)), expected, rtol=0, atol=0)
    assert backbone.net.window == 8


def test_a_network_that_is_no_image_network_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="expected a network of images") as caught:
        wrap(nn.LSTM(3, 4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [Plain, Tokens])
def test_bf16_keeps_the_classifier_and_gives_float32(kind: type[nn.Module]) -> None:
    backbone = wrap(built(kind))
    feature, logits = backbone(images())
    teacher = Frozen(backbone, dtype=torch.bfloat16)
    half = teacher(images())
    types = {key: value.dtype for key, value in backbone.net.named_parameters()}
    assert types.pop(f"{backbone.classifier_name}.weight") == torch.float32
    assert types.pop(f"{backbone.classifier_name}.bias") == torch.float32
    assert set(types.values()) == {torch.bfloat16}
    assert half[0].dtype == half[1].dtype == torch.float32
    assert not torch.equal(half[0], feature)
    torch.testing.assert_close(half, (feature, logits), rtol=0.03, atol=0.03)
    torch.testing.assert_close(teacher.classifier(half[0]), half[1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", [Plain, Tokens])
def test_a_compiled_teacher_says_the_same(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    compile, calls = torch.compile, []

    def eager(fn: Any) -> Any:
        def traced(graph: Any, inputs: Any) -> Any:
            calls.append(len(inputs))
            return graph.forward

        return compile(fn, backend=traced)

    monkeypatch.setattr(torch, "compile", eager)
    backbone = wrap(built(kind))
    expected = backbone(images())
    teacher = Frozen(backbone, compile=True)
    torch.testing.assert_close(teacher(images()), expected)
    torch.testing.assert_close(teacher(images()), expected)
    assert len(calls) == 1
    torch.compiler.reset()


def test_without_a_compiler_a_teacher_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fn: Any) -> Any:
        def fail(x: Tensor) -> Tensor:
            raise RuntimeError("no compiler found\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    backbone = wrap(built())
    expected = backbone(images())
    teacher = Frozen(backbone, compile=True)
    with pytest.warns(UserWarning, match=r"module/Plain: not compiled \(no compiler found\)$"):
        torch.testing.assert_close(teacher(images()), expected, rtol=0, atol=0)
    torch.testing.assert_close(teacher(images()), expected, rtol=0, atol=0)


def test_a_timm_network_made_in_python_tells_its_feature_and_its_normalisation() -> None:
    import timm

    net = timm.create_model("test_resnet", num_classes=5)
    backbone = wrap(net)
    assert backbone.reading is None and backbone.input_mean == list(net.pretrained_cfg["mean"])
    assert wrap(backbone) is backbone and wrap(Frozen(backbone)) is backbone


def test_a_backbone_of_a_plain_module_says_how_it_is_made() -> None:
    with pytest.raises(UserError, match=r"use gendd\.wrap"):
        Backbone(Plain(), name="plain", in_channels=3, mean=[0] * 3, std=[1] * 3)
