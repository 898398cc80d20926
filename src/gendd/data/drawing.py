"""Choose the images of a data set for training, validation and scoring."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.images import ImageSet
from gendd.data.readers import Found, Part, subset
from gendd.data.split import class_split, long_tail, random_split, stratified_split, thinned
from gendd.errors import UserError
from gendd.messages import say


def with_test_images(found: Found, config: DataConfig, trained: bool) -> Found:
    """Use some of the labelled training images as test images if the set has none.

    Args:
        found: The data set.
        config: The data configuration.
        trained: Whether a network is trained on the set; if not, all its labelled images are test images.

    Raises:
        UserError: no image can be held out.
    """
    labels = found.train.labels
    if found.test is not None or labels is None or not config.labels:
        return found
    known = (labels >= 0).nonzero()[:, 0]
    if len(known) == 0:
        return found
    if not trained:
        say(f"no test images of its own: all {len(known):,} labelled images are used")
        return replace(found, test=subset(found.train, known))
    if config.test == 0:
        raise UserError(
            f"data.test: expected a fraction above 0, as there are no test images, got {config.test}; hold "
            "some out to evaluate on, or set data.test_path."
        )
    generator = torch.Generator().manual_seed(config.split_seed)
    held = known[class_split(labels[known], config.test, generator)[1]]
    if len(held) == 0:
        raise UserError(
            "Expected at least two images of a class, to hold one out for testing, got one of each; add "
            "images, or set data.test_path."
        )
    say(
        f"no test images of its own: {len(held):,} of the {len(known):,} labelled images are held out of "
        f"training (data.test {config.test:g})"
    )
    kept = _others(held, len(labels))
    return replace(found, train=subset(found.train, kept), test=subset(found.train, held))


def _others(held: Tensor, count: int) -> Tensor:
    """Return the rows of ``count`` that are not held out."""
    kept = torch.ones(count, dtype=torch.bool)
    kept[held] = False
    return kept.nonzero()[:, 0]


def used_rows(part: Part, own: Part | None, classes: int, config: DataConfig) -> tuple[Tensor, Tensor]:
    """Choose the rows to train on and the rows to validate on.

    Args:
        part: The training images.
        own: The set's own validation images, which the second rows refer to; None: to training images.
        classes: K.
        config: The data configuration.

    Raises:
        UserError: more images are requested than there are, or a long tail of images without labels.
    """
    generator = torch.Generator().manual_seed(config.split_seed)
    rest, held = _split(part, classes, config, own is None, generator)
    rows = _drawn(part, rest, config, generator)
    held_of = part if own is None else own
    if own is not None:
        held = torch.arange(own.count)
    # last, so that it does not affect the choice of training images
    wanted = validation_count(config, len(held), len(rest))
    labels = held_of.labels[held] if config.labels and held_of.labels is not None else None
    if labels is not None and bool((labels < 0).any()):
        labels = None
    return rows, held[thinned(labels, len(held), wanted, generator)]


def validation_count(config: DataConfig, held: int, rest: int) -> int:
    """Return how many of the ``held`` images to validate on, given ``rest`` available for training.

    Raises:
        UserError: more are requested than there are.
    """
    wanted = config.validation_images
    if isinstance(wanted, int) and wanted > held:
        raise UserError(
            f"data.validation_images: expected at most {held}, those held out, got {wanted}; lower it, or "
            "raise data.validation."
        )
    if isinstance(wanted, int):
        return wanted
    if wanted == "all" or config.train_images is None or held == 0:
        return held
    return max(1, round(held * config.train_images / rest))


def _split(
    part: Part, classes: int, config: DataConfig, hold: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Split into rows available for training and held-out rows, if any are to be held out."""
    if config.validation == 0 or not hold:
        rest, held = torch.arange(part.count), torch.arange(0)
    elif part.labels is not None and config.labels and bool((part.labels < 0).any()):
        rest, held = _split_partly(part.labels, config.validation, generator)
    elif part.labels is None or not config.labels:
        rest, held = random_split(part.count, config.validation, generator)
    else:
        rest, held = stratified_split(part.labels, config.validation, generator)
    if len(rest) == 0 or (hold and config.validation > 0 and len(held) == 0):
        raise UserError(
            f"data.validation: expected a fraction of the {part.count} training images that leaves some on "
            f"both sides, got {config.validation}; change it, or set 0 for none."
        )
    if config.imbalance is not None:
        if part.labels is None or bool((part.labels < 0).any()):
            raise UserError(
                f"data.imbalance: expected null for unlabelled training images, got {config.imbalance}; "
                "leave it out, or give labelled images."
            )
        rest = rest[long_tail(part.labels[rest], classes, config.imbalance, generator)]
    return rest, held


def _split_partly(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hold out ``fraction`` of partly labelled images, from the more numerous kind, labelled or unlabelled.

    If few are labelled, no labels are spent on validation.
    """
    known = labels >= 0
    of = known if 2 * int(known.sum()) > len(labels) else ~known
    pool = of.nonzero()[:, 0]
    share = min(1.0, fraction * len(labels) / len(pool))
    if of is known:
        held = pool[stratified_split(labels[pool], share, generator)[1]]
    else:
        held = pool[random_split(len(pool), share, generator)[1]]
    return _others(held, len(labels)), held


def _drawn(part: Part, rest: Tensor, config: DataConfig, generator: torch.Generator) -> Tensor:
    """Draw ``train_images`` rows from those available for training."""
    wanted = config.train_images
    if wanted is None:
        return rest
    if wanted > len(rest):
        after = "validation" if config.imbalance is None else "validation and data.imbalance"
        raise UserError(
            f"data.train_images: expected at most {len(rest)} (what is left of {part.count} after "
            f"{after}), got {wanted}; lower it, or lower data.validation."
        )
    chosen = torch.randperm(len(rest), generator=generator)[:wanted]
    return rest[chosen].sort().values


def spread(images: ImageSet, count: int) -> ImageSet:
    """Select at most ``count`` images of a set, evenly spread; the fingerprint remains that of all."""
    return images if count >= len(images) else images.rows(spread_rows(len(images), count))


def spread_rows(total: int, count: int) -> Tensor:
    """At most ``count`` of the rows 0 to ``total`` - 1, int64, evenly spread and in order."""
    return torch.arange(total) if count >= total else torch.linspace(0, total - 1, count).round().long()
