from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gendd.config import ModelConfig
from gendd.errors import UserError
from gendd.models import build_model, create_backbone, save_weights
from gendd.models.registry import pretrained_classes

transformers = pytest.importorskip("transformers", reason="needs the extra hf")


def config_of(kind: str, **changes: Any) -> Any:
    if kind in ("vit", "deit"):
        return (transformers.ViTConfig if kind == "vit" else transformers.DeiTConfig)(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=16,
            patch_size=8,
            num_labels=5,
            **changes,
        )
    if kind == "resnet":
        return transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=5, **changes
        )
    return transformers.ConvNextConfig(
        hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, num_labels=5, **changes
    )


def saved(folder: Path, kind: str, preprocessor: dict[str, Any] | None = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = config_of(kind, **changes)
    config.architectures = []
    net = transformers.AutoModelForImageClassification.from_config(config).eval()
    net.save_pretrained(folder)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return net


@pytest.mark.parametrize(
    ("kind", "classifier", "size"),
    [
        ("vit", "classifier", (16, 16)),
        ("deit", "classifier", (16, 16)),
        ("resnet", "classifier.1", None),
        ("convnext", "classifier", None),
    ],
)
def test_a_model_of_a_folder(
    kind: str, classifier: str, size: tuple[int, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = saved(tmp_path / "model", kind)
    backbone = create_backbone(f"hf/{tmp_path}/model", 5, pretrained=True, mean=[0.1] * 3, std=[0.5] * 3)
    assert backbone.training and pretrained_classes(backbone) == 5
    assert (backbone.classifier_name, backbone.image_size) == (classifier, size)
    backbone.eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        feature, logits = backbone(images)
        torch.testing.assert_close(logits, net((images - 0.1) / 0.5).logits, rtol=0, atol=0)
    # rebuilt from its own description, without the folder
    described = json.loads(json.dumps(backbone.config()))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").rename(tmp_path / "other")
    (tmp_path / "model").mkdir()
    again = create_backbone(**described)
    again.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(again.eval()(images)[0], feature, rtol=0, atol=0)
    # and by a path below the working directory
    here = create_backbone("hf/./other", 3)
    assert here.num_classes == 3 and here.feature_dim == backbone.feature_dim


def test_other_classes_and_channels_are_built_from_the_configuration(tmp_path: Path) -> None:
    saved(tmp_path, "convnext")
    grey = create_backbone(f"hf/{tmp_path}", 3, in_channels=1)
    assert (grey.num_classes, grey.channels) == (3, 1)
    assert grey(torch.rand(2, 1, 16, 16))[1].shape == (2, 3)
    trained = create_backbone(f"hf/{tmp_path}", 3, in_channels=1, pretrained=True)
    assert (trained.num_classes, trained.channels, pretrained_classes(trained)) == (3, 3, 5)
    again = create_backbone(**trained.config())
    again.load_state_dict(trained.state_dict())


@pytest.mark.parametrize(
    ("preprocessor", "mean", "std"),
    [
        (None, [0.5] * 3, [0.25] * 3),
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": False}, [0.0] * 3, [1.0] * 3),
        (
            {"image_mean": [1.0] * 3, "image_std": [1.0] * 3, "rescale_factor": 1 / 127.5},
            [0.5] * 3,
            [0.5] * 3,
        ),
    ],
)
def test_the_normalisation_is_that_of_the_preprocessor(
    preprocessor: dict[str, Any] | None, mean: list[float], std: list[float], tmp_path: Path
) -> None:
    saved(tmp_path, "resnet", preprocessor)
    backbone = create_backbone(f"hf/{tmp_path}", 5)
    assert backbone.input_mean == pytest.approx(mean)
    assert backbone.input_std == pytest.approx(std)


def test_weights_without_a_classifier_are_an_embedding_s(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = transformers.ViTModel(config_of("vit"), add_pooling_layer=False).eval()
    net.save_pretrained(tmp_path)
    backbone = create_backbone(f"hf/{tmp_path}", 5, pretrained=True)
    assert pretrained_classes(backbone) == 0
    embedding = create_backbone(f"hf/{tmp_path}", 5, pretrained=True, classifier=False).eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = net((images - 0.5) / 0.25).last_hidden_state
        torch.testing.assert_close(embedding(images)[0], expected[:, 0], rtol=0, atol=0)
        # the first output of a module with several
        mean = create_backbone(f"hf/{tmp_path}", 5, pretrained=True, feature="vit").eval()
        torch.testing.assert_close(mean(images)[0], expected.mean(1))
    assert not embedding.has_classifier and not mean.has_classifier


def test_what_is_no_image_classifier_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="expected a folder with a model of transformers, found none"
    ) as caught:
        create_backbone(f"hf/{tmp_path}/none", 5)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="transformers could not build hf/") as caught:
        create_backbone(f"hf/{tmp_path}", 5)
    assert "\n" not in str(caught.value)
    saved(tmp_path, "resnet", {"do_flip_channel_order": True})
    with pytest.raises(UserError, match="expected a model of RGB images"):
        create_backbone(f"hf/{tmp_path}", 5, pretrained=True)
    with pytest.raises(UserError, match="Unknown model 'hf/'"):
        create_backbone("hf/", 5)


def test_a_folder_without_weights_names_the_ways_out(tmp_path: Path) -> None:
    saved(tmp_path, "resnet")
    (tmp_path / "model.safetensors").unlink()
    name = f"hf/{tmp_path}"
    with pytest.raises(UserError) as caught:
        create_backbone(name, 5, pretrained=True)
    message = str(caught.value)
    assert message.startswith(f"transformers could not build {name}: ") and "\n" not in message
    assert message.endswith(
        "(leave pretrained out, give weights as a file (--teacher.weights or --student.weights FILE, in "
        "Python weights=FILE), or choose another network)."
    )
    backbone = create_backbone(name, 5)
    save_weights(backbone, tmp_path / "w.safetensors")
    build_model(ModelConfig(name, str(tmp_path / "w.safetensors")), 5, 3)


def test_what_can_not_be_fetched_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("gendd.models.downloads.reachable", lambda host: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for pretrained, what in ((True, "Pretrained weights"), (False, "Configuration")):
        with pytest.raises(UserError) as caught:
            create_backbone("hf/nobody/nothing", 5, pretrained=pretrained)
        assert str(caught.value).startswith(f"{what} of hf/nobody/nothing could not be fetched: ")
        assert "can't be reached, and the cache has none. Check the connection" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError) as caught:
        create_backbone("hf/some/model", 5)
    assert str(caught.value) == (
        "hf/some/model: expected the package transformers, which is not installed. "
        "Run: pip install 'gendd[hf]'"
    )
