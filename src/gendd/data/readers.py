"""One reader a kind of set: what there is on disk, before anything is split or decoded."""

from __future__ import annotations

import glob
import gzip
import json
import math
import os
import pickle
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.images import Encoded, Files, Held
from gendd.data.split import stratified_split
from gendd.errors import UserError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_FASHION_CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
_FASHION_CLASSES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


@dataclass(frozen=True)
class Part:
    """The training or the test images of a set.

    Args:
        count: Number of images.
        labels: int64 (count,), or None.
        take: Gives the images at some indices (int64): uint8 (n, C, S, S), or encoded.
    """

    count: int
    labels: Tensor | None
    take: Callable[[Tensor], Tensor | Encoded]


@dataclass(frozen=True)
class Found:
    """A set as it was found.

    Args:
        train: Training images, labelled or not.
        test: Test images, labelled.
        class_names: One name a class.
    """

    train: Part
    test: Part
    class_names: list[str]


def _pixel_part(pixels: Tensor, labels: Tensor) -> Part:
    return Part(len(pixels), labels, lambda indices: pixels.index_select(0, indices))


def _given_path(config: DataConfig, what: str) -> str:
    if config.path is None:
        raise UserError(f"data.path: expected {what} for data.name {config.name!r}, got none; set data.path.")
    return config.path


def _required_path(config: DataConfig, what: str) -> Path:
    return _existing(_given_path(config, what), "data.path", what)


def _existing(value: str, key: str, what: str) -> Path:
    path = Path(value).expanduser()
    if not path.exists():
        raise UserError(f"{key}: expected {what}, got {value!r}, which does not exist; correct the path.")
    return path


# --- digits -----------------------------------------------------------------------------------------


def read_digits(config: DataConfig) -> Found:
    """The 1,797 8×8 digits that come with scikit-learn; a fixed stratified fifth is the test set."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    values = torch.from_numpy(bunch.images)
    pixels = (values * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    train, test = stratified_split(labels, 0.2, torch.Generator().manual_seed(0))
    return Found(
        _pixel_part(pixels[train], labels[train]),
        _pixel_part(pixels[test], labels[test]),
        [str(digit) for digit in range(10)],
    )


# --- Fashion-MNIST ----------------------------------------------------------------------------------


def read_fashion_mnist(config: DataConfig) -> Found:
    """The four IDX files, gzipped or not, below ``data.path`` or from Debian's package."""
    if config.path is None:
        roots = [_DEBIAN_FASHION_MNIST]
    else:
        path = _required_path(config, "a directory with the Fashion-MNIST IDX files")
        roots = [path, path / "FashionMNIST" / "raw", path / "raw"]

    def part(prefix: str) -> Part:
        images = read_idx(_idx_file(roots, f"{prefix}-images-idx3-ubyte", config.path), 3)
        labels = read_idx(_idx_file(roots, f"{prefix}-labels-idx1-ubyte", config.path), 1).long()
        if len(images) != len(labels) or images.shape[1] != images.shape[2]:
            raise UserError(
                f"Expected as many labels as square images in {prefix}-*, got {len(labels)} labels and "
                f"images of shape {tuple(images.shape)}; download the files again."
            )
        if len(labels) == 0 or labels.max() >= len(_FASHION_CLASSES):
            raise UserError(f"Expected labels 0 to 9 in {prefix}-labels-idx1-ubyte; download it again.")
        return _pixel_part(images[:, None], labels)

    return Found(part("train"), part("t10k"), list(_FASHION_CLASSES))


def _idx_file(roots: Sequence[Path], name: str, given: str | None) -> Path:
    for root in roots:
        for file in (root / name, root / f"{name}.gz"):
            if file.is_file():
                return file
    if given is None:
        raise UserError(
            "data.path: expected Fashion-MNIST in Debian's place, found none; run 'apt install "
            "dataset-fashion-mnist', or set data.path to a directory with the four IDX files "
            "(https://github.com/zalandoresearch/fashion-mnist)."
        )
    raise UserError(
        f"data.path: expected {name}[.gz] in {given!r} or its FashionMNIST/raw, found none; download "
        "the four IDX files from https://github.com/zalandoresearch/fashion-mnist."
    )


