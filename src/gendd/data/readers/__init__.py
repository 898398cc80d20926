"""One reader a kind of set: what there is on disk, before anything is split or decoded."""

from gendd.data.readers.cifar import read_cifar
from gendd.data.readers.common import Found, Part, class_numbers, given_names, image_files, untested
from gendd.data.readers.digits import read_digits
from gendd.data.readers.fashion_mnist import read_fashion_mnist, read_idx
from gendd.data.readers.folder import read_folder
from gendd.data.readers.hf import read_hf
from gendd.data.readers.lists import read_list
from gendd.data.readers.parquet import read_parquet
from gendd.data.readers.standalone import read_part

__all__ = [
    "Found",
    "Part",
    "class_numbers",
    "given_names",
    "image_files",
    "read_cifar",
    "read_digits",
    "read_fashion_mnist",
    "read_folder",
    "read_hf",
    "read_idx",
    "read_list",
    "read_parquet",
    "read_part",
    "untested",
]
