"""Standalone images, such as a test set for training images of another kind."""

from __future__ import annotations

from gendd.data.readers.common import Part, existing_path
from gendd.data.readers.folder import folder_part
from gendd.data.readers.parquet import parquet_part
from gendd.files import user_path


def read_part(value: str, key: str) -> tuple[Part, list[str]]:
    """Read images at a path: parquet (a file, a glob or a directory of files) or a directory of image files.

    Args:
        value: The path.
        key: Its config key, for errors.

    Returns:
        The images, labelled if there is a label column or class folders; and the names of their classes,
        empty if they are unknown.

    Raises:
        UserError: nothing is there, or something else.
    """
    path = user_path(value)
    if path.suffix == ".parquet" or next(path.rglob("*.parquet"), None) is not None:
        return parquet_part(value, key)
    return folder_part(existing_path(value, key, "a directory of images or parquet"))
