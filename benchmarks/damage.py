"""Valid input of every kind that benchmarks/fuzz.py reads, and random damage to it."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 255, 2**15, 2**31, 2**63, 2**64, 10**30, -(10**30)]),
    st.integers(-10, 300),
    st.floats(),
)
TEXTS = st.one_of(
    st.sampled_from(["", "null", "~", "x" * 300, "\0", "a\nb", "../..", "é", "\ud800", "{", "[1, 2]", "1e3"]),
    st.text(max_size=12),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def damaged(sound: bytes) -> SearchStrategy[bytes]:
    """Bytes that differ from valid ones in a few places, mostly near the start."""
    place = st.one_of(st.integers(0, min(len(sound), 200)), st.integers(0, len(sound)))
    change = st.tuples(
        st.sampled_from(["overwrite", "insert", "remove", "end"]), place, st.binary(min_size=1, max_size=9)
    )

    def changed(changes: list[tuple[str, int, bytes]]) -> bytes:
        content = bytearray(sound)
        for kind, begin, value in changes:
            if kind == "overwrite":
                content[begin : begin + len(value)] = value
            elif kind == "insert":
                content[begin:begin] = value
            elif kind == "remove":
                del content[begin : begin + 7 * len(value)]
            else:
                del content[begin:]
        return bytes(content)

    return st.lists(change, min_size=1, max_size=5).map(changed)


def places(values: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in nested values, including the root."""
    yield here
    inner = (
        values.items() if isinstance(values, dict) else enumerate(values if isinstance(values, list) else ())
    )
    for key, value in inner:
        yield from places(value, (*here, key))


def altered(sound: Any) -> SearchStrategy[Any]:
    """Nested values that differ from valid ones in a few places: replaced, removed or extended."""
    change = st.tuples(
        st.sampled_from(list(places(sound))),
        st.sampled_from(["replace"] * 4 + ["remove", "add"]),
        VALUES,
        TEXTS,
    )

    def changed(changes: list[tuple[tuple[Any, ...], str, Any, str]]) -> Any:
        whole = [json.loads(json.dumps(sound))]
        for path, kind, value, name in changes:
            holder: Any = whole
            with contextlib.suppress(LookupError, TypeError):  # an earlier change removed the place
                for key in (0, *path)[:-1]:
                    holder = holder[key]
                last = (0, *path)[-1]
                if kind == "replace":
                    holder[last] = value
                elif kind == "add" and isinstance(holder[last], dict):
                    holder[last][name] = value
                elif path:
                    del holder[last]
        return whole[0]

    return st.lists(change, min_size=1, max_size=4).map(changed)


class Anywhere:
    """The location of an image that is not in a file."""

    def where(self, index: int) -> str:
        return "here"


def pictures(folder: Path, count: int) -> None:
    for index in range(count):
        Image.fromarray(np.full((8, 8), 20 * index, np.uint8)).save(folder / f"{index}.png")


def photograph() -> Image.Image:
    """A real photograph of 64 × 43 pixels."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg")).resize((64, 43))


def encoded(image: Image.Image) -> dict[str, bytes]:
    """Encode the image in every format, by name of the kind."""
    gray, palette = image.convert("L"), image.quantize(16)
    floats = Image.fromarray(np.asarray(gray, np.float32) / 255)
    wide = Image.fromarray(np.asarray(gray, np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [each.rotate(90) for each in (image, image)]}
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpeg": (image, "JPEG", {"exif": turned}),
        "jpeg progressive": (image, "JPEG", {"progressive": True}),
        "jpeg cmyk": (image.convert("CMYK"), "JPEG", {}),
        "png": (image, "PNG", {"exif": turned, "dpi": (72, 72)}),
        "png palette": (palette, "PNG", {"transparency": 3}),
        "png 16 bit": (wide, "PNG", {}),
        "png rgba": (image.convert("RGBA"), "PNG", {}),
        "webp": (image, "WEBP", {"exif": turned}),
        "webp lossless": (image.convert("RGBA"), "WEBP", {"lossless": True}),
        "webp animated": (image, "WEBP", frames),
        "gif": (palette, "GIF", {}),
        "gif animated": (image, "GIF", frames),
        "bmp": (image, "BMP", {}),
        "bmp palette": (palette, "BMP", {}),
        "bmp bits": (image.convert("1"), "BMP", {}),
        "ppm": (image, "PPM", {}),
        "jpeg 2000": (image, "JPEG2000", {}),
        "tiff": (image, "TIFF", {"exif": turned}),
        "tiff float": (floats, "TIFF", {}),
        **{
            f"tiff {each}": (image, "TIFF", {"compression": each})
            for each in ("tiff_lzw", "jpeg", "packbits")
        },
    }
    found = {}
    for name, (each, form, options) in kinds.items():
        content = io.BytesIO()
        each.save(content, form, **options)
        found[name] = content.getvalue()
    return found
