"""Describe a data set in words."""

from __future__ import annotations

from gendd.data.encoded import Held
from gendd.data.images import ImageSet
from gendd.data.sets import Data
from gendd.data.shards import Shards


def empty_classes(data: Data) -> str | None:
    """Return a line that lists classes without training images; None if there are none."""
    counts = data.class_counts
    if counts is None or bool((counts > 0).all()):
        return None
    missing = (counts == 0).nonzero().flatten().tolist()
    shown = ", ".join(data.class_names[index] for index in missing[:5]) + (", …" if len(missing) > 5 else "")
    word = "class" if len(missing) == 1 else f"{len(missing)} of the {len(counts)} classes"
    return f"no training image of {word} {shown}; labels are counted from 0, and data.classes names them"


def describe(data: Data) -> str:
    """Return a one-line summary: images of each part, their shape, classes, augmentation, storage."""
    counts = [f"{len(data.train):,} train"]
    if data.partly_labelled:
        counts[0] += f" ({data.known_labels:,} labelled)"
    if data.val is not None:
        counts.append(f"{len(data.val):,} validation")
    if data.tested_on != "validation":
        held = "held-out " if data.tested_on == "held-out" else ""
        counts.append(f"{len(data.test):,} {held}test")
    classes = f"{data.num_classes} class" + ("es" if data.num_classes > 1 else "")
    spread = data.class_counts
    if data.long_tailed and spread is not None:
        low, high = int(spread.min()), int(spread.max())
        classes += f", long-tailed ({high:,} to {low:,} training images per class)"
    return (
        f"{data.name}: {', '.join(counts)} images of {data.channels}x{data.image_size}x{data.image_size}, "
        f"{classes if data.num_classes else 'the classes of the teacher'}{_unlabelled(data)}, "
        f"augment {data.augment}, {_place(data.train)}"
    )


def _place(images: ImageSet | Shards) -> str:
    if isinstance(images, Shards):
        return f"streamed from {len(images.urls):,} shard" + ("s" if len(images.urls) > 1 else "")
    if images.in_memory:
        return "in memory"
    return "encoded in memory" if isinstance(images.source, Held) else "streamed"


def _unlabelled(data: Data) -> str:
    tested = data.tested_on == "validation" or data.test.labels is not None
    missing = [part for part, labelled in (("training", data.labelled), ("test", tested)) if not labelled]
    return f" ({' and '.join(missing)} images unlabelled)" if missing else ""
