"""Checks and conversion of a network's input images: channels and normalisation.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gendd.errors import UserError

# ITU-R BT.601, as image libraries convert RGB to grey
_LUMA = (0.299, 0.587, 0.114)


def check_normalisation(
    name: str, in_channels: int, channels: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Raise :class:`UserError` if images of ``in_channels`` can't be converted and normalised like this."""
    if channels != in_channels and {channels, in_channels} != {1, 3}:
        raise UserError(
            f"channels: expected {in_channels}, as the images have, for {name}, got {channels}; "
            "only 1 and 3 can be converted into each other."
        )
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise UserError(
                f"{key}: expected {channels} numbers, one per channel, got {list(values)}; "
                f"give as many as {name} has channels."
            )
    if min(std) <= 0:
        raise UserError(f"std: expected positive numbers, got {list(std)}; 1.0 leaves the scale as it is.")


def check_images(images: Any, channels: int, name: str) -> None:
    """Raise :class:`UserError` if ``images`` are not floating-point images (B, C, H, W)."""
    if not isinstance(images, Tensor):
        raise UserError(f"{name}: expected a torch.Tensor of images, got {type(images).__name__}; make one.")
    if images.dim() != 4 or images.shape[1] != channels or not images.is_floating_point():
        way = "build the network with their number of channels"
        if images.dim() != 4:
            way = "give a batch, of one image as images[None]"
        elif not images.is_floating_point():
            way = "scale them to [0, 1]"
        raise UserError(
            f"{name}: expected floating-point images of shape (B, {channels}, H, W), got "
            f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}; {way}."
        )


def as_channels(images: Tensor, channels: int) -> Tensor:
    """Convert RGB images to their luma if fewer channels are needed."""
    if channels < images.shape[1]:
        # not by a tensor of weights, which would be copied to the device each time
        red, green, blue = (weight * images[:, index : index + 1] for index, weight in enumerate(_LUMA))
        return red + green + blue
    return images