def read_idx(file: Path, ndim: int) -> Tensor:
    """A uint8 IDX file (yann.lecun.com/exdb/mnist), gzipped or not.

    Raises:
        UserError: unreadable, or not ``ndim``-dimensional uint8 IDX of the stated length.
    """
    header = 4 + 4 * ndim
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            content = stream.read()
    except (OSError, EOFError) as error:
        raise UserError(
            f"Expected a readable IDX file, got '{file}' ({error}); download it again."
        ) from error
    if len(content) < header or content[:4] != bytes([0, 0, 8, ndim]):
        raise UserError(f"Expected a {ndim}-dimensional uint8 IDX file, got '{file}'; download it again.")
    shape = struct.unpack(f">{ndim}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise UserError(
            f"Expected {math.prod(shape)} values in '{file}', got {len(content) - header}; download it again."
        )
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)


# --- CIFAR ------------------------------------------------------------------------------------------


def read_cifar(config: DataConfig) -> Found:
    """CIFAR-10 or -100, the python version, unpacked below ``data.path``."""
    from torchvision import datasets

    kind: Any = datasets.CIFAR10 if config.name == "cifar10" else datasets.CIFAR100
    path = _required_path(config, f"the directory that holds {kind.base_folder}/")
    root = path.parent if path.name == kind.base_folder else path

    def part(train: bool) -> tuple[Part, list[str]]:
        try:
            with warnings.catch_warnings():
                # The published pickles are older than NumPy's present dtype arguments.
                warnings.filterwarnings("ignore", message=r"dtype\(\): align", category=Warning)
                found = kind(str(root), train=train, download=False)
        except (RuntimeError, OSError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise UserError(
                f"data.path: expected a complete {kind.base_folder}/ in '{root}', found none; download "
                f"{kind.url}, unpack it there and give its parent as data.path."
            ) from error
        pixels = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
        return _pixel_part(pixels, torch.tensor(found.targets)), [str(name) for name in found.classes]

    train, names = part(True)
    return Found(train, part(False)[0], names)


# --- folder -----------------------------------------------------------------------------------------


def read_folder(config: DataConfig) -> Found:
    """``train/CLASS/*.jpg`` below ``data.path``; test images likewise, in test/, val/ or ``test_path``.

    Training images without class folders, and any at all where training may not see the labels and
    the folders are not the test set's classes, are unlabelled.
    """
    what = "a directory with train/ and test/ or val/"
    root = _required_path(config, what)
    train_dir = root / "train"
    if not train_dir.is_dir():
        raise UserError(f"data.path: expected {what}, got '{root}' without train/; add it.")
    if config.test_path is not None:
        test_dir = _existing(config.test_path, "data.test_path", "a directory of class folders")
    else:
        found = [root / name for name in ("test", "val") if (root / name).is_dir()]
        if not found:
            raise UserError(
                f"data.path: expected test/ or val/ in '{root}', found neither; "
                "add one or set data.test_path."
            )
        test_dir = found[0]
    names = _class_folders(test_dir)
    if not names:
        raise UserError(
            f"Expected one folder a class in '{test_dir}', found none; evaluation needs labelled test images."
        )
    test = _file_part(*_labelled_files(test_dir, names))
    train_names = _class_folders(train_dir)
    if not train_names or (train_names != names and not config.labels):
        files = _image_files(train_dir)
        if not files:
            raise UserError(f"Expected images in '{train_dir}', found none; add some.")
        return Found(_file_part(files, None), test, names)
    if train_names != names:
        problems = [
            f"only in {folder.name}/: " + ", ".join(sorted(only)[:5]) + (", …" if len(only) > 5 else "")
            for folder, only in (
                (train_dir, set(train_names) - set(names)),
                (test_dir, set(names) - set(train_names)),
            )
            if only
        ]
        raise UserError(
            f"Expected the same class folders in '{train_dir}' and '{test_dir}', got "
            f"{'; '.join(problems)}; make them equal, or set data.labels to false."
        )
    return Found(_file_part(*_labelled_files(train_dir, names)), test, names)


def _class_folders(directory: Path) -> list[str]:
    try:
        return sorted(
            entry.name for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError as error:
        raise UserError(
            f"Expected a readable directory, got '{directory}' ({error.strerror}); correct the path."
        ) from error


def _image_files(directory: Path) -> list[str]:
    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(directory, followlinks=True)
        for name in names
        if os.path.splitext(name)[1].lower() in _SUFFIXES and not name.startswith(".")
    )


def _labelled_files(directory: Path, names: Sequence[str]) -> tuple[list[str], Tensor]:
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        inside = _image_files(directory / name)
        if not inside:
            raise UserError(
                f"Expected images in '{directory / name}', found none; add some or remove the folder."
            )
        files += inside
        labels += [label] * len(inside)
    return files, torch.tensor(labels)


def _file_part(files: list[str], labels: Tensor | None) -> Part:
    return Part(len(files), labels, lambda indices: Files([files[index] for index in indices.tolist()]))


# --- parquet ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """Some rows of parquet files: file and row of each, int64 (n, 2)."""

    files: Sequence[str]
    origin: Tensor

    def where(self, index: int) -> str:
        file, row = self.origin[index].tolist()
        return f"row {row} of {self.files[file]!r}"


@dataclass(frozen=True)
class _Table:
    """Parquet files of one split: their columns, row counts and labels, images not read yet."""

    files: list[str]
    counts: list[int]
    image: str
    labels: Tensor | None
    names: list[str] | None

    @property
    def part(self) -> Part:
        return Part(sum(self.counts), self.labels, self.take)

    def take(self, indices: Tensor) -> Held:
        """The encoded images of rows ``indices`` (ascending), read a row group at a time."""
        pa, _ = _arrow()
        chunks: list[Tensor] = []
        lengths: list[Tensor] = []
        origin: list[Tensor] = []
        first = 0
        for number, file in enumerate(self.files):
            table = _open(file)
            begin = first
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                inside = indices[(indices >= begin) & (indices < begin + count)]
                if len(inside) > 0:
                    try:
                        column = table.read_row_group(group, columns=[self.image])[self.image]
                    except (pa.ArrowException, OSError) as error:
                        raise _unreadable(file, error) from error
                    chosen = column.take(pa.array((inside - begin).numpy()))
                    content, sizes = _join(chosen, file, inside - first)
                    chunks.append(content)
                    lengths.append(sizes)
                    origin.append(torch.stack([torch.full_like(inside, number), inside - first], 1))
                begin += count
            first = begin
        rows = _Rows(self.files, torch.cat(origin))
        return Held(torch.cat(chunks), torch.cat(lengths).cumsum(0), rows)


def _join(column: Any, file: str, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The images of an Arrow column end to end (uint8) and the length of each (int64)."""
    images: list[bytes] = []
    for row, value in zip(rows.tolist(), column.to_pylist(), strict=True):
        content = value.get("bytes") if isinstance(value, dict) else value
        if not content:
            raise UserError(
                f"Expected image bytes in row {row} of {file!r}, got none; embed the image or drop it."
            )
        images.append(content)
    joined = bytearray().join(images)
    return torch.frombuffer(joined, dtype=torch.uint8), torch.tensor([len(image) for image in images])


def read_parquet(config: DataConfig) -> Found:
    """Hugging Face's layout: columns image (or img) with the encoded bytes, and label.

    ``data.path`` and ``data.test_path`` are a file, a glob or a directory of parquet files each. In a
    directory the names of files or folders (train*, test*, val*) tell the splits apart.
    """
    path = _given_path(config, "a parquet file, a glob or a directory")
    train_files = _parquet_files(path, "data.path")
    test_files: list[str] = []
    root = Path(path).expanduser()
    if root.is_dir():
        by_split = {
            split: [file for file in train_files if _belongs(Path(file).relative_to(root), split)]
            for split in ("train", "test", "val")
        }
        train_files = by_split["train"] or train_files
        test_files = by_split["train"] and (by_split["test"] or by_split["val"])
    if config.test_path is not None:
        test_files = _parquet_files(config.test_path, "data.test_path")
    if not test_files:
        raise UserError(
            f"data.test_path: expected the parquet file(s) of the test images beside data.path {path!r}, "
            "got none; set data.test_path."
        )
    train, test = _table(train_files), _table(test_files)
    if test.labels is None:
        raise UserError(
            f"Expected a label column in {test_files[0]!r}, found none; evaluation needs labelled "
            "test images."
        )
    largest = max(int(labels.max()) for labels in (train.labels, test.labels) if labels is not None)
    names = test.names or train.names or [str(label) for label in range(largest + 1)]
    if largest >= len(names):
        raise UserError(
            f"Expected labels below {len(names)} (the class names of the schema) in the files of data.path "
            f"and data.test_path, got {largest}; correct the labels or the schema."
        )
    return Found(train.part, test.part, names)


def _belongs(file: Path, split: str) -> bool:
    return any(part.startswith(split) for part in file.parts)


def _parquet_files(value: str, key: str) -> list[str]:
    path = Path(value).expanduser()
    if path.is_dir():
        files = sorted(str(file) for file in path.rglob("*.parquet") if file.is_file())
    elif path.exists():
        files = [str(path)]
    else:
        files = sorted(glob.glob(str(path), recursive=True))
    if not files:
        raise UserError(
            f"{key}: expected a parquet file, a glob or a directory of them, got {value!r}, which matches "
            "none; correct the path."
        )
    return files


def _unreadable(file: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"Expected a readable parquet file, got {file!r} ({reason}); download it again.")


def _arrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("parquet sets need pyarrow: pip install 'gendd[parquet]'") from error
    return pa, pq


def _open(file: str) -> Any:
    pa, pq = _arrow()
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _column(present: Sequence[str], choices: Sequence[str]) -> str | None:
    return next((name for name in choices if name in present), None)


def _table(files: list[str]) -> _Table:
    """Row counts, labels and class names of the files of one split. Reads no images."""
    pa, _ = _arrow()
    counts: list[int] = []
    labels: list[Tensor] = []
    image: str | None = None
    label: str | None = None
    names: list[str] | None = None
    for number, file in enumerate(files):
        table = _open(file)
        schema = table.schema_arrow
        if number == 0:
            image = _column(schema.names, ("image", "img"))
            label = _column(schema.names, ("label", "labels", "fine_label"))
            names = _class_names(schema.metadata, label)
        if image is None or any(name is not None and name not in schema.names for name in (image, label)):
            wanted = " and ".join(name for name in (image or "image (or img)", label) if name)
            raise UserError(
                f"Expected the column(s) {wanted} in {file!r}, got {', '.join(schema.names)}; rename them."
            )
        counts.append(table.metadata.num_rows)
        if label is not None:
            try:
                column = table.read(columns=[label])[label]
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(file, error) from error
            if not pa.types.is_integer(column.type) or column.null_count:
                raise UserError(
                    f"Expected an integer in every row of column {label} of {file!r}, got {column.type} with "
                    f"{column.null_count} empty rows; number the classes from 0."
                )
            labels.append(torch.tensor(column.to_numpy()).long())
    if sum(counts) == 0:
        raise UserError(f"Expected images in {files[0]!r}, found no rows; give another file.")
    joined = torch.cat(labels) if labels else None
    if joined is not None and joined.min() < 0:
        raise UserError(
            f"Expected labels from 0 in column {label} of {files[0]!r}, got {int(joined.min())}; "
            "give a split that has its labels."
        )
    return _Table(files, counts, str(image), joined, names)


def _class_names(metadata: dict[bytes, bytes] | None, label: str | None) -> list[str] | None:
    """Class names in the schema metadata that Hugging Face's datasets writes, if they are there."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


# --- a labelled set beside another kind -------------------------------------------------------------


def read_labelled(value: str, key: str) -> tuple[Part, list[str] | None]:
    """Labelled images at a path: parquet (a file or a directory of them) or a directory of class folders.

    Args:
        value: The path.
        key: Its config key, for errors.

    Returns:
        The images, and the names of their classes where they have any.
    """
    path = _existing(value, key, "a directory of class folders or parquet")
    if path.is_file() or next(path.rglob("*.parquet"), None) is not None:
        files = _parquet_files(value, key)
        table = _table(files)
        if table.labels is None:
            raise UserError(
                f"Expected a label column in {files[0]!r}, found none; evaluation needs labelled test images."
            )
        return table.part, table.names
    names = _class_folders(path)
    if not names:
        raise UserError(
            f"Expected one folder a class in '{path}', found none; evaluation needs labelled test images."
        )
    return _file_part(*_labelled_files(path, names)), names
