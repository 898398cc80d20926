"""Location, key and size of the cache that keeps a teacher's outputs for every view."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from gendd.config import RunConfig
from gendd.data import Batches, Data, Shards, train_loader
from gendd.errors import UserError
from gendd.files import cache_folder, file_stem, write_json
from gendd.messages import say
from gendd.methods import Method
from gendd.models import Asked, Frozen
from gendd.models.module import digest
from gendd.processes import from_first, world_size
from gendd.training import Answers, CachedTeacher, resolve_precision, row_type

_KEY = "key.json"
# maximum number of reported differences from the nearest cache, and of characters per value
_FEW, _SHORT = 3, 24


def cached_teacher(config: RunConfig, data: Data, teacher: Frozen) -> CachedTeacher:
    """Wrap the teacher of a run with ``training.cache_teacher`` so that it answers from its cache."""
    key = _key(config, data, teacher)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "views" / f"{file_stem(config.teacher.name)}-{data.name}-{name}"
    # for a set all images count, although an epoch's last incomplete step is dropped
    rows = _images(config, data) if isinstance(data.train, Shards) else len(data.train)
    return CachedTeacher(teacher, Answers(folder, rows, config.training.cache_dtype))


def open_cache(cached: CachedTeacher, config: RunConfig, data: Data, method: Method) -> None:
    """Create the cache folder of a method, and report its location and final size.

    Raises:
        UserError: there is not enough disk space.
    """

    cached.stages = method.asked_stages

    def begin() -> None:
        line, missing = told(cached, config, data, method)
        folder = cached.answers.folder
        free = _free(folder)
        if missing > free:
            raise UserError(
                f"training.cache_teacher: expected {size(missing)} free in {str(folder)!r} for the teacher's "
                f"outputs on {config.training.cache_teacher} views, got {size(free)}; lower it, make room, "
                "set training.cache_dtype int8, or GENDD_CACHE to another place."
            )
        say(f"teacher cache: {line}, in {folder}")
        if not (folder / _KEY).is_file():
            key = _key(config, data, cached.source)
            if (nearest := _nearest(folder.parent, key)) is not None:
                say(f"teacher cache: a new one, as {nearest}")
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / _KEY, key)

    from_first(begin)


def told(cached: CachedTeacher, config: RunConfig, data: Data, method: Method) -> tuple[str, int]:
    """Describe the cache for a method in one line, and return the bytes that are still missing."""
    answers, views = cached.answers, views_of(config)
    precision = resolve_precision(config.training.precision, next(cached.parameters()).device)
    arithmetic = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
    whole = held = 0
    images = _images(config, data)
    for part, row in _row_bytes(cached, data, method.asks).items():
        file = images * row
        whole += views * file
        held += sum(min(file, answers.held(arithmetic, view, part)) for view in range(views))
    there = "" if not held else ", complete" if held == whole else f", {size(held)} done"
    word = "view" if views == 1 else "views"
    return f"{views} {word} of {images:,} images, {size(whole)} in {answers.storage}{there}", whole - held


def views_of(config: RunConfig) -> int:
    """Return the number of views used in training."""
    assert config.training.epochs is not None
    return min(config.training.cache_teacher, config.training.epochs)


def size(count: int) -> str:
    """Format a number of bytes: ``1.2 GB``."""
    for unit, least in (("GB", 1e9), ("MB", 1e6)):
        if count >= least:
            return f"{count / least:.{0 if count >= 100 * least else 1}f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _row_bytes(cached: CachedTeacher, data: Data, asked: Asked) -> dict[str, int]:
    """Return the bytes per image, by part."""
    backbone, storage = cached.backbone, cached.answers.storage
    vectors = [torch.empty(1, width) for width in (cached.feature_dim, cached.num_classes)]
    parts = {"feature": vectors}
    if asked != "feature" and cached.has_map:
        image = torch.zeros(1, data.channels, data.image_size, data.image_size, device=backbone.mean.device)
        with torch.no_grad():
            parts = cached.computed_parts(image, asked)
    return {part: row_type(tensors, storage).itemsize for part, tensors in parts.items()}


def _images(config: RunConfig, data: Data) -> int:
    """Return the number of images per epoch."""
    batches = train_loader(data, config.data, seed=config.seed, epoch=0, world_size=world_size())
    return len(batches) * len(batches.places_of(0)) * world_size()


def _key(config: RunConfig, data: Data, teacher: Frozen) -> dict[str, Any]:
    """Return everything the teacher's outputs for a view depend on, except arithmetic and storage types."""
    images, processes = config.data, world_size()
    key: dict[str, Any] = {
        "teacher": config.teacher.name,
        "teacher.weights": teacher.digest(config.teacher.compile, digest(config.teacher.name)),
        "data": data.name,
        "data.fingerprint": data.train.fingerprint,
        "data.images": len(data.train),
        "data.channels": data.channels,
        "data.image_size": data.image_size,
        "data.augment": data.augment,
        "data.randaugment": images.randaugment,
        "data.color_jitter": images.color_jitter,
        "data.erase_prob": images.erase_prob,
        "seed": config.seed,
    }
    if data.augment == "resized-crop":
        key |= {
            "data.crop_scale": list(images.crop_scale),
            "data.crop_interpolation": images.crop_interpolation,
        }
    batches = train_loader(data, images, seed=config.seed, epoch=0, world_size=processes)
    batch = len(batches.places_of(0))
    if isinstance(batches, Batches):
        # random draws are made for all images at once, or per image as it is decoded
        key["in memory"] = batches.images.in_memory
    else:
        key |= {
            "images in a batch": batch,
            "processes": processes,
            "data.steps_per_epoch": len(batches),
            "data.resampled": images.resampled,
            "data.shuffle_buffer": images.shuffle_buffer,
        }
    if images.mixup or images.cutmix:
        mixing = ("mixup", "cutmix", "mixup_prob", "mixup_switch_prob")
        key |= {f"data.{name}": getattr(images, name) for name in mixing}
        key["images in a step's batch"] = batch * processes
        if batch % 2:
            # the middle image of an odd batch is mixed with itself
            key["processes"] = processes
    return key


def _nearest(root: Path, key: dict[str, Any]) -> str | None:
    """Describe how a key differs from the most similar cache's, if in few settings."""
    found: list[tuple[int, str, list[str]]] = []
    for path in root.glob(f"*/{_KEY}"):
        try:
            other = json.loads(path.read_text(encoding="utf-8"))
            names = [name for name in {**key, **other} if key.get(name) != other.get(name)]
        except (OSError, ValueError, TypeError, AttributeError):
            continue
        found.append((len(names), path.parent.name, [_change(key, other, name) for name in names]))
    if not found:
        return None
    count, name, changes = min(found)
    return f"{name} has {', '.join(changes)}" if count <= _FEW else None


def _change(key: dict[str, Any], other: dict[str, Any], name: str) -> str:
    new, old = (json.dumps(each.get(name)) for each in (key, other))
    # digests mean nothing to readers
    told = name not in ("teacher.weights", "data.fingerprint") and max(len(new), len(old)) <= _SHORT
    return f"{name} {old} (now {new})" if told else f"another {name}"


def _free(folder: Path) -> int:
    """Return the free disk space in bytes at a folder that may not exist yet."""
    place = next(each for each in (folder, *folder.parents) if os.path.isdir(each))
    return shutil.disk_usage(place).free
