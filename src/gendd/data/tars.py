"""Read tar shards in WebDataset's layout.

A sample is the run of files in a tar that share a key: KEY.jpg (or .jpeg, .png, .webp) and, with labels,
KEY.cls with an integer; other files (KEY.txt, KEY.json) are ignored.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gendd.errors import UserError, first_line

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
NO_LABEL = -1
BAD_LABEL = -2
TAR_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error)
_REMOTE = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Sample:
    """One encoded image read from a tar, usable as a set of one image.

    Args:
        url: The tar.
        key: Its key in the tar.
        image: Encoded image.
        label: Class number, or NO_LABEL.
        row: Its index among the tar's images in use.
    """

    url: str
    key: str
    image: bytes
    label: int = NO_LABEL
    row: int = 0

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> bytes:
        return self.image

    @property
    def place(self) -> str:
        """Name of the image in error messages."""
        return f"image {self.key!r} of {self.url!r}"

    def where(self, index: int) -> str:
        return self.place


# --- finding tars --------------------------------------------------------------------------------------


def is_remote(url: str) -> bool:
    """Return whether webdataset opens it with a program: a URL or ``pipe:COMMAND``."""
    return _REMOTE.match(url) is not None


def find_tars(value: str, key: str) -> list[str]:
    """Expand a path, a directory, a glob or a brace pattern of these (or of URLs) to tars.

    Args:
        value: The user's value.
        key: Its config key, for error messages.

    Raises:
        UserError: a tar is missing.
    """
    library()
    from webdataset.shardlists import expand_urls

    try:
        given = [value] if os.path.exists(os.path.expanduser(value)) else expand_urls(value)
    except ValueError as error:
        raise UserError(
            f"{key}: expected a brace pattern like 'shards/{{0000..0330}}.tar', got {value!r} "
            f"({first_line(error).partition(':')[0].lower()}); correct it."
        ) from error
    except AssertionError as error:
        name = str(error).rpartition("_WDS_")[2]
        raise UserError(
            f"{key}: expected the value of ${{{name}}} in the environment as WDS_{name}, found none; set it, "
            "or give the path without it."
        ) from error
    found: list[str] = []
    for url in given:
        path = os.path.expanduser(url)
        if is_remote(url) and not os.path.exists(path):
            found.append(url)
            continue
        if os.path.isdir(path):
            matches = [str(file) for file in Path(path).rglob("*.tar") if file.is_file()]
        else:
            matches = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
        if not matches:
            one = "" if url == value else f", of which {url!r} is not there"
            raise UserError(
                f"{key}: expected tar shards (a directory, a glob or a brace pattern like "
                f"'shards/{{0000..0330}}.tar'), got {value!r}{one or ', which matches none'}; correct it."
            )
        if (odd := next((each for each in matches if not os.path.isfile(each)), None)) is not None:
            raise UserError(f"{key}: expected tar files, got {odd!r}, which is none; correct the path.")
        # a file whose name looks like a URL or a command is opened by its whole path
        found += [os.path.abspath(each) if is_remote(each) else each for each in sorted(matches)]
    return list(dict.fromkeys(found))


def library() -> Any:
    """Import webdataset; raises :class:`UserError` if it is not installed."""
    try:
        import webdataset
    except ImportError as error:
        raise UserError("tar shards need webdataset: pip install 'gendd[webdataset]'") from error
    return webdataset


# --- samples -----------------------------------------------------------------------------------------


def read_samples(url: str, begin: int = 0, problems: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Iterate over the samples of a tar: suffix → bytes, and ``__key__``.

    Read errors end or shorten the sequence and are added to ``problems``; nothing is raised.

    Args:
        url: The tar.
        begin: Byte offset of a sample in a local tar to start at.
        problems: Receives one line per error.
    """
    library()
    from webdataset.gopen import gopen, set_options
    from webdataset.tariterators import group_by_keys, tar_file_expander

    problems = [] if problems is None else problems
    try:
        stream = gopen(url)
        if begin > 0:
            stream.seek(begin)
    except TAR_ERRORS as error:
        problems.append(reason(error))
        return

    def note(error: Exception) -> bool:
        problems.append(reason(error))
        return True

    with stream:
        # a command whose pipe is closed early reports a failure
        set_options(stream, ignore_errors=True)
        files = tar_file_expander([{"url": url, "stream": stream}], handler=note)
        yield from group_by_keys(files, handler=note)


def image_of(sample: dict[str, Any]) -> Any:
    """Return a sample's encoded image; None if it has none."""
    return next((sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample), None)


def label_of(content: bytes | None) -> int:
    """Parse the class number of a ``cls`` file: NO_LABEL without a file, BAD_LABEL if invalid."""
    if content is None:
        return NO_LABEL
    try:
        label = int(content.decode("utf-8"))
    except ValueError:
        return BAD_LABEL
    return label if 0 <= label < 2**31 else BAD_LABEL


def hash_of(url: str, key: str) -> int:
    """Hash in [0, 2⁶³) of the tar's file name and the key only, so that moving a set keeps its split."""
    name = re.split(r"[/\\]", url)[-1]
    digest = hashlib.blake2b(f"{name}/{key}".encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def reason(error: BaseException) -> str:
    """Format a tar's read error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # webdataset appends the streams and URLs it was working on
    text = " ".join(str(error.args[0] if error.args else error).split()).split(" @ ")[0]
    return text or type(error).__name__
