from __future__ import annotations

import io
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gendd.data import decoding, variation
from gendd.data.decoding import decode, frame
from gendd.data.encoded import Files, probe
from gendd.data.images import ImageSet
from gendd.data.variation import Variation
from gendd.errors import UserError


def _png(array: np.ndarray, mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, "PNG")
    return stream.getvalue()


def test_decode_keeps_pixels_and_channel_order() -> None:
    array = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    image = decode(_png(array), "x", 3)
    assert image.shape == (3, 2, 3) and image.dtype == torch.uint8
    assert image.tolist() == array.transpose(2, 0, 1).tolist()


def test_decode_gray_as_gray_and_as_colour() -> None:
    array = np.array([[0, 100], [200, 255]], dtype=np.uint8)
    assert decode(_png(array), "x", 1).tolist() == [array.tolist()]
    assert decode(_png(array), "x", 3).tolist() == [array.tolist()] * 3


def test_decode_scales_16_bit_gray() -> None:
    array = np.array([[0, 257], [25700, 65535]], dtype=np.uint16)
    assert decode(_png(array), "x", 1).tolist() == [[[0, 1], [100, 255]]]
    assert decode(_png(array), "x", 3).shape == (3, 2, 2)


def test_decode_palette_with_transparency() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=bytes([0, 128]))
    assert decode(stream.getvalue(), "x", 3)[:, 0, 0].tolist() == [10, 20, 30]


