"""Open the tar shards of a configuration and split them into training, validation and test images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.corrupt import Skipped
from gendd.data.decoding import decode
from gendd.data.drawing import validation_count
from gendd.data.fingerprint import fingerprint
from gendd.data.images import ImageSet
from gendd.data.members import hold, images_at
from gendd.data.readers import Part, by_split, class_numbers, given_names, read_part, renumbered
from gendd.data.shards import Choice, Shards, steps_of
from gendd.data.split import thinned
from gendd.data.survey import Contents, survey
from gendd.data.tars import (
    BAD_LABEL,
    NO_LABEL,
    find_tars,
    is_remote,
)
from gendd.data.workers import cores
from gendd.errors import UserError
from gendd.files import user_path
from gendd.messages import followed

MOST_HELD_OUT = 10_000
_NO_BOUND = 2**63 - 1


@dataclass(frozen=True)
class Found:
    """The shards and the test set of a configuration.

    Args:
        train: Training images; channels and size not set yet.
        val: Held-out training images, encoded, size not set yet; None if there are none.
        own_val: The set's own validation images, used instead; None if there are none.
        test: Test images, labelled or not; None if there are none, which only unlabelled training images
            allow.
        class_names: One name per class; empty if the classes are unknown.
        channels: 1 if the training images are gray, else 3.
    """

    train: Shards
    val: ImageSet | None
    test: Part | None
    class_names: list[str]
    channels: int
    own_val: Part | None = None


def read_shards(config: DataConfig) -> Found:
    """Open the images at ``data.path`` and ``data.test_path``.

    In the order of their hashes (of tar and key, by ``split_seed``) the first images are held out for
    validation: a fraction ``validation``, at most 10,000, and none if there are validation shards. The
    ``train_images`` that follow are the training images.

    Raises:
        UserError: shards are missing, empty or have too many unreadable images; labels are not class
            numbers or have no name; or labelled images come without test images.
    """
    path, val_path, test_path = _paths(config)
    mask = int(torch.randint(_NO_BOUND, (), generator=torch.Generator().manual_seed(config.split_seed)))
    contents = survey(path, config.workers)
    lost = _check_whole(contents, config.max_corrupt, "mend them, or raise data.max_corrupt")
    labels = _labels(contents, config.labels)
    test, names = (None, []) if test_path is None else _test(test_path, config)
    tested = None if test is None else test.labels
    if labels is not None and config.labels and test is None:
        raise UserError(
            "data.test_path: expected test images (shards, a directory of class folders or parquet), as the "
            f"training images in {config.path!r} are labelled, got none; set data.test_path, or data.labels "
            "to false."
        )
    own_val = None
    if val_path:
        own_val, _ = _test(val_path, config)
        if labels is not None and config.labels and own_val.labels is None:
            raise UserError(
                f"Expected a cls with every image of {val_path[0]!r}, as the training images have one, found "
                "none; add them, or set data.labels to false."
            )
    # labels that neither training nor testing uses need not be class numbers
    useful = config.labels or tested is not None
    labels, names = _classes(labels if useful else None, tested, names, config)

    hashes = torch.from_numpy(np.concatenate([each.hashes for each in contents])) ^ mask
    choice, held = _chosen(hashes, mask, config, 0.0 if own_val is not None else config.validation)
    if own_val is not None:
        own_val = _fewer(own_val, validation_count(config, own_val.count, len(hashes)), config)
    held = validation_count(config, held, len(hashes) - held)
    bound = int(hashes.sort().values[held - 1]) + 1 if held else 0
    held_rows = (hashes < bound).nonzero()[:, 0]
    train_rows = (hashes >= choice.first) & (hashes <= choice.last)
    parts = torch.split(train_rows, [len(each) for each in contents])
    counts = torch.tensor([int(part.sum()) for part in parts])
    starts = torch.from_numpy(np.concatenate([each.starts for each in contents]))
    train = Shards(
        urls=[each.url for each, count in zip(contents, counts.tolist(), strict=True) if count],
        counts=counts[counts > 0],
        starts=starts[train_rows],
        labels=None if labels is None else labels[train_rows],
        choice=choice,
        max_corrupt=config.max_corrupt,
    )
    for missing, what in lost:
        train.skipped.add_missing(missing, what)
    # raises errors before training starts
    steps_of(train, config, 1)
    channels = 1 if all(each.gray for each in contents if len(each)) else 3
    val = None
    if held:
        held_labels = None if labels is None else labels[held_rows]
        source = images_at(contents, held_rows)
        val = ImageSet(
            source,
            held_labels,
            channels,
            size=0,
            max_corrupt=config.max_corrupt,
            skipped=Skipped("validation"),
            fingerprint=fingerprint(source, held_labels),
        )
        val = val if config.in_memory is False else _held(val)
    return Found(train, val, test, names, channels, own_val)


def _classes(
    labels: Tensor | None, tested: Tensor | None, names: list[str], config: DataConfig
) -> tuple[Tensor | None, list[str]]:
    """Return the training images' labels, None if unusable, and a name per class.

    Args:
        labels: Labels of the training images.
        tested: Labels of the test images.
        names: What the test set calls the classes; none where it doesn't tell.
        config: Names them otherwise, and tells whether the labels of the training images are needed.
    """
    if config.classes is not None:
        names = given_names(config.classes, labels if config.labels else None, tested)
    if labels is not None and names and int(labels.max()) >= len(names):
        if config.labels:
            raise UserError(
                f"Expected labels below {len(names)}, the number of classes in data.test_path, got "
                f"{int(labels.max())} in data.path; give their test set, or set data.labels to false."
            )
        labels = None
    return labels, names or class_numbers(labels, tested)


def _paths(config: DataConfig) -> tuple[list[str], list[str], str | list[str] | None]:
    """Return the training and validation shards, and the test set: shards, another kind's path, or None."""
    if config.path is None:
        raise UserError("data.path: expected tar shards for data.name 'webdataset', got none; set data.path.")
    train, val, test = find_tars(config.path, "data.path"), list[str](), list[str]()
    root = user_path(config.path)
    if os.path.isdir(root):
        train, val, test = by_split(train, root)
    if config.validation == 0 and (test or config.test_path is not None):
        val = []
    if config.test_path is not None:
        other = user_path(config.test_path)
        holds_tars = os.path.isdir(other) and next(other.rglob("*.tar"), None) is not None
        if (
            not is_remote(config.test_path)
            and (os.path.isdir(other) or other.suffix == ".parquet")
            and not holds_tars
        ):
            return train, val, config.test_path
        test = find_tars(config.test_path, "data.test_path")
    return (train, val, test) if test else (train, [], val or None)


