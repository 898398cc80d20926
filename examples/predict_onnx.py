"""Classify image files with an exported student, using NumPy, Pillow and ONNX Runtime, without torch.

    gendd export runs/mine --to onnx
    python examples/predict_onnx.py runs/mine/export/student-mean.onnx image.jpg …

Images are prepared exactly as by ``gendd predict``, bit for bit. Shapes: B images · C channels · S side ·
K classes · h height and w width before resizing.
"""

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

# a small file may hold a very large image
MOST_PIXELS = 50_000_000
# the longer side is cropped to at most this many times the shorter one
LONG = 8


class Classifier:
    """A student exported by ``gendd export --to onnx``, with the metadata of its file.

    Raises ValueError if ``path`` is not such a file.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises many types
            raise ValueError(f"{path}: expected an ONNX file, got {' '.join(str(error).split())}") from error
        told = self.session.get_modelmeta().custom_metadata_map
        if "class_names" not in told:
            raise ValueError(f"{path}: expected a file of gendd export --to onnx, got another network")
        self.class_names: list[str] = json.loads(told["class_names"])
        self.size, self.channels = int(told["image_size"]), int(told["channels"])
        self.framing = float(told["framing"])
        self.readout = told["readout"]

    def prepare(self, data: bytes) -> np.ndarray:
        """Prepare an encoded image: float32 (C, S, S) in [0, 1]. Raises ValueError if it is not an image."""
        framed = frame(decode(data, self.channels), self.size, self.framing)
        pixels: np.ndarray = framed.transpose(2, 0, 1).astype(np.float32)
        return pixels / 255

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities: float32 (B, C, S, S) in [0, 1] -> (B, K)."""
        logits = self.session.run(["logits"], {"images": images})[0]
        odds: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def best(self, probabilities: np.ndarray, top: int = 5) -> list[tuple[str, float]]:
        """Return the most likely classes, given one image's probabilities (K,)."""
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.class_names[index], round(float(probabilities[index]), 4)) for index in order]


def decode(data: bytes, channels: int) -> np.ndarray:
    """Decode an image to uint8 (h, w, C), gray or RGB. Raises ValueError if it is no image or too large."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            pixels = values(image, channels) if width * height <= MOST_PIXELS else None
    except Exception as error:  # Pillow raises many types for damaged files
        raise ValueError("expected an image, got a file that can't be decoded") from error
    if pixels is None:
        raise ValueError(f"expected at most {MOST_PIXELS:,} pixels, got {width}×{height}")
    return pixels


def values(image: Image.Image, channels: int) -> np.ndarray:
    """Convert an image of any mode to uint8 (h, w, C), with its EXIF orientation applied."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        numbers = np.asarray(image).astype(np.float32)
        if not (np.isfinite(numbers).all() and numbers.min() >= 0 and numbers.max() <= 255):
            raise ValueError("numbers of an unknown range")
        scale = 255 if image.mode == "F" and numbers.max() <= 1 else 1
        return np.repeat((numbers * scale).round().astype(np.uint8)[:, :, None], channels, axis=2)
    if image.mode.startswith("I"):  # 16-bit gray
        gray = (np.asarray(image).astype(np.float32) / 257).round().clip(0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], channels, axis=2)
    whole = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
    pixels = np.array(whole.convert("L" if channels == 1 else "RGB"))
    return pixels[:, :, None] if channels == 1 else pixels


def frame(pixels: np.ndarray, size: int, framing: float) -> np.ndarray:
    """Resize the shorter side and crop the centre: uint8 (h, w, C) -> (S, S, C)."""
    height, width = pixels.shape[:2]
    if height == width == size:
        return pixels
    most = LONG * min(height, width)
    if max(height, width) > most:
        pixels = centre_crop(pixels, min(height, most), min(width, most))
        height, width = pixels.shape[:2]
    short, wanted = min(height, width), round(size / framing)
    target = wanted if short >= wanted else size
    scaled = [target if side == short else int(target * side / short) for side in (height, width)]
    pixels = resize(resize(pixels, scaled[1], axis=1), scaled[0], axis=0)
    return centre_crop(pixels, size, size)


def centre_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Crop the centre of (h, w, C)."""
    top, left = round((pixels.shape[0] - height) / 2), round((pixels.shape[1] - width) / 2)
    return pixels[top : top + height, left : left + width]


def resize(pixels: np.ndarray, side: int, axis: int) -> np.ndarray:
    """Resize one axis of uint8 pixels: bilinear and antialiased, with PyTorch's integer arithmetic."""
    length = pixels.shape[axis]
    if length == side:
        return pixels
    weights = np.zeros((side, length))
    scale = length / side
    support = max(scale, 1.0)
    for row in range(side):
        centre = scale * (row + 0.5)
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), length)
        near = np.maximum(1 - np.abs(np.arange(first, last) + 0.5 - centre) * (1 / support), 0)
        weights[row, first:last] = near / near.sum()
    # as many bits as fit into 16-bit weights
    largest = weights.max()
    bits = next((bits for bits in range(21) if int(0.5 + largest * 2 ** (bits + 1)) >= 2**15), 21)
    whole = np.floor(weights * 2**bits + 0.5)
    # floating point, but with integers that it represents exactly
    mixed = np.tensordot(whole, pixels.astype(np.float64), axes=(1, axis))
    mixed = np.floor((mixed + 2 ** (bits - 1)) / 2**bits).clip(0, 255).astype(np.uint8)
    return np.moveaxis(mixed, 0, axis)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the exported .onnx file")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--top", type=int, default=5, help="classes per image (default: 5)")
    given = parser.parse_args()
    if given.top < 1:
        parser.error(f"--top: expected a positive integer, got {given.top}")
    try:
        classifier = Classifier(given.model)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    failed = False
    for path in given.images:
        try:
            image = classifier.prepare(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            print(f"{path}: {reason or error}", file=sys.stderr)
            failed = True
            continue
        found = classifier.best(classifier.probabilities(image[None])[0], given.top)
        print(f"{path}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in found))
    sys.exit(2 if failed else 0)


if __name__ == "__main__":
    main()
