"""Index tar shards by one pass over each, kept in the cache, and read single images from them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from gendd.data.encoded import probe
from gendd.data.tars import (
    BAD_LABEL,
    TAR_ERRORS,
    Sample,
    hash_of,
    image_of,
    is_remote,
    label_of,
    library,
    read_samples,
    reason,
)
from gendd.data.workers import cores, ignore_interrupts, unchanged
from gendd.errors import UserError
from gendd.files import cache_folder
from gendd.messages import followed

_PROBED = 4
_BLOCK = 512
# below this size, processes take longer to start than they save
_ALONE_BYTES = 256 * 1024**2
# names that webdataset skips
_META = re.compile(r"__[^/]*__($|/)")
_FORMAT = 1


@dataclass(frozen=True)
class Contents:
    """Index of one tar: the n samples that have an image, in order.

    Args:
        url: Path or URL of the tar.
        hashes: int64 (n,), uniform in [0, 2⁶³), of the tar's file name and the sample's key.
        labels: int64 (n,): NO_LABEL if there is none, BAD_LABEL if it is not a class number.
        starts: int64 (n,): byte offset of each sample; -1 in a tar that can only be read sequentially.
        offsets: int64 (n,): byte offset of its image; -1 likewise.
        sizes: int64 (n,): bytes of its image.
        gray: Whether the first few images are all gray.
        imageless: Number of samples without an image.
        damage: What is wrong with the tar; empty if it is intact.
        stray: The first sample without an image, for an error message; empty if there is none.
        odd_label: The first label that is not a class number; empty if there is none.
    """

    url: str
    hashes: NDArray[np.int64]
    labels: NDArray[np.int64]
    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    gray: bool
    imageless: int
    damage: str
    stray: str
    odd_label: str

    def __len__(self) -> int:
        return len(self.hashes)


_COLUMNS = ("hashes", "labels", "starts", "offsets", "sizes")


def survey(urls: Sequence[str], workers: int | None) -> list[Contents]:
    """Index tars, in their order.

    For local, uncompressed tars only headers and labels are read; others are read completely. The index is
    kept in the user's cache folder, by path, size and modification time (by URL alone for remote ones).

    Args:
        urls: The tars.
        workers: Processes for large sets; None: the number of cores.
    """
    known = {url: _remembered(url) for url in urls}
    missing = [url for url in urls if known[url] is None]
    if missing:
        library()
        loader: DataLoader[Any] = DataLoader(
            _Surveyor(missing),
            batch_size=None,
            num_workers=_helpers(missing, workers),
            collate_fn=unchanged,
            worker_init_fn=ignore_interrupts,
            # given, as the loader would otherwise draw from the global generator
            generator=torch.Generator(),
        )
        for contents in followed(
            loader, len(missing), "Counting the images of the shards", unit="shards", bar=True
        ):
            known[contents.url] = contents
            _remember(contents)
    return [found for found in known.values() if found is not None]


class _Surveyor(Dataset[Contents]):
    """Indexes tars in a loader process."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = urls

    def __len__(self) -> int:
        return len(self.urls)

    def __getitem__(self, index: int) -> Contents:
        url = self.urls[index]
        return _walked(url) if can_seek(url) else _streamed(url)


def _helpers(urls: Sequence[str], workers: int | None) -> int:
    local = all(can_seek(url) for url in urls)
    if len(urls) == 1 or (local and sum(_bytes(url) for url in urls) < _ALONE_BYTES):
        return 0
    return min(len(urls), cores() if workers is None else workers)


def _bytes(url: str) -> int:
    try:
        return os.path.getsize(url)
    except OSError:
        return 0


def can_seek(url: str) -> bool:
    return not is_remote(url) and url.endswith(".tar")


