from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import nn

from gendd.config import ModelConfig
from gendd.errors import UserError
from gendd.models import Backbone, build_model, create_backbone, list_models, save_weights
from gendd.models.cifar import NAMES
from gendd.models.registry import check_name, pretrained_classes
from gendd.student import Student


@pytest.mark.parametrize("name", NAMES)
def test_every_listed_cifar_network_builds(name: str) -> None:
    backbone = create_backbone(f"cifar/{name}", 7, in_channels=1)
    assert (backbone.num_classes, backbone.in_channels) == (7, 1)
    assert (backbone.input_mean, backbone.input_std) == ([0.5], [0.25])


def test_cifar_networks_are_built_and_saved_by_one_name(tmp_path: Path) -> None:
    backbone = create_backbone("cifar/mobilenetv2", 3)
    assert backbone.name == "cifar/MobileNetV2"
    Student(backbone).save(tmp_path)
    again = build_model(ModelConfig("cifar/MOBILENETV2", weights=str(tmp_path)), 3, 3)
    torch.testing.assert_close(again.state_dict(), backbone.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_timm_feature_enters_the_classifier(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(f"timm/{name}", 6).eval()
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        feature, logits = backbone(images)
        own = backbone.net((images - backbone.mean) / backbone.std)
    assert feature.shape == (2, backbone.feature_dim) == (2, backbone.classifier.in_features)
    assert logits.shape == (2, 6)
    torch.testing.assert_close(logits, own)


def test_timm_normalisation_is_the_networks_own_unless_given() -> None:
    backbone = create_backbone("timm/resnet10t", 2)
    assert backbone.input_mean == [0.485, 0.456, 0.406]
    assert backbone.input_std == [0.229, 0.224, 0.225]
    assert backbone.training
    grey = create_backbone("timm/resnet10t", 2, in_channels=1)
    assert grey.input_mean == pytest.approx([0.449])
    given = create_backbone("timm/resnet10t", 2, mean=[0, 0, 0])
    assert (given.input_mean, given.input_std) == ([0, 0, 0], [0.229, 0.224, 0.225])


def test_building_a_timm_network_draws_no_more_than_its_weights() -> None:
    import timm

    torch.manual_seed(0)
    timm.create_model("test_resnet", num_classes=2)
    expected = torch.rand(3)
    torch.manual_seed(0)
    create_backbone("timm/test_resnet", 2)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_a_network_of_one_image_size_gets_it() -> None:
    backbone = create_backbone("timm/test_vit", 2).eval()
    assert backbone.image_size == (160, 160) and backbone.config()["input_size"] == 160
    small = torch.rand(1, 3, 32, 32)
    large = nn.functional.interpolate(small, (160, 160), mode="bilinear", antialias=True)
    torch.testing.assert_close(backbone(small), backbone(large), rtol=0, atol=0)
    assert create_backbone(**backbone.config()).image_size == (160, 160)


def test_a_network_of_one_image_size_is_built_for_another() -> None:
    backbone = create_backbone("timm/test_vit", 2, input_size=32)
    assert backbone.image_size == (32, 32)
    assert backbone.net.patch_embed.img_size == (32, 32)  # type: ignore[union-attr]
    again = create_backbone(**backbone.config())
    again.load_state_dict(backbone.state_dict())


def test_a_network_of_any_size_takes_the_one_that_is_asked_for() -> None:
    backbone = create_backbone("cifar/resnet8", 2, input_size=16).eval()
    assert backbone.config()["input_size"] == 16
    images = torch.rand(1, 3, 8, 8)
    larger = nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    plain = create_backbone("cifar/resnet8", 2).eval()
    plain.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(backbone(images), plain(larger), rtol=0, atol=0)
    assert plain.image_size is None and "input_size" not in plain.config()


@pytest.mark.parametrize("name", ["cifar/resnet8", "timm/test_resnet"])
def test_a_network_without_its_classifier(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = create_backbone(name, 7).eval()
    save_weights(whole, tmp_path / "w.safetensors")
    config = ModelConfig(name, str(tmp_path / "w.safetensors"), classifier=False)
    embedding = build_model(config, 4, 3).eval()
    assert not embedding.has_classifier
    assert (embedding.num_classes, embedding.feature_dim) == (0, whole.feature_dim)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(embedding(images)[0], whole(images)[0], rtol=0, atol=0)
    again = create_backbone(**embedding.config())
    assert not again.has_classifier and again.state_dict().keys() == embedding.state_dict().keys()
    assert "no classifier" in embedding.describe()


def test_two_heads_are_an_embedding_or_read_at_one_of_them() -> None:
    name = "timm/deit_tiny_distilled_patch16_224"
    embedding = create_backbone(name, 5, classifier=False, input_size=32)
    assert embedding.feature_dim == 192 and not embedding.has_classifier
    backbone = create_backbone(name, 5, feature="head", input_size=32)
    assert backbone.describe() == f"{name}: feature = input of head (Linear), D 192, K 5"
    again = create_backbone(**backbone.config())
    assert again.config() == backbone.config()


def test_grey_images_reach_a_network_of_three_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    colour = create_backbone("cifar/resnet8", 4, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]).eval()
    save_weights(colour, tmp_path / "w.safetensors")
    config = ModelConfig(
        "cifar/resnet8",
        str(tmp_path / "w.safetensors"),
        mean=[0.1, 0.2, 0.3],
        std=[0.5, 0.6, 0.7],
        channels=3,
    )
    grey = build_model(config, 4, 1).eval()
    assert (grey.in_channels, grey.channels) == (1, 3)
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), rtol=0, atol=0)
    again = create_backbone(**grey.config())
    assert (again.in_channels, again.channels) == (1, 3)
    # a saved run keeps its channels and normalisation
    Student(grey).save(tmp_path / "student")
    found = build_model(ModelConfig("cifar/resnet8", str(tmp_path)), 4, 1)
    assert (found.channels, found.input_mean) == (3, [0.1, 0.2, 0.3])


