"""Image classifiers of transformers: ``hf/ID``, or ``hf/`` followed by the path of a local folder.

transformers is an optional dependency, imported at first use.
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from gendd.errors import UserError
from gendd.files import user_path
from gendd.models.downloads import hub_or_cache, unfetched
from gendd.models.network import (
    DEFAULT_MEAN,
    DEFAULT_STD,
    Network,
    Wanted,
    assemble,
    unbuilt,
    without_weights,
)

_PREPROCESSOR = "preprocessor_config.json"
# keys not saved with a student's configuration: class names and provenance
_UNSAVED = ("id2label", "label2id", "transformers_version", "_name_or_path", "dtype", "torch_dtype")


def create(source: str, wanted: Wanted) -> Network:
    """Build a model from the Hub or from a local folder.

    Args:
        source: An id, or the path of a folder (``/…``, ``./…`` or ``~/…``).
        wanted: Requirements. A pretrained model keeps its channels; otherwise it is built from its
            configuration, or from ``wanted.config`` if given, with the channels of the images.

    Raises:
        UserError: transformers isn't installed, there is no image classifier at ``source``, its weights
            lack more than the classifier, or the feature isn't found.
    """
    name = f"hf/{source}"
    try:
        transformers: Any = import_module("transformers")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{name}: expected the package transformers, which is not installed. Run: pip install 'gendd[hf]'"
        ) from error
    if source.startswith("~"):
        source = str(user_path(source))
    if source.startswith(("/", ".")) and not os.path.isdir(source):
        raise UserError(
            f"{name}: expected a folder with a model of transformers, found none; check the path."
        )
    local = os.path.isdir(source)
    with hub_or_cache() as host:
        try:
            net, classes = _built(transformers, source, wanted, name)
        except UserError:
            raise
        except Exception as error:  # no connection, no such id, not an image model, a missing dependency
            if wanted.pretrained and not local:
                raise without_weights(name, error, host) from error
            if wanted.config is None and not local:
                raise unfetched(
                    f"Configuration of {name}", error, host, "give the path of a local folder"
                ) from error
            raise unbuilt("transformers", name, error, pretrained=wanted.pretrained) from error
        mean, std, side = _input(source, name, wanted)
    size = getattr(net.config, "image_size", None) or side
    made = assemble(
        net,
        name,
        wanted,
        channels=(getattr(net.config, "num_channels", 3),),
        side=size if isinstance(size, int) else None,
        mean=mean,
        std=std,
        pretrained_classes=classes,
    )
    made.arguments = {"config": _described(net)}
    return made


def _built(transformers: Any, source: str, wanted: Wanted, name: str) -> tuple[Any, int]:
    """Build the network, in training mode; also return the number of classes of its own classifier."""
    auto = transformers.AutoModelForImageClassification
    if wanted.pretrained:
        net, found = auto.from_pretrained(source, output_loading_info=True, trust_remote_code=False)
        return net.float().train(), _classes(net, found, name)
    config = _config(transformers, source, wanted)
    classes = config.num_labels
    config.num_labels = wanted.num_classes
    # selects the head of an architecture that has several
    config.architectures = config.architectures or []
    if hasattr(config, "num_channels"):
        config.num_channels = wanted.channels or wanted.in_channels
    return auto.from_config(config).float().train(), classes


def _config(transformers: Any, source: str, wanted: Wanted) -> Any:
    if wanted.config is None:
        return transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    given = dict(wanted.config)
    return transformers.AutoConfig.for_model(given.pop("model_type"), **given)


def _described(net: nn.Module) -> dict[str, Any]:
    config: Any = net.config
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return {key: value for key, value in values.items() if key not in _UNSAVED}


def _classes(net: nn.Module, found: dict[str, Any], name: str) -> int:
    """Number of classes of the pretrained classifier; 0 if the weights have no classifier."""
    missing = sorted(found["missing_keys"])
    heads = ("classifier", "cls_classifier", "distillation_classifier", "head", "fc")
    lacking = [key for key in missing if key.split(".")[0] not in heads]
    if lacking:
        raise UserError(
            f"{name}: expected weights of the whole network, got none for {', '.join(lacking[:3])}"
            f"{', …' if len(lacking) > 3 else ''}; choose another model."
        )
    config: Any = net.config
    return 0 if missing else int(config.num_labels)


def _input(source: str, name: str, wanted: Wanted) -> tuple[list[float], list[float], int | None]:
    """Mean, standard deviation and image side from the preprocessor's configuration, for images in [0, 1]."""
    file = None if wanted.config is not None else _preprocessor(source)
    if file is None:
        return [DEFAULT_MEAN], [DEFAULT_STD], None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: expected a readable JSON file; {reason}") from error
    if wanted.pretrained and found.get("do_flip_channel_order"):
        raise UserError(
            f"{name}: expected a model of RGB images, got one of BGR, which its weights were trained on; "
            "choose another model."
        )
    # scale of the preprocessor's output relative to images in [0, 1]
    scale = 255 * found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 255
    mean, std = [0.0], [1.0]
    if found.get("do_normalize", "image_mean" in found):
        mean, std = found["image_mean"], found["image_std"]
    size = found.get("crop_size") or found.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    side = size if isinstance(size, int) else None
    return [value / scale for value in mean], [value / scale for value in std], side


def _preprocessor(source: str) -> Path | None:
    if Path(source).is_dir():
        file = Path(source) / _PREPROCESSOR
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, _PREPROCESSOR))
    except Exception:  # it has none, or the Hub is unreachable, which loading the model reports
        return None
