"""The examples that run an exported student without torch."""

from __future__ import annotations

import importlib
import io
import itertools
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from gendd.data.decoding import decode, frame
from gendd.deploy.predict import predict

EXAMPLES = Path(__file__).parents[1] / "examples"

if not EXAMPLES.is_dir():
    pytest.skip("examples/ is not beside tests/", allow_module_level=True)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import predict_onnx

        return predict_onnx


@pytest.fixture(scope="module")
def model(exported: Callable[..., Any]) -> Path:
    path: Path = exported("onnx", "mean").path
    return path


def close(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal, where PyTorch resizes in integers; elsewhere to a step of 8 bits."""
    integers = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    exact = integers or platform.machine() in ("aarch64", "arm64")
    np.testing.assert_allclose(found, expected, rtol=0, atol=0 if exact else 1.01 / 255)


def encoded(pixels: NDArray[Any], mode: str, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, form)
    return stream.getvalue()


SIZES = [(8, 8), (300, 200), (37, 91), (20, 20), (333, 64), (65, 64)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("height, width", SIZES)
def test_images_are_framed_as_gendd_does(height: int, width: int, channels: int, example: ModuleType) -> None:
    random = np.random.default_rng(height)
    pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
    for size, framing in itertools.product((8, 32, 112), (1.0, 0.875)):
        expected = frame(torch.from_numpy(pixels).permute(2, 0, 1), size, framing)
        found = example.frame(pixels, size, framing)
        assert found.dtype == np.uint8 and found.shape == (size, size, channels)
        close(found / 255, expected.permute(1, 2, 0).numpy() / 255)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_files_are_decoded_as_gendd_does(mode: str, channels: int, example: ModuleType) -> None:
    random = np.random.default_rng(0)
    if mode == "I;16":
        stream = io.BytesIO()
        Image.fromarray(random.integers(0, 65536, (9, 7), dtype=np.uint16)).save(stream, "PNG")
        data = stream.getvalue()
    else:
        form = "TIFF" if mode == "CMYK" else "PNG"
        data = encoded(random.integers(0, 256, (9, 7, 3), dtype=np.uint8), mode, form)
    expected = decode(data, "image", channels).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(example.decode(data, channels), expected)


def test_transparent_palettes_are_decoded_as_gendd_does(example: ModuleType) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=b"\x00\x80")
    for channels in (1, 3):
        expected = decode(stream.getvalue(), "image", channels).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(example.decode(stream.getvalue(), channels), expected)


def test_the_classifier_says_what_gendd_says(
    example: ModuleType, model: Path, small_run: Path, digit_files: Callable[[int], list[str]]
) -> None:
    files = digit_files(5)
    classifier = example.Classifier(model)
    images = np.stack([classifier.prepare(Path(file).read_bytes()) for file in files])
    assert images.dtype == np.float32 and images.shape == (5, 1, 8, 8)
    found = classifier.probabilities(images)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    for row, expected in zip(found, predict(small_run, files, top=3), strict=True):
        best = classifier.best(row, top=3)
        assert [name for name, _ in best] == expected.classes
        assert [value for _, value in best] == pytest.approx(expected.probabilities, abs=2e-4)


def test_the_script_needs_no_torch(
    model: Path, small_run: Path, digit_files: Callable[[int], list[str]], tmp_path: Path
) -> None:
    files = digit_files(2)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    script = str(EXAMPLES / "predict_onnx.py")
    words = [script, str(model), *files, str(broken), str(tmp_path / "none.png"), "--top", "1"]
    code = (
        "import runpy, sys\n"
        "sys.modules['torch'] = sys.modules['torchvision'] = sys.modules['gendd'] = None\n"
        f"sys.argv = {words!r}\n"
        f"runpy.run_path({script!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    lines = done.stdout.splitlines()
    for line, expected in zip(lines, predict(small_run, files, top=1), strict=True):
        assert line.startswith(f"{expected.path}: {expected.classes[0]} ")
    errors = done.stderr.splitlines()
    assert errors[0] == f"{broken}: expected an image, got a file that can't be decoded"
    assert "No such file" in errors[1] and len(errors) == 2


@pytest.mark.parametrize("script", ["predict_onnx", "serve"])
@pytest.mark.parametrize(
    "content, reason", [(None, "expected an ONNX file, got "), (b"x" * 100, "expected an ONNX file, got ")]
)
def test_a_model_that_is_none_is_told_in_one_line(
    script: str,
    content: bytes | None,
    reason: str,
    example: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(sys, "argv", [script, str(path), *(["a.png"] if script == "predict_onnx" else [])])
    monkeypatch.setitem(sys.modules, "uvicorn", ModuleType("uvicorn"))
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(script).main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{path}: {reason}") and error.count("\n") == 1


def test_other_networks_are_told_from_students(example: ModuleType, model: Path, tmp_path: Path) -> None:
    import onnx

    network = onnx.load(model)
    onnx.helper.set_model_props(network, {})
    onnx.save(network, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="expected a file of gendd export --to onnx, got another network"):
        example.Classifier(tmp_path / "other.onnx")


def test_very_large_images_are_refused_before_they_are_decoded(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(np.zeros((30, 40), np.uint8), "L")
    assert example.decode(data, 1).shape == (30, 40, 1)
    monkeypatch.setattr(example, "MOST_PIXELS", 1199)
    with pytest.raises(ValueError, match="expected at most 1,199 pixels, got 40×30"):
        example.decode(data, 1)
    broken = encoded(np.zeros((30, 40), np.uint8), "L")[:60]
    with pytest.raises(ValueError, match="pixels"):  # the header alone is read
        example.decode(broken, 1)


# --- the server ---


@pytest.fixture(scope="module")
def client(example: ModuleType, model: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the test client's own parts
        patch.syspath_prepend(str(EXAMPLES))
        import serve
        from fastapi.testclient import TestClient

        return TestClient(serve.create_app(model, top=3))


def sent(files: list[str]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (Path(file).name, Path(file).read_bytes())) for file in files]


def test_the_server_is_well(client: Any) -> None:
    answer = client.get("/healthz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "readout": "mean", "classes": 10}


@pytest.mark.parametrize("count", [1, 20])
def test_the_server_classifies_one_file_or_many(
    count: int, client: Any, small_run: Path, digit_files: Callable[[int], list[str]]
) -> None:
    files = digit_files(count)
    answer = client.post("/predict", files=sent(files))
    assert answer.status_code == 200
    found = answer.json()["predictions"]
    assert [each["file"] for each in found] == [Path(file).name for file in files]
    for each, expected in zip(found, predict(small_run, files, top=3), strict=True):
        assert each["classes"] == expected.classes
        assert each["probabilities"] == pytest.approx(expected.probabilities, abs=2e-4)


def test_what_the_server_refuses(
    client: Any, digit_files: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import serve

    files = sent(digit_files(3))
    answer = client.post("/predict", files=[files[0], ("file", ("bad.txt", b"no image"))])
    assert answer.status_code == 400
    assert answer.json()["detail"] == "bad.txt: expected an image, got a file that can't be decoded"
    assert client.post("/predict").status_code == 422
    monkeypatch.setattr(serve, "MOST_FILES", 2)
    answer = client.post("/predict", files=files)
    assert answer.status_code == 413 and answer.json()["detail"] == "expected at most 2 files, got 3"
    monkeypatch.setattr(serve, "MOST_BYTES", 20)
    answer = client.post("/predict", files=files[:1])
    assert answer.status_code == 413 and "expected at most 20 bytes, got more" in answer.json()["detail"]
