"""Trial runs of a network on noise, to find out which images it takes.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gendd.errors import UserError, first_line

# sides of square images, in the order they are tried on a network whose image size is unknown
_SIDES = (32, 64, 128, 224, 256, 299, 384, 448, 518, 28, 16, 8)


@contextmanager
def still(net: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; restores every module's mode and attributes, and the random state.

    Some networks store values for the last image size, such as a smaller window, and then fail at another.
    """
    before = [(part, type(part), dict(part.__dict__)) for part in net.modules()]
    net.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, kind, attributes in before:
            # a lazy layer has changed its class, with other attributes
            if type(part) is kind:
                part.__dict__.update(attributes)
            else:
                part.training = attributes["training"]


def sample_images(net: nn.Module, channels: int, size: tuple[int, int]) -> Tensor:
    """Two noise images (2, C, H, W), in the network's dtype and on its device."""
    noise = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    for value in net.parameters():
        if value.is_floating_point():
            return noise.to(value)
    return noise


def find_size(
    net: nn.Module, channels: Sequence[int], side: int | None, name: str
) -> tuple[int, tuple[int, int], bool]:
    """Find out by trial which images a network takes.

    Args:
        net: The network.
        channels: Candidate numbers of channels, the likeliest first.
        side: Its image side in pixels, if known.
        name: Its name for the error message.

    Returns:
        Its number of channels, a size (H, W) it takes, and whether that is the only size.

    Raises:
        UserError: it takes none of those tried.
    """
    reason = ""
    for count in channels:
        for tried in (side,) if side is not None else _SIDES:
            failure = _failure(net, count, tried)
            if failure is None:
                only = all(_failure(net, count, other) is not None for other in (tried // 2, 2 * tried))
                return count, (tried, tried), only
            reason = reason or failure
    shapes = " or ".join(map(str, channels))
    sides = str(side) if side is not None else f"{min(_SIDES)} to {max(_SIDES)}"
    raise UserError(
        f"{name}: expected a network of images (B, C, H, W), got none for {shapes} channels and sides of "
        f"{sides} pixels ({reason}); give its input_size, or its channels."
    )


def _failure(net: nn.Module, channels: int, side: int) -> str | None:
    try:
        with still(net):
            net(sample_images(net, channels, (side, side)))
    except Exception as error:  # any network may raise anything for images it does not take
        return first_line(error)
    return None
