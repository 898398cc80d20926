"""Images and data sets that can't be trained on."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mistakes.case import Case, Made, Place

_FORMATS = {
    "png": "PNG",
    "jpg": "JPEG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "tif": "TIFF",
    "ppm": "PPM",
}
_FORMATS["jp2"] = "JPEG2000"


def picture(form: str = "PNG", side: int = 16) -> bytes:
    content = io.BytesIO()
    Image.effect_noise((side, side), 50).convert("RGB").save(content, form)
    return content.getvalue()


def _bomb() -> bytes:
    """A small PNG of 60,000 × 60,000 pixels, as its header says."""
    whole = bytearray(picture())
    whole[16:24] = struct.pack(">II", 60_000, 60_000)
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    return bytes(whole)


# contents that are not images, by file name
_NONE: dict[str, Callable[[], bytes]] = {
    **{f"cut.{suffix}": lambda form=form: picture(form)[:40] for suffix, form in _FORMATS.items()},  # type: ignore[misc]
    **{f"text.{suffix}": lambda: b"no image at all" for suffix in _FORMATS},
    "empty.png": lambda: b"",
    "of_zeros.png": lambda: bytes(2000),
    "bomb.png": _bomb,
    "svg.png": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "script.eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "icon.ico": lambda: picture("ICO"),
    "pickle.jpg": lambda: pickle.dumps([1, 2]),
    "dds.png": lambda: b"DDS " + bytes(200),
    "avif.avif": lambda: b"\0\0\0\x1cftypavif" + bytes(100),
    "header.bmp": lambda: b"BM" + b"\xff" * 60,
    "header.tif": lambda: b"II*\0" + b"\xff" * 60,
    "header.gif": lambda: b"GIF89a" + b"\xff" * 60,
}


def fill(folder: Path, content: bytes | None = None, count: int = 6, suffix: str = "png") -> None:
    """Fill a folder with images, or with something else."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.{suffix}").write_bytes(picture() if content is None else content)


def _folder(build: Callable[[Path], object], *words: str) -> Callable[[Place], Made]:
    def make(place: Place) -> Made:
        build(place.folder)
        return place.distill("--data=folder", f"--data.path={place.folder}", *words)

    return make


def _classes(root: Path, *names: str, part: str = "train", **how: Any) -> None:
    for name in names:
        fill(root / part / name, **how)


def _both(root: Path, train: tuple[str, ...], test: tuple[str, ...]) -> None:
    _classes(root, *train)
    _classes(root, *test, part="test")


def _loop(root: Path) -> None:
    _classes(root, "a")
    (root / "train" / "b").symlink_to(root)


def _fifos(root: Path) -> None:
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (root / name).mkdir(parents=True)
        os.mkfifo(root / name / "0.png")


def _hidden(root: Path) -> None:
    _classes(root, ".a", ".b")
    _classes(root, ".a", ".b", part="test")


