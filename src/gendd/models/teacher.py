"""Build teachers, keeping the classes of their weights."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from gendd.config import ModelConfig
from gendd.errors import UserError
from gendd.models.backbone import Backbone
from gendd.models.registry import build_model, pretrained_classes
from gendd.models.weights import OtherClassesError, saved_class_names


def build_teacher(
    config: ModelConfig, num_classes: int, in_channels: int, given: nn.Module | None = None
) -> Backbone:
    """Build a teacher; if it is pretrained or has a weights file, it keeps the classes of its weights.

    Args:
        config: Its section; if ``classes`` is set, K is checked against it.
        num_classes: K of the data, for a teacher without classes of its own; 0 if the data has none.
        in_channels: C.
        given: A network made in Python, used instead of the name and its weights.

    Raises:
        UserError: as :func:`gendd.models.build_model`, or ``classes`` does not match the weights, or
            the number of classes can't be determined.
    """
    try:
        backbone = build_model(config, config.classes or num_classes or 1, in_channels, given)
    except OtherClassesError as error:
        if config.classes is not None:
            raise
        return build_model(config, error.classes, in_channels)
    own = backbone.num_classes
    if given is None and config.weights is None and backbone.has_classifier:
        classes = pretrained_classes(backbone) if config.pretrained else None
        own = own if classes is None else classes
        # without any number of classes, the network was built with a placeholder of one
        if classes is None and own == 1 and not (num_classes or config.classes):
            raise UserError(
                f"teacher.weights: expected weights for {config.name} that determine its classes, as "
                "the images don't, got none; give a file, or name the classes with data.classes."
            )
    if backbone.has_classifier and config.classes not in (None, own):
        raise UserError(
            f"classes: expected {own} or null for the trained {config.name}, got {config.classes}; "
            "its classifier would be random."
        )
    if own == backbone.num_classes:
        return backbone
    return build_model(replace(config, classifier=own > 0), own or 1, in_channels)


def teacher_class_names(config: ModelConfig, num_classes: int) -> list[str] | None:
    """Names of a teacher's K classes: those of its run's data, or ImageNet's for timm and torchvision.

    None if they are unknown.
    """
    if config.weights is not None:
        names = saved_class_names(config.weights)
    else:
        imagenet = config.pretrained and config.name.startswith(("timm/", "torchvision/"))
        names = _imagenet_names(num_classes) if imagenet else None
    return names if names is not None and len(names) == num_classes else None


def _imagenet_names(num_classes: int) -> list[str] | None:
    """Class names of the ImageNet variant with this many classes, the first synonym of each; else None."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return None
    return [str(names).partition(",")[0] for names in ImageNetInfo(subset).label_descriptions()]