class _Rows:
    """Collects the samples of one tar."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.grays: list[bool] = []
        self.imageless = 0
        self.stray = ""
        self.odd_label = ""

    def add(self, key: str, label: bytes | None, start: int, offset: int, size: int) -> None:
        number = label_of(label)
        if number == BAD_LABEL and label is not None and not self.odd_label:
            shown = label[:20].decode("utf-8", errors="replace").strip()
            self.odd_label = f"{shown!r} in sample {key!r} of {self.url!r}"
        self.rows.append((hash_of(self.url, key), number, start, offset, size))

    def look(self, sample: Sample) -> None:
        # undecodable images are reported when they are used
        with contextlib.suppress(UserError):
            self.grays.append(probe(sample)[1])

    def miss(self, sample: dict[str, Any]) -> None:
        self.imageless += 1
        suffixes = ", ".join(name for name in sample if not name.startswith("__"))
        self.stray = self.stray or f"sample {sample['__key__']!r} of {self.url!r} with {suffixes}"

    def contents(self, damage: str) -> Contents:
        hashes, labels, starts, offsets, sizes = np.array(self.rows, np.int64).reshape(-1, 5).T.copy()
        gray = bool(self.grays) and all(self.grays)
        return Contents(
            url=self.url,
            hashes=hashes,
            labels=labels,
            starts=starts,
            offsets=offsets,
            sizes=sizes,
            gray=gray,
            imageless=self.imageless,
            damage=damage,
            stray=self.stray,
            odd_label=self.odd_label,
        )


def _walked(url: str) -> Contents:
    """Index a local tar by its headers."""
    from webdataset.tariterators import group_by_keys

    rows, problems = _Rows(url), list[str]()
    try:
        with open(url, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            # webdataset groups the members here just as it later groups their contents
            members = _members(tar, stream, problems)
            for sample in group_by_keys(members, handler=lambda error: True):
                _add_member(rows, tar, sample)
    except TAR_ERRORS as error:
        problems.append(reason(error))
    return rows.contents(problems[0] if problems else "")


def _members(tar: tarfile.TarFile, stream: IO[bytes], problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the complete regular files of a tar; what ends it early is added to ``problems``."""
    size = os.fstat(stream.fileno()).st_size
    end = 0
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
        if member.offset_data + member.size > size:
            problems.append("it is cut short")
            return
        if member.isreg() and not _META.match(member.name):
            yield {"fname": member.name, "data": member, "__url__": ""}
    stream.seek(end)
    mark = stream.read(_BLOCK)
    if len(mark) < _BLOCK or any(mark):
        problems.append("a damaged header" if mark and any(mark) else "it is cut short")


def _add_member(rows: _Rows, tar: tarfile.TarFile, sample: dict[str, Any]) -> None:
    def content(member: tarfile.TarInfo) -> bytes:
        stream = tar.extractfile(member)
        assert stream is not None
        return stream.read()

    image = image_of(sample)
    if image is None:
        rows.miss(sample)
        return
    key = sample["__key__"]
    start = min(member.offset for name, member in sample.items() if not name.startswith("__"))
    label = content(sample["cls"]) if "cls" in sample else None
    if len(rows.grays) < _PROBED:
        rows.look(Sample(rows.url, key, content(image)))
    rows.add(key, label, start, image.offset_data, image.size)


def _streamed(url: str) -> Contents:
    """Index a tar that can only be read sequentially: remote or compressed."""
    rows, problems = _Rows(url), list[str]()
    for sample in read_samples(url, problems=problems):
        image = image_of(sample)
        if image is None:
            rows.miss(sample)
            continue
        key = sample["__key__"]
        if len(rows.grays) < _PROBED:
            rows.look(Sample(url, key, image))
        rows.add(key, sample.get("cls"), -1, -1, len(image))
    return rows.contents(problems[0] if problems else "")


# --- cache of the index ------------------------------------------------------------------------------


def _cache_file(url: str) -> Path | None:
    identity: list[Any] = [_FORMAT, url]
    if not is_remote(url):
        try:
            status = os.stat(url)
        except OSError:
            return None
        identity = [_FORMAT, os.path.abspath(url), status.st_size, status.st_mtime_ns]
    digest = hashlib.blake2b(repr(identity).encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return cache_folder() / "shards" / f"{digest}.npz"


def _remembered(url: str) -> Contents | None:
    file = _cache_file(url)
    if file is None:
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            rest = json.loads(str(stored["rest"]))
            columns = {name: stored[name] for name in _COLUMNS}
            return Contents(url=url, **columns, **rest)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _remember(contents: Contents) -> None:
    file = _cache_file(contents.url)
    # a failed connection may work next time
    if file is None or (contents.damage and is_remote(contents.url)):
        return
    rest = {
        field.name: getattr(contents, field.name)
        for field in dataclasses.fields(contents)
        if field.name not in ("url", *_COLUMNS)
    }
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    # if the cache is not writable, the tar is indexed again next time
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                columns = {name: getattr(contents, name) for name in _COLUMNS}
                np.savez(stream, rest=np.array(json.dumps(rest)), **columns)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


# --- images in memory --------------------------------------------------------------------------------
