"""ONNX in int8: static quantisation of weights (per channel) and activations, calibrated on images.

Shapes: B images · C channels · S side · K classes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gendd.data import Data, eval_loader, sample_loader
from gendd.deploy.export.source import Source
from gendd.deploy.export.to_onnx import load
from gendd.errors import UserError, first_line
from gendd.evaluation import BATCH_SIZE
from gendd.messages import followed

CALIBRATION = 256
_BATCH = 32


@dataclass(frozen=True)
class Quantized:
    """A quantised file compared with the float file on the run's test images.

    Attributes:
        top1: Accuracy of the int8 file in percent; None without labels of the readout's classes.
        fp32_top1: The same for the float file.
        agreement: Percent of images on which both predict the same class.
        images: Number of test images.
        bytes: Size of the int8 file.
        fp32_bytes: Size of the float file.
    """

    top1: float | None
    fp32_top1: float | None
    agreement: float
    images: int
    bytes: int
    fp32_bytes: int

    def __str__(self) -> str:
        def row(name: str, top1: float | None, size: int) -> str:
            right = "" if top1 is None else f"top-1 {top1:.2f} %   "
            return f"{name}   {right}{size / 1e6:.2f} MB"

        return "\n".join(
            [
                row("fp32", self.fp32_top1, self.fp32_bytes),
                row("int8", self.top1, self.bytes),
                f"agreement {self.agreement:.2f} % of {self.images:,} test images",
            ]
        )


def data_of(source: Source) -> Data:
    """Return the data of the source's run.

    Raises:
        UserError: there is none.
    """
    if isinstance(source.data, str):
        raise UserError(
            f"--quantize int8: expected a run with its training images to calibrate on, found none "
            f"({source.data}); give the folder of a run whose images are where they were."
        )
    return source.data


class _Calibration:
    """Batches in the form of ONNX Runtime's calibration data reader, with a progress bar."""

    def __init__(self, data: Data, count: int, progress: bool) -> None:
        self.loader = sample_loader(data.train, min(_BATCH, count), count)
        self.progress = progress
        self._batches = self._watched()

    def _watched(self) -> Iterator[dict[str, Any]]:
        for batch in followed(self.loader, len(self.loader), "calibrating", bar=self.progress):
            yield {"images": batch.images.numpy()}

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch; None at the end."""
        return next(self._batches, None)


def quantize(plain: Path, target: Path, data: Data, count: int, progress: bool = False) -> Quantized:
    """Write an int8 copy of an ONNX file, and score both.

    Args:
        plain: The float file.
        target: The int8 file.
        data: Training images to calibrate on, without augmentation, and test images to score on.
        count: Maximum number of calibration images.
        progress: Show progress bars.

    Raises:
        UserError: ONNX Runtime can't quantise the graph, or the quantised file gives non-finite logits.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(plain), str(prepared))
            quantize_static(
                str(prepared),
                str(target),
                _Calibration(data, count, progress),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
        except UserError:  # from reading the images
            raise
        except Exception as error:  # the quantiser raises many kinds
            raise UserError(
                "--quantize int8: expected a network that ONNX Runtime can quantise, got another "
                f"({first_line(error)}); export it without."
            ) from error
    model = onnx.load(target)
    kept = {entry.key: entry.value for entry in onnx.load(plain).metadata_props}
    onnx.helper.set_model_props(model, {**kept, "quantization": "int8, QDQ, per channel"})
    onnx.save(model, target)
    return _scored(plain, target, data, progress)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's warnings, which only concern its internals."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def _scored(plain: Path, target: Path, data: Data, progress: bool) -> Quantized:
    network, small = load(plain), load(target)
    seen = agreed = right = small_right = 0
    labelled = False
    loader = eval_loader(data.test, BATCH_SIZE, None)
    for batch in followed(loader, len(loader), "evaluating", bar=progress):
        logits, found = network(batch.images), small(batch.images)
        if not math.isfinite(float(found.sum())):
            raise UserError("--quantize int8: expected finite logits, got others; export without it.")
        said, small_said = logits.argmax(-1), found.argmax(-1)
        seen += len(said)
        agreed += int((said == small_said).sum())
        if batch.labels is not None and logits.shape[-1] == data.num_classes:
            labelled = True
            right += int((said == batch.labels).sum())
            small_right += int((small_said == batch.labels).sum())
    figures = Quantized(
        100 * small_right / seen,
        100 * right / seen,
        100 * agreed / seen,
        seen,
        target.stat().st_size,
        plain.stat().st_size,
    )
    return figures if labelled else dataclasses.replace(figures, top1=None, fp32_top1=None)
