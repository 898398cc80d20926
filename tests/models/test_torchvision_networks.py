from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from gendd.config import ModelConfig
from gendd.errors import UserError
from gendd.models import Backbone, build_model, create_backbone, load_weights, save_weights
from gendd.models.registry import pretrained_classes

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the weights requested from torchvision; nothing is downloaded."""
    asked: list[Any] = []
    get_model = torchvision.models.get_model

    def made(name: str, weights: Any = None, **settings: Any) -> nn.Module:
        asked.append(weights)
        net: nn.Module = get_model(name, **settings)
        return net

    monkeypatch.setattr(torchvision.models, "get_model", made)
    monkeypatch.setattr("gendd.models.downloads.reachable", lambda host: True)
    return asked


@pytest.mark.parametrize(
    ("name", "classifier"),
    [("shufflenet_v2_x0_5", "fc"), ("mobilenet_v3_small", "classifier.3")],
)
def test_the_feature_enters_the_last_linear(name: str, classifier: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(f"torchvision/{name}", 6)
    assert backbone.training and (backbone.input_mean, backbone.input_std) == IMAGENET
    assert backbone.classifier_name == classifier and backbone.image_size is None
    backbone.eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        feature, logits = backbone(images)
        own = backbone.net((images - backbone.mean) / backbone.std)
    assert feature.shape == (2, backbone.feature_dim)
    torch.testing.assert_close(logits, own, rtol=0, atol=0)
    again = create_backbone(**backbone.config())
    again.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(again.eval()(images)[0], feature, rtol=0, atol=0)


def test_an_inception_is_alike_with_weights_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def made(name: str, **settings: Any) -> nn.Module:
        given.append(settings)
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1000))

    monkeypatch.setattr(torchvision.models, "get_model", made)
    monkeypatch.setattr("gendd.models.downloads.reachable", lambda host: True)
    for pretrained in (True, False):
        create_backbone("torchvision/googlenet", 1000, pretrained=pretrained)
    trained, untrained = given
    assert trained["weights"] is torchvision.models.GoogLeNet_Weights.DEFAULT
    for settings in given:
        assert settings["transform_input"] and not settings["aux_logits"]
    assert untrained["init_weights"] and "init_weights" not in trained


def test_a_transformer_is_given_its_size() -> None:
    backbone = create_backbone("torchvision/vit_b_32", 6)
    assert backbone.image_size == (224, 224) and backbone.feature_dim == 768
    assert backbone.describe() == "torchvision/vit_b_32: feature = input of heads.head (Linear), D 768, K 6"


def test_grey_images_are_repeated() -> None:
    backbone = create_backbone("torchvision/shufflenet_v2_x0_5", 6, in_channels=1).eval()
    assert (backbone.in_channels, backbone.channels) == (1, 3)
    images = torch.rand(1, 1, 32, 32)
    expected = create_backbone("torchvision/shufflenet_v2_x0_5", 6).eval()
    expected.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(backbone(images), expected(images.expand(-1, 3, -1, -1)), rtol=0, atol=0)


def test_pretrained_weights_are_torchvision_s_default_or_those_of_the_tag(untrained: list[Any]) -> None:
    weights = torchvision.models.MobileNet_V3_Large_Weights
    name = "torchvision/mobilenet_v3_large"
    backbone = create_backbone(name, 1000, pretrained=True)
    assert (backbone.num_classes, pretrained_classes(backbone)) == (1000, 1000)
    create_backbone(f"{name}.IMAGENET1K_V1", 1000, pretrained=True)
    assert untrained == [weights.DEFAULT, weights.IMAGENET1K_V1]
    assert weights.DEFAULT != weights.IMAGENET1K_V1


def test_other_classes_get_a_random_classifier(untrained: list[Any]) -> None:
    backbone = create_backbone("torchvision/shufflenet_v2_x0_5", 7, pretrained=True)
    assert backbone.num_classes == 7 and pretrained_classes(backbone) == 1000
    assert backbone.net.fc is backbone.classifier
    assert backbone(torch.rand(2, 3, 32, 32))[1].shape == (2, 7)


def test_an_embedding_takes_the_weights_of_any_number_of_classes(tmp_path: Path) -> None:
    name = "torchvision/shufflenet_v2_x0_5"
    whole = create_backbone(name, 9).eval()
    save_weights(whole, tmp_path / "w.safetensors")
    config = ModelConfig(name, str(tmp_path / "w.safetensors"), classifier=False)
    embedding: Backbone = build_model(config, 4, 3).eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(embedding(images)[0], whole(images)[0], rtol=0, atol=0)
    assert embedding.num_classes == 0
    again = create_backbone(**embedding.config())
    again.load_state_dict(embedding.state_dict())


def test_a_network_that_ends_in_no_affine_layer_is_read_at_its_output(tmp_path: Path) -> None:
    name, images = "torchvision/squeezenet1_1", torch.rand(2, 3, 32, 32)
    torch.manual_seed(0)
    backbone = create_backbone(name, 5).eval()
    own = backbone.net(backbone.prepare(images))
    torch.testing.assert_close(backbone(images), (own, own), rtol=0, atol=0)
    assert torch.equal(backbone.classifier.weight, torch.eye(5)) and "output of the" in backbone.describe()
    # torchvision's files lack this classifier, a student's file has its own
    state = {key: value for key, value in backbone.net.state_dict().items() if "gendd" not in key}
    torch.save(state, tmp_path / "theirs.pt")
    other = create_backbone(name, 5).eval()
    load_weights(other, tmp_path / "theirs.pt")
    torch.testing.assert_close(other(images), (own, own), rtol=0, atol=0)
    with torch.no_grad():
        backbone.classifier.bias.add_(1)
    save_weights(backbone, tmp_path / "ours.safetensors")
    load_weights(other, tmp_path / "ours.safetensors")
    torch.testing.assert_close(other(images)[1], own + 1)
    backbone = create_backbone(name, 5, feature="features")
    assert (backbone.feature_dim, backbone.has_classifier) == (512, False)


def test_a_layer_in_the_middle_becomes_no_random_classifier() -> None:
    name, feature = "torchvision/mobilenet_v3_small", "classifier.0"
    with pytest.raises(
        UserError, match=r"expected a classifier of 9 classes, got 'classifier\.0' of 1024"
    ) as caught:
        create_backbone(name, 9, feature=feature)
    assert "\n" not in str(caught.value)
    embedding = create_backbone(name, 9, feature=feature, classifier=False)
    assert (embedding.feature_dim, embedding.has_classifier) == (576, False)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("torchvision/resnet5O", "Did you mean 'torchvision/resnet50'?"),
        ("torchvision/resnet50.IMAGENET1K_V3", "Did you mean 'torchvision/resnet50.IMAGENET1K_V2'?"),
        ("torchvision/fcn_resnet50", "Did you mean"),
    ],
)
def test_an_unknown_name_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"Unknown model '{name}'") as caught:
        create_backbone(name, 10)
    assert hint in str(caught.value)


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(torchvision.models, "get_model", fail)
    monkeypatch.setattr("gendd.models.downloads.reachable", lambda host: True)
    with pytest.raises(UserError, match=r"could not be fetched: no route to host\. Check the connection"):
        create_backbone("torchvision/resnet18", 10, pretrained=True)


def test_without_a_connection_no_download_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("gendd.models.downloads.reachable", lambda host: host != "download.pytorch.org")
    # torch must not access the network
    monkeypatch.setattr("torch.hub.urlopen", lambda *_, **__: pytest.fail("a download was tried"))
    with pytest.raises(UserError) as caught:
        create_backbone("torchvision/resnet18", 10, pretrained=True)
    assert str(caught.value) == (
        "Pretrained weights of torchvision/resnet18 could not be fetched: download.pytorch.org can't be "
        "reached, and the cache has none. Check the connection, or give them as a file "
        "(--teacher.weights or --student.weights FILE, in Python weights=FILE)."
    )
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_without_a_connection_the_cache_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("gendd.models.downloads.reachable", lambda host: False)
    net = torchvision.models.shufflenet_v2_x0_5()
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    file = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(net.state_dict(), file)
    monkeypatch.setattr(weights, "get_state_dict", partial(weights.get_state_dict, check_hash=False))
    backbone = create_backbone("torchvision/shufflenet_v2_x0_5", 1000, pretrained=True)
    torch.testing.assert_close(dict(backbone.net.state_dict()), dict(net.state_dict()), rtol=0, atol=0)