def test_colour_images_reach_a_network_of_one_channel_as_their_luma() -> None:
    torch.manual_seed(0)
    colour = create_backbone("cifar/resnet8", 4, 3, channels=1).eval()
    grey = create_backbone("cifar/resnet8", 4, 1).eval()
    grey.load_state_dict(colour.state_dict())
    red, green, blue = images = torch.rand(3, 1, 8, 8)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    torch.testing.assert_close(colour(images.reshape(1, 3, 8, 8)), grey(luma[None]))


def test_other_channels_are_not_made_of_one_another() -> None:
    with pytest.raises(UserError) as caught:
        create_backbone("cifar/resnet8", 4, 4, channels=3)
    assert str(caught.value) == (
        "channels: expected 4, as the images have, for cifar/resnet8, got 3; "
        "only 1 and 3 can be converted into each other."
    )


def test_a_size_that_a_timm_network_does_not_take_is_refused() -> None:
    message = r"^timm/crossvit_tiny_240: expected an input_size that it takes, got 64 \(.*\); leave it out"
    with pytest.raises(UserError, match=message):
        create_backbone("timm/crossvit_tiny_240", 5, input_size=64)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar/resnt56", "Did you mean 'cifar/resnet56'?"),
        ("resnet56", "Did you mean 'cifar/resnet56'?"),
        ("resnet20", "Did you mean 'cifar/resnet20'?"),
        ("CIFAR/vgg8", "Did you mean 'cifar/vgg8'?"),
        ("resnet50", "Did you mean 'timm/resnet50'?"),
        ("timm/resnet5O", "Did you mean 'timm/resnet50'?"),
        ("timm/resnet18.a1_in2k", "Did you mean 'timm/resnet18.a1_in1k'?"),
    ],
)
def test_an_unknown_name_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        create_backbone(name, 10)
    assert str(caught.value) == (
        f"Unknown model {name!r}: expected cifar/NAME, timm/NAME, torchvision/NAME, hf/ID or FILE.py:FACTORY."
        f" {hint}"
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_tiny_patch16_224", 8), ("vit_tiny_patch16_224", 15), ("deit_tiny_patch16_224", 1)],
)
def test_a_size_that_a_network_cannot_take_is_told(name: str, size: int) -> None:
    message = rf"^timm/{name}: expected an input_size that it takes, got {size} "
    with pytest.raises(UserError, match=message) as caught:
        create_backbone(f"timm/{name}", 5, input_size=size)
    assert "leave it out, or give another" in str(caught.value) and "\n" not in str(caught.value)


