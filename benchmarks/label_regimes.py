"""Fashion-MNIST with few or wrong labels: readers for `data.name` (benchmarks/compare/labels.yaml).

All have the same 10,000 training images, 2,000 labelled validation images and 10,000 test images; only the
training labels differ. Images come from Debian's package dataset-fashion-mnist, or ``data.path``.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from gendd.config import DataConfig
from gendd.data.readers.common import NO_LABEL, Found, subset
from gendd.data.readers.fashion_mnist import read_fashion_mnist

TRAIN, VALIDATION = 10_000, 2_000


def all_labels(config: DataConfig) -> Found:
    """Every training image has its label."""
    found = read_fashion_mnist(config)
    order = torch.randperm(found.train.count, generator=torch.Generator().manual_seed(0))
    train, val = order[:TRAIN], order[TRAIN : TRAIN + VALIDATION]
    return replace(found, train=subset(found.train, train), val=subset(found.train, val))


def _relabelled(config: DataConfig, share: float, noisy: bool) -> Found:
    found = all_labels(config)
    labels = found.train.labels
    assert labels is not None
    generator = torch.Generator().manual_seed(1)
    chosen = torch.rand(len(labels), generator=generator) < share
    if noisy:
        classes = len(found.class_names)
        shift = torch.randint(1, classes, (len(labels),), generator=generator)
        labels = torch.where(chosen, (labels + shift) % classes, labels)
    else:
        labels = torch.where(chosen, labels, NO_LABEL)
    return replace(found, train=replace(found.train, labels=labels))


def one_percent(config: DataConfig) -> Found:
    """About 100 images have their label, the others none."""
    return _relabelled(config, 0.01, noisy=False)


def ten_percent(config: DataConfig) -> Found:
    """About 1,000 images have their label, the others none."""
    return _relabelled(config, 0.1, noisy=False)


def noisy(config: DataConfig) -> Found:
    """About 40 % of the images have the label of another class, drawn uniformly."""
    return _relabelled(config, 0.4, noisy=True)