_FOLDERS: dict[str, Callable[[Place], Made]] = {
    "nothing in it": _folder(lambda root: None),
    "train/ empty": _folder(lambda root: (root / "train").mkdir()),
    "no test/ and none held out": _folder(lambda root: _classes(root, "a", "b"), "--data.test=0"),
    "no train/": _folder(lambda root: _classes(root, "a", "b", part="test")),
    "one class": _folder(lambda root: _both(root, ("a",), ("a",))),
    "an empty class": _folder(lambda root: (_both(root, ("a", "b"), ("a", "b")), (root / "train/c").mkdir())),
    "other classes tested": _folder(lambda root: _both(root, ("a", "b"), ("a", "c"))),
    "fewer classes tested": _folder(lambda root: _both(root, ("a", "b", "c"), ("a", "b"))),
    "hidden classes": _folder(_hidden),
    "one image": _folder(lambda root: fill(root, count=1)),
    "unlabelled without a teacher": _folder(lambda root: fill(root)),
    "unlabelled for labels": _folder(lambda root: fill(root), "--method=supervised", "--baselines=[]"),
    "files of other suffixes": _folder(lambda root: fill(root / "train/a", suffix="txt")),
    "a loop of links": _folder(_loop, "--data.test=0"),
    "FIFOs alone": _folder(_fifos),
    "one image a class": _folder(
        lambda root: [_classes(root, "a", "b", part=part, count=1) for part in ("train", "test")],
        "--data.validation=0.5",
    ),
    "test/ inside train/": _folder(
        lambda root: _classes(root, "a", "b"), "--data.test_path=/", "--data.classes=/dev/null"
    ),
    "all corrupt but one": _folder(
        lambda root: (_both(root, ("a", "b"), ("a", "b")), _classes(root, "a", content=b"x", count=5))
    ),
    "corrupt with none allowed": _folder(
        lambda root: (_both(root, ("a", "b"), ("a", "b")), fill(root / "train/a", b"x", count=1)),
        "--data.max_corrupt=0",
    ),
    "test images corrupt": _folder(
        lambda root: (_classes(root, "a", "b"), _classes(root, "a", "b", part="test", content=b"x"))
    ),
    "too few names": _folder(
        lambda root: (_both(root, ("a", "b"), ("a", "b")), (root / "names").write_text("a")),
        "--data.classes=x",
    ),
}


def _list(
    train: str | bytes, *words: str, test: str | bytes = "0.png 0\n1.png 1\n"
) -> Callable[[Place], Made]:
    def make(place: Place) -> Made:
        fill(place.folder, count=3)
        paths = place.write("train.txt", train), place.write("test.txt", test)
        return place.distill("--data=list", f"--data.path={paths[0]}", f"--data.test_path={paths[1]}", *words)

    return make


_SOUND = "0.png 0\n1.png 1\n2.png 1\n"
_LISTS = {
    "empty": _list(""),
    "blank lines": _list("\n \n\t\n"),
    "a missing file": _list("0.png 0\nnone.png 1\n"),
    "a label below 0": _list("0.png 0\n1.png -1\n"),
    "a label of words": _list("0.png cat\n1.png dog\n"),
    "a label of 1.5": _list("0.png 0\n1.png 1.5\n"),
    "a label of 10^9": _list("0.png 0\n1.png 1000000000\n"),
    "a label of 999999": _list("0.png 0\n1.png 999999\n", test="0.png 0\n1.png 1000000\n"),
    "labels here and there": _list("0.png 0\n1.png\n"),
    "one class": _list("0.png 0\n1.png 0\n"),
    "a folder": _list(". 0\n. 1\n"),
    "a device": _list("/dev/zero 0\n/dev/null 1\n"),
    "bytes": _list(bytes(range(256))),
    "NUL": _list("a\0b.png 0\n"),
    "commas": _list("0.png,0\n1.png,1\n"),
    "JSON": _list('[{"path": "0.png", "label": 0}]'),
    "a long path": _list("x" * 5000 + ".png 0\n"),
    "tested beyond the classes": _list(_SOUND, test="0.png 0\n1.png 9\n"),
    "an empty test list": _list(_SOUND, test=""),
    "names that are too few": _list(_SOUND, "--data.classes=/dev/null"),
    "UTF-16": _list("0.png 0\n1.png 1\n".encode("utf-16")),
}


def _parquet(columns: dict[str, Any] | bytes, test: dict[str, Any] | None = None) -> Callable[[Place], Made]:
    def make(place: Place) -> Made:
        for name, content in (("train", columns), ("test", columns if test is None else test)):
            file = place.folder / f"{name}.parquet"
            if isinstance(content, bytes):
                file.write_bytes(content)
            else:
                pq.write_table(pa.table(content), file)
        return place.distill("--data=parquet", f"--data.path={place.folder}")

    return make


def _images(count: int = 6) -> list[dict[str, Any]]:
    return [{"bytes": picture(), "path": None}] * count


