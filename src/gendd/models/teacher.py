"""Teachers: networks of the classes their weights have, or of none."""

from __future__ import annotations

from gendd.config import ModelConfig
from gendd.errors import UserError
from gendd.models.backbone import Backbone
from gendd.models.registry import build_model, pretrained_classes
from gendd.models.weights import OtherClassesError, saved_class_names


def build_teacher(config: ModelConfig, num_classes: int, in_channels: int) -> Backbone:
    """Build a teacher; pretrained or with a weights file it keeps the classes of its weights.

    Args:
        config: Its section; ``classes`` names K where it is to be checked.
        num_classes: K of the data, for a teacher that brings no classes of its own.
        in_channels: C.

    Raises:
        UserError: as :func:`gendd.models.build_model`, or ``classes`` are not those of the weights.
    """
    try:
        backbone = build_model(config, config.classes or num_classes, in_channels)
    except OtherClassesError as error:
        if config.classes is not None:
            raise
        backbone = build_model(config, error.classes, in_channels)
    if not config.classifier:
        return _without_classifier(backbone)
    if not config.pretrained or config.weights is not None or not backbone.has_classifier:
        return backbone
    own = pretrained_classes(backbone)
    if config.classes not in (None, own):
        raise UserError(
            f"classes: expected {own} or null for the pretrained {config.name}, got {config.classes}; "
            "its classifier would be random."
        )
    if own == 0:
        return _without_classifier(backbone)
    return backbone if own == backbone.num_classes else build_model(config, own, in_channels)


def teacher_class_names(config: ModelConfig, num_classes: int) -> list[str] | None:
    """Names of a teacher's K classes: of a run those of its data, of timm's weights ImageNet's; else None."""
    if config.weights is not None:
        names = saved_class_names(config.weights)
    else:
        names = _imagenet_names(num_classes) if config.pretrained else None
    return names if names is not None and len(names) == num_classes else None


def _without_classifier(backbone: Backbone) -> Backbone:
    if not backbone.has_classifier:
        return backbone
    return Backbone(
        backbone.net,
        name=backbone.name,
        in_channels=backbone.in_channels,
        mean=backbone.input_mean,
        std=backbone.input_std,
        image_size=backbone.image_size,
        classifier=False,
        feature_dim=backbone.feature_dim,
    )


def _imagenet_names(num_classes: int) -> list[str] | None:
    """ImageNet's class names by their number, the first of each; None for another number of classes."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return None
    return [str(names).partition(",")[0] for names in ImageNetInfo(subset).label_descriptions()]
