"""Data sets, batch augmentation and batches."""

from gendd.data.augment import augment
from gendd.data.batch import Batch, Rows
from gendd.data.describing import describe, empty_classes
from gendd.data.images import ImageSet
from gendd.data.loading import Batches, ShardBatches, eval_loader, sample_loader, train_loader
from gendd.data.mixing import Mixing
from gendd.data.sets import Data, load_data
from gendd.data.shards import Shards

__all__ = [
    "Batch",
    "Batches",
    "Data",
    "ImageSet",
    "Mixing",
    "Rows",
    "ShardBatches",
    "Shards",
    "augment",
    "describe",
    "empty_classes",
    "eval_loader",
    "load_data",
    "sample_loader",
    "train_loader",
]