def test_a_path_is_told_from_a_name(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").touch()
    for name in (str(tmp_path), str(tmp_path / "weights.pth"), "/dev/null"):
        with pytest.raises(UserError, match=r"got a path without config\.json and model\.safetensors"):
            check_name(name)


def test_pretrained_weights_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UserError, match="pretrained: expected false for cifar/resnet8"):
        create_backbone("cifar/resnet8", 10, pretrained=True)
    with pytest.raises(UserError, match="pretrained: expected false for botnet50ts_256"):
        create_backbone("timm/botnet50ts_256", 10, pretrained=True)


@pytest.mark.parametrize(
    ("there", "reason"),
    [(True, "no route to host"), (False, "huggingface.co can't be reached, and the cache has none")],
)
def test_a_failed_download_is_one_line(there: bool, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    offline = []

    def fail(*args: object, **options: object) -> None:
        offline.append(constants.HF_HUB_OFFLINE)
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr("gendd.models.downloads.reachable", lambda host: there)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    with pytest.raises(UserError) as caught:
        create_backbone("timm/resnet18", 10, pretrained=True)
    assert str(caught.value) == (
        f"Pretrained weights of timm/resnet18 could not be fetched: {reason}. Check the connection, or give "
        "them as a file (--teacher.weights or --student.weights FILE, in Python weights=FILE)."
    )
    # without a connection there are no repeated attempts
    assert offline == [not there]
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(("classes", "channels", "key"), [(0, 3, "num_classes"), (2, 0, "in_channels")])
def test_sizes_below_one_are_refused(classes: int, channels: int, key: str) -> None:
    with pytest.raises(UserError, match=f"{key}: expected a positive integer, got 0"):
        create_backbone("cifar/resnet8", classes, channels)


def test_list_takes_a_glob_or_a_substring() -> None:
    everything = list_models()
    assert everything[: len(NAMES)] == [f"cifar/{name}" for name in NAMES]
    assert "timm/resnet50" in everything
    assert list_models("cifar/resnet8*") == ["cifar/resnet8", "cifar/resnet8x4"]
    assert list_models("cifar/resnet5") == ["cifar/resnet56"]
    assert {"cifar/resnet110", "timm/resnet50"} <= set(list_models("*resnet*0"))
    assert list_models("no such network") == []
    assert {"torchvision/resnet50", "torchvision/vit_b_16"} <= set(list_models("torchvision/"))
    assert "torchvision/quantized_resnet18" not in everything


def test_timm_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys; from gendd.models import create_backbone, list_models; list_models('cifar/*');"
        "create_backbone('cifar/resnet8', 2); sys.exit('timm' in sys.modules)"
    )
    source = Path(__file__).parents[2] / "src"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(source)})