_PARQUETS = {
    "no image": _parquet({"label": [0, 1]}),
    "no rows": _parquet({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}),
    "images of numbers": _parquet({"image": [1, 2] * 6, "label": [0, 1] * 6}),
    "images of text": _parquet({"image": ["a", "b"] * 6, "label": [0, 1] * 6}),
    "images by path": _parquet({"image": [{"bytes": None, "path": "a.png"}] * 6, "label": [0, 1] * 3}),
    "images of lists": _parquet({"image": [[1, 2]] * 6, "label": [0, 1] * 3}),
    "no bytes": _parquet({"image": [{"bytes": None, "path": None}] * 6, "label": [0, 1] * 3}),
    "corrupt images": _parquet({"image": [{"bytes": b"x", "path": None}] * 6, "label": [0, 1] * 3}),
    "labels of text": _parquet({"image": _images(), "label": ["a", "b"] * 3}),
    "labels of fractions": _parquet({"image": _images(), "label": [0.5, 1.5] * 3}),
    "labels missing": _parquet({"image": _images(), "label": [0, None] * 3}),
    "labels below 0": _parquet({"image": _images(), "label": [-1, 0] * 3}),
    "labels of 10^12": _parquet({"image": _images(), "label": [10**12, 0] * 3}),
    "one class": _parquet({"image": _images(), "label": [0] * 6}),
    "labels in the test alone": _parquet(
        {"image": _images(2), "label": [0, 1]}, {"img": _images(2), "label": [0, 5]}
    ),
    "cut": _parquet(b"PAR1" + bytes(50)),
    "empty": _parquet(b""),
    "text": _parquet(b"image,label\n"),
}


def _tar(
    *members: tuple[str, bytes], cut: int | None = None, suffix: str = ".tar"
) -> Callable[[Place], Made]:
    def make(place: Place) -> Made:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz" if suffix.endswith("gz") else "w") as tar:
            for name, inside in members:
                info = tarfile.TarInfo(name)
                info.size = len(inside)
                tar.addfile(info, io.BytesIO(inside))
        return _shards(place.write(f"train{suffix}", content.getvalue()[:cut]), place)

    return make


def _shards(path: str, place: Place) -> Made:
    return place.distill(
        "--data=webdataset", f"--data.path={path}", f"--data.test_path={place.images / 'test'}"
    )


def _huge(place: Place) -> Made:
    header = tarfile.TarInfo("0.png")
    header.size = 2**60
    return _shards(place.write("train.tar", header.tobuf(tarfile.GNU_FORMAT) + bytes(2000)), place)


def _raw(content: bytes, name: str = "train.tar") -> Callable[[Place], Made]:
    return lambda place: _shards(place.write(name, content), place)


