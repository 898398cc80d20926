"""Find data sets on disk, before splitting or decoding: one reader per kind of set, each in its own file."""

from gendd.data.readers.common import (
    Found,
    Part,
    Reader,
    by_split,
    class_numbers,
    given_names,
    image_files,
    renumbered,
    subset,
)
from gendd.data.readers.registry import reader, readers
from gendd.data.readers.standalone import read_part

__all__ = [
    "Found",
    "Part",
    "Reader",
    "by_split",
    "class_numbers",
    "given_names",
    "image_files",
    "read_part",
    "reader",
    "readers",
    "renumbered",
    "subset",
]