def test_build_model_takes_everything_from_the_config(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = create_backbone("cifar/resnet8", 4, 1)
    save_weights(trained, tmp_path / "w.safetensors")
    config = ModelConfig("cifar/resnet8", str(tmp_path / "w.safetensors"), mean=[0.1], std=[0.2])
    built: Backbone = build_model(config, 4, 1)
    torch.testing.assert_close(dict(built.net.state_dict()), dict(trained.net.state_dict()), rtol=0, atol=0)
    assert (built.input_mean, built.input_std) == ([0.1], [0.2])


def test_build_model_names_another_number_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(create_backbone("cifar/resnet8", 100), path)
    with pytest.raises(UserError) as caught:
        build_model(ModelConfig("cifar/resnet8", str(path)), 10, 3)
    assert str(caught.value) == (
        f"{path}: its cifar/resnet8 has 100 classes, not the expected 10: "
        "give weights trained on those classes."
    )


def test_a_file_of_other_classes_leaves_the_classifier_new(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    theirs = create_backbone("cifar/resnet8", 100)
    save_weights(theirs, path)
    torch.manual_seed(3)
    fresh = create_backbone("cifar/resnet8", 10)
    torch.manual_seed(3)
    built = build_model(ModelConfig("cifar/resnet8", str(path)), 10, 3, other_classes=True)
    assert (built.num_classes, built.pretrained_classes) == (10, 100)
    for key, value in built.net.state_dict().items():
        source = fresh if key.startswith("fc.") else theirs
        assert torch.equal(value, source.net.state_dict()[key]), key
    same = build_model(ModelConfig("cifar/resnet8", str(path)), 100, 3, other_classes=True)
    torch.testing.assert_close(dict(same.net.state_dict()), dict(theirs.net.state_dict()), rtol=0, atol=0)
    assert same.pretrained_classes == 100


def saved_run(folder: Path, name: str = "cifar/resnet8", channels: int = 1) -> str:
    """The folder of a run that normalised its input by 0.3 and 0.4."""
    torch.manual_seed(0)
    values = [0.3] * channels, [0.4] * channels
    Student(create_backbone(name, 4, channels, *values)).save(folder / "student")
    return str(folder)


def test_the_weights_of_a_run_bring_its_normalisation(tmp_path: Path) -> None:
    run = saved_run(tmp_path)
    for weights in (run, f"{run}/student", f"{run}/student/model.safetensors"):
        built = build_model(ModelConfig("cifar/resnet8", weights), 4, 1)
        assert (built.input_mean, built.input_std) == ([0.3], [0.4])
        given = build_model(ModelConfig("cifar/resnet8", weights, mean=[0.1]), 4, 1)
        assert (given.input_mean, given.input_std) == ([0.1], [0.4])
        given = build_model(ModelConfig("cifar/resnet8", weights, std=[0.2]), 4, 1)
        assert (given.input_mean, given.input_std) == ([0.3], [0.2])


def test_the_weights_of_a_run_with_another_network_are_refused(tmp_path: Path) -> None:
    run = saved_run(tmp_path)
    with pytest.raises(UserError) as caught:
        build_model(ModelConfig("cifar/resnet14", run), 4, 1)
    assert str(caught.value) == (
        f"{run}: expected the weights of cifar/resnet14, got those of cifar/resnet8; "
        "give a run of this network or the name of the run's."
    )
    with pytest.raises(UserError, match=r"conv1\.weight is 16x1x3x3 for 16x3x3x3"):
        build_model(ModelConfig("cifar/resnet8", run), 4, 3)


def test_a_tag_makes_no_other_network(tmp_path: Path) -> None:
    run = saved_run(tmp_path, "timm/test_resnet", 3)
    built = build_model(ModelConfig("timm/test_resnet.r160_in1k", run), 4, 3)
    assert built.input_mean == [0.3] * 3


def test_a_config_beside_weights_may_be_another_library_s(tmp_path: Path) -> None:
    save_weights(create_backbone("cifar/resnet8", 4, 1), tmp_path / "model.safetensors")
    for content in ({"architecture": "resnet8"}, {"backbone": "resnet8"}, []):
        (tmp_path / "config.json").write_text(json.dumps(content))
        built = build_model(ModelConfig("cifar/resnet8", str(tmp_path)), 4, 1)
        assert (built.input_mean, built.input_std) == ([0.5], [0.25])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(
        UserError, match=r"config\.json': expected a readable JSON file, got one that is not "
    ):
        build_model(ModelConfig("cifar/resnet8", str(tmp_path)), 4, 1)


def test_pretrained_classes_are_those_of_timm_s_weights() -> None:
    assert pretrained_classes(create_backbone("timm/test_resnet", 7)) == 1000


@pytest.mark.parametrize(
    "name",
    ["cifar/resnet20", "cifar/RESNET50", "cifar/resnet8x0.5", "timm/resnet18.a1_in1k", "hf/a/b"],
)
def test_a_known_name_is_found_without_building_its_network(name: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check_name(name)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("cifar/resnt20", "cifar/resnet20"),
        ("timm/resnet81", "timm/resnet18"),
        ("torchvision/resnet81", "torchvision/resnet18"),
        ("cfar/resnet20", "cifar/resnet20"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"Unknown model '{name}'.*Did you mean '{nearest}'"):
        check_name(name)
