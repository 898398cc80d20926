"""Images on their own, such as a test set beside training images of another kind."""

from __future__ import annotations

from gendd.data.readers.common import Part, existing_path
from gendd.data.readers.folder import folder_part
from gendd.data.readers.parquet import parquet_part
from gendd.files import user_path


def read_part(value: str, key: str) -> tuple[Part, list[str]]:
    """Images at a path: parquet (a file, a glob or a directory of them) or a directory of image files.

    Args:
        value: The path.
        key: Its config key, for errors.

    Returns:
        The images, labelled where there is a label column or class folders; and the names of their
        classes, none where nothing tells them.

    Raises:
        UserError: nothing there, or something else.
    """
    path = user_path(value)
    if path.suffix == ".parquet" or next(path.rglob("*.parquet"), None) is not None:
        return parquet_part(value, key)
    return folder_part(existing_path(value, key, "a directory of images or parquet"))