_SAMPLE = (("0.png", picture()), ("0.cls", b"0"), ("1.png", picture()), ("1.cls", b"1"))
_TARS = {
    "empty": _tar(),
    "no bytes": _raw(b""),
    "text": _raw(b"no tar"),
    "zeros": _raw(bytes(10240)),
    "gzip of text": _raw(gzip.compress(b"no tar"), "train.tar.gz"),
    "cut": _tar(*_SAMPLE, cut=700),
    "cut to a header": _tar(*_SAMPLE, cut=300),
    "cut gzip": _tar(*_SAMPLE, cut=200, suffix=".tar.gz"),
    "2^60 bytes": _huge,
    "no labels": _tar(*_SAMPLE[::2]),
    "one label missing": _tar(*_SAMPLE[:3]),
    "no images": _tar(*_SAMPLE[1::2]),
    "labels of text": _tar(("0.png", picture()), ("0.cls", b"cat")),
    "labels below 0": _tar(("0.png", picture()), ("0.cls", b"-1")),
    "labels of 10^30": _tar(("0.png", picture()), ("0.cls", b"1" + b"0" * 30)),
    "labels of 999999": _tar(*_SAMPLE, ("2.png", picture()), ("2.cls", b"999999")),
    "empty labels": _tar(("0.png", picture()), ("0.cls", b"")),
    "corrupt images": _tar(*((f"{n}.{s}", c) for n in range(9) for s, c in (("png", b"x"), ("cls", b"1")))),
    "text alone": _tar(("a.txt", b"hello")),
    "an unclosed brace": lambda place: _shards(f"{place.folder}/{{0..2", place),
    "a brace of words": lambda place: _shards(f"{place.folder}/{{a,b}}.tar", place),
    "a variable that is not set": lambda place: _shards("${NOTHING_OF_THIS_NAME}/0.tar", place),
    "a URL of nothing": lambda place: _shards("file:///nothing/0.tar", place),
    "a command": lambda place: _shards("pipe:cat /dev/zero", place),
    "a folder called .tar": lambda place: (
        (place.folder / "a.tar").mkdir(),
        _shards(f"{place.folder}/a.tar", place),
    )[1],
    "no test set": lambda place: _tar(*_SAMPLE)(place)[:-1],  # type: ignore[index]
}  # fmt: skip


def _idx(content: bytes, name: str = "train-images-idx3-ubyte") -> Callable[[Place], Made]:
    def make(place: Place) -> Made:
        place.write(name, content)
        return place.distill("--data=fashion-mnist", f"--data.path={place.folder}")

    return make


def _cifar(content: bytes) -> Callable[[Place], Made]:
    def make(place: Place) -> Made:
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
            place.write(f"cifar-10-batches-py/{name}", content)
        return place.distill("--data=cifar10", f"--data.path={place.folder}")

    return make


_OTHERS = {
    "IDX of text": _idx(b"no IDX"),
    "IDX of another kind": _idx(bytes([0, 0, 13, 3]) + bytes(12)),
    "IDX cut": _idx(bytes([0, 0, 8, 3]) + struct.pack(">III", 100, 28, 28) + bytes(100)),
    "IDX of 2^90 values": _idx(bytes([0, 0, 8, 3]) + struct.pack(">III", 2**30, 2**30, 2**30)),
    "IDX gzip cut": _idx(gzip.compress(bytes(5000))[:20], "train-images-idx3-ubyte.gz"),
    "CIFAR of text": _cifar(b"no pickle"),
    "CIFAR of another pickle": _cifar(pickle.dumps([1, 2])),
    "CIFAR empty": _cifar(b""),
    "a folder of datasets without a state": lambda place: (
        place.write("dataset_info.json", "{}"),
        place.distill("--data=hf", f"--data.path={place.folder}"),
    )[1],
    "a folder of datasets with bad JSON": lambda place: (
        place.write("dataset_dict.json", "{"),
        place.distill("--data=hf", f"--data.path={place.folder}"),
    )[1],
}


def cases() -> Iterator[Case]:
    for number, (name, content) in enumerate(_NONE.items()):

        def predicted(place: Place, name: str = name, content: Callable[[], bytes] = content) -> Made:
            return ["predict", str(place.run), place.write(name, content())]

        def trained(place: Place, name: str = name, content: Callable[[], bytes] = content) -> Made:
            _both(place.folder, ("a", "b"), ("a", "b"))
            for index in range(3):
                place.write(f"train/a/{index}{name}", content())
            return place.distill("--data=folder", f"--data.path={place.folder}", "--data.max_corrupt=0")

        yield Case("images", f"predict {name}", predicted, quick=number % 5 == 0)
        if name not in ("script.eps", "icon.ico"):
            yield Case("images", f"train {name}", trained)
    for kind, table in (
        ("folders", _FOLDERS),
        ("lists", _LISTS),
        ("parquet", _PARQUETS),
        ("tars", _TARS),
        ("other sets", _OTHERS),
    ):
        for name, make in table.items():
            yield Case(kind, name, make)