def _test(given: str | list[str], config: DataConfig) -> tuple[Part, list[str]]:
    """Return the test or validation images, and their class names if any."""
    if isinstance(given, str):
        part, names = read_part(given, "data.test_path")
        if names and all(name.isdecimal() for name in names):
            # a cls file holds a number; class folders are sorted by name: 1, 10, 2
            counted = sorted(names, key=int)
            part, names = renumbered(part, names, counted), counted
        return part, names
    contents = survey(given, config.workers)
    _check_whole(contents, 0.0, "mend them, or give others")
    count = sum(len(each) for each in contents)
    return Part(count, _labels(contents, True), lambda rows: images_at(contents, rows)), []


def _check_whole(contents: Sequence[Contents], limit: float, remedy: str) -> list[tuple[int, str]]:
    """Return the numbers of missing images and their shards; raises :class:`UserError` if there are too many.

    A damaged shard is assumed to lack the difference to the median intact one, and at least one image.
    """
    total = sum(len(each) for each in contents)
    whole = [len(each) for each in contents if not each.damage]
    typical = int(np.median(whole)) if whole else 0
    lost: list[tuple[int, str]] = []
    for each in contents:
        if each.damage:
            lost.append((max(1, typical - len(each)), f"{each.url!r}: {each.damage}"))
        if each.imageless:
            lost.append((each.imageless, f"no image in {each.stray}"))
    count = sum(missing for missing, _ in lost)
    if total == 0:
        raise UserError(
            f"Expected samples with a jpg, jpeg, png or webp in {contents[0].url!r}"
            f"{' and the other shards' if len(contents) > 1 else ''}, found none"
            f"{f' ({lost[0][1]})' if lost else ''}; give other shards."
        )
    if count > limit * (total + count):
        raise UserError(
            f"Expected at most {limit:g} of the images of the shards to be missing or damaged, got about "
            f"{count} of {total + count} ({lost[0][1]}); {remedy}."
        )
    return lost