def photograph(height: int, width: int, form: str = "JPEG") -> bytes:
    """A smooth image with some grain."""
    noise = np.random.default_rng(0).normal(128, 60, (height // 40, width // 40, 3))
    smooth = Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    stream = io.BytesIO()
    smooth.save(stream, form, quality=95)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("least", "side"),
    [(None, 480), (481, 480), (480, 480), (241, 480), (240, 240), (121, 240), (61, 120), (1, 60)],
)
def test_a_jpeg_is_decoded_no_larger_than_it_has_to_be(least: int | None, side: int) -> None:
    data = photograph(480, 640)
    assert decode(data, "x", 3, least).shape == (3, side, side * 640 // 480)
    assert decode(data, "x", 1, least).shape == (1, side, side * 640 // 480)


def test_other_formats_are_decoded_whole() -> None:
    assert decode(photograph(480, 640, "PNG"), "x", 3, 60).shape == (3, 480, 640)


@pytest.mark.parametrize("framing", [1.0, 0.875])
@pytest.mark.parametrize("turned", [False, True])
def test_a_large_jpeg_makes_the_same_image(framing: float, turned: bool, tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    with Image.open(io.BytesIO(photograph(960, 1280))) as image:
        exif = image.getexif()
        exif[0x0112] = 6 if turned else 1
        image.save(path, exif=exif, quality=95)
    size = 48
    found = ImageSet(Files([str(path)]), None, 3, size, framing)
    whole = decode(path.read_bytes(), "x", 3)
    assert whole.shape == ((3, 1280, 960) if turned else (3, 960, 1280))
    assert min(found.original(0, decoding.least_to_frame(size, framing)).shape[1:]) in (120, 240)
    expected = frame(whole, size, framing).float()
    for images in (found.images([0]), found.loaded("loading").images([0])):
        deviation = (images[0].float() - expected).abs()
        assert deviation.mean() < 1 and deviation.max() < 12


@pytest.mark.parametrize(("area", "side"), [(0.25, 120), (0.01, 480), (0.002, 960)])
def test_a_crop_of_a_large_jpeg_has_the_pixels_it_becomes(
    area: float, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.jpg"
    path.write_bytes(photograph(960, 1280))
    given: list[tuple[int, ...]] = []

    def whole(*size: Any) -> tuple[int, ...]:
        given.append(size[:2])
        return 0, 0, *size[:2]

    monkeypatch.setattr(variation, "draw_box", whole)
    Variation("resized-crop", (area, 1.0), 0, 0).streamed(ImageSet(Files([str(path)]), None, 3, 32), 0, 0)
    assert given == [(side, side * 4 // 3)]
    # so that the smallest crop has enough pixels
    assert side * area**0.5 >= 32


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_a_part_is_what_the_whole_has_there(mode: str, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    if mode == "I;16":
        data = _png(values[..., 0].astype(np.uint16) * 200)
    else:
        data = _png(values[..., 0]) if mode == "L" else _png(values, mode)
    asked: list[tuple[int, int]] = []

    def cut(height: int, width: int) -> tuple[int, int, int, int]:
        asked.append((height, width))
        return 3, 5, 7, 11

    whole = decode(data, "x", channels)
    assert torch.equal(decode(data, "x", channels, cut=cut), whole[:, 3:10, 5:16])
    assert asked == [(20, 30)]


def test_a_part_is_that_of_the_upright_image() -> None:
    stream, tags = io.BytesIO(), Image.Exif()
    tags[0x0112] = 6
    Image.open(io.BytesIO(photograph(80, 120))).save(stream, "JPEG", exif=tags)
    whole = decode(stream.getvalue(), "x", 3)
    assert whole.shape == (3, 120, 80)
    part = decode(stream.getvalue(), "x", 3, cut=lambda *size: (1, 2, 30, 20))
    assert torch.equal(part, whole[:, 1:31, 2:22])


@pytest.mark.parametrize("cut", [0, 10, 60])
def test_decode_of_a_damaged_image_names_it(cut: int) -> None:
    data = _png(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    with pytest.raises(UserError, match=r"cat\.png") as caught:
        decode(data[:cut], "'cat.png'", 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("shape", [(3, 40, 60), (1, 61, 33), (3, 1500, 20), (3, 33, 32), (2, 3, 17, 17)])
def test_frames_are_torchvisions(
    shape: tuple[int, ...], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.transforms.v2 import functional as transforms

    if not native:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    decoding._resizes_bytes.cache_clear()
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    if len(shape) == 4:
        assert torch.equal(
            decoding.resize_pixels(pixels, 24), transforms.resize(pixels, [24, 24], antialias=True)
        )
    else:
        short = 28 if min(shape[1:]) >= 28 else 24
        middle = transforms.center_crop(pixels, [min(side, 8 * min(shape[1:])) for side in shape[1:]])
        expected = transforms.center_crop(transforms.resize(middle, [short], antialias=True), [24, 24])
        assert torch.equal(decoding.frame(pixels, 24, 24 / 28), expected)
    decoding._resizes_bytes.cache_clear()


def test_frame_takes_the_centre_of_the_resized_image() -> None:
    image = torch.zeros((1, 4, 8), dtype=torch.uint8)
    image[:, :, 2:6] = 200
    assert frame(image, 4).tolist() == [[[200] * 4] * 4]
    assert frame(image[:, :, :4], 4) is not image
    # 0.5 of an 8 x 8 image resized to its own size is its middle 4 x 4.
    square = torch.arange(64, dtype=torch.uint8).view(1, 8, 8)
    assert frame(square, 4, framing=0.5).tolist() == square[:, 2:6, 2:6].tolist()
    # Too small to lose its borders: 6 x 6 where 0.4 of the side would need 15.
    small = torch.arange(36, dtype=torch.uint8).view(1, 6, 6)
    doubled = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert abs(int(frame(doubled, 6, framing=0.4)[0, 0, 0]) - int(small[0, 0, 0])) <= 1


def test_stream_and_memory_hold_the_same_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = []
    for number, side in enumerate([8, 8, 12, 9]):
        path = tmp_path / f"{number}.png"
        path.write_bytes(_png(rng.integers(0, 255, (side, side + 1, 3), dtype=np.uint8)))
        paths.append(str(path))
    stream = ImageSet(Files(paths), torch.arange(4), channels=3, size=8)
    memory = stream.loaded("Decoding")
    assert memory.in_memory and not stream.in_memory and len(memory) == len(stream) == 4
    assert torch.equal(memory.images([2, 0]), stream.images(torch.tensor([2, 0])))
    assert memory.images(range(4)).shape == (4, 3, 8, 8)
    held = stream.held("Reading")
    for path in paths:
        Path(path).unlink()
    assert not held.in_memory and len(held) == 4 and held.size == 8 and held.labels is stream.labels
    assert torch.equal(held.images(range(4)), memory.images(range(4)))
    assert held.original(3).shape == (3, 9, 10)
    assert held.held("Reading") is held and memory.held("Reading") is memory


def test_a_held_image_is_named_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "torn.png"
    path.write_bytes(b"nothing")
    held = ImageSet(Files([str(path)]), None, channels=3, size=8).held("Reading")
    with pytest.raises(UserError, match=r"torn\.png"):
        held.images([0])


def test_probe(tmp_path: Path) -> None:
    gray, colour = tmp_path / "gray.png", tmp_path / "colour.png"
    gray.write_bytes(_png(np.zeros((5, 7), dtype=np.uint8)))
    colour.write_bytes(_png(np.zeros((6, 6, 3), dtype=np.uint8)))
    assert probe(Files([str(gray)])) == ({(5, 7)}, True)
    assert probe(Files([str(gray), str(colour)])) == ({(5, 7), (6, 6)}, False)


def test_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"gone\.jpg"):
        Files(["gone.jpg"]).read(0)