def _labels(contents: Sequence[Contents], needed: bool) -> Tensor | None:
    """Return the labels of all images; None if there are none, or if some are missing and none is needed."""
    labels = torch.from_numpy(np.concatenate([each.labels for each in contents]))
    if bool((labels >= 0).all()):
        return labels
    if not needed or bool((labels == NO_LABEL).all()):
        return None
    if bool((labels == BAD_LABEL).any()):
        odd = next(each.odd_label for each in contents if each.odd_label)
        raise UserError(f"Expected a class number, counted from 0, in every cls, got {odd}; correct it.")
    url = next(each.url for each in contents if (each.labels == NO_LABEL).any())
    raise UserError(
        f"Expected a cls with every image or with none, got {int((labels == NO_LABEL).sum())} without of "
        f"{len(labels)}, the first in {url!r}; add them, or set data.labels to false."
    )


def _fewer(part: Part, wanted: int, config: DataConfig) -> Part:
    """Draw some of the set's own validation images, as held-out images of other sets are drawn."""
    labels = part.labels if config.labels else None
    rows = thinned(labels, part.count, wanted, torch.Generator().manual_seed(config.split_seed))
    kept = None if part.labels is None else part.labels[rows]
    return Part(len(rows), kept, lambda some: part.take(rows[some]))


def _chosen(hashes: Tensor, mask: int, config: DataConfig, share: float) -> tuple[Choice, int]:
    """Choose the training images; returns the number of held-out images too, a fraction ``share`` of all."""
    total = len(hashes)
    held = min(round(share * total), MOST_HELD_OUT)
    if held == total or (share > 0 and held == 0):
        raise UserError(
            f"data.validation: expected a fraction of the {total} training images that leaves some on both "
            f"sides, got {config.validation}; change it, or set 0 for none."
        )
    wanted = config.train_images
    if wanted is not None and wanted > total - held:
        raise UserError(
            f"data.train_images: expected at most {total - held} (what is left of {total} after "
            f"validation), got {wanted}; lower it, or lower data.validation."
        )
    ordered = hashes.sort().values
    first = int(ordered[held - 1]) + 1 if held else 0
    last = _NO_BOUND if wanted is None else int(ordered[held + wanted - 1])
    return Choice(mask, first, last), held


def _held(images: ImageSet) -> ImageSet:
    """Hold the readable encoded images in memory; each is decoded once to check."""
    source, tally = images.source, images.tally(len(images))
    assert tally is not None and not isinstance(source, Tensor)

    def read(index: int) -> bytes | UserError:
        try:
            content = source.read(index)
            decode(content, source.where(index), images.channels)
        except UserError as error:
            return error
        return content

    found: dict[int, bytes] = {}

    with ThreadPoolExecutor(cores()) as pool:
        parts = pool.map(read, range(len(images)))
        for index, part in enumerate(
            followed(parts, len(images), "Reading validation images", unit="images", bar=True)
        ):
            if isinstance(part, UserError):
                tally.add([(index, part)])
            else:
                found[index] = part
    held = hold(list(found.values()), [source.where(index) for index in found])
    return replace(
        images, source=held, labels=None if images.labels is None else images.labels[torch.tensor([*found])]
    )
