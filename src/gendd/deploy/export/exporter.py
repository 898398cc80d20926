"""Export one readout of a student to one format and check it: the part all formats share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from gendd.config import ReadoutName, SamplerName
from gendd.deploy import deploy
from gendd.deploy.export import int8
from gendd.deploy.export.check import checked, images_of
from gendd.deploy.export.formats import Format, export_format
from gendd.deploy.export.int8 import CALIBRATION, Quantized
from gendd.deploy.export.source import Source, image_size, opened
from gendd.deploy.export.target import files, fresh, target
from gendd.deploy.export.to_torch import check_steps
from gendd.errors import UserError, did_you_mean
from gendd.student import Student
from gendd.student.folders import RunFolder


@dataclass(frozen=True)
class Exported:
    """Result of :func:`export`.

    Attributes:
        path: The file; for ``safetensors`` the folder.
        format: Its format.
        readout: The exported readout.
        bytes: Its size.
        deviation: Largest difference from PyTorch's logits, relative to the largest logit; for a quantised
            file that of the float file it was made from.
        checked_on: The images this was measured on.
        notes: Remarks, and for ``timm`` the call that loads it.
        quantized: Scores of the int8 file; None without ``quantize``.
    """

    path: Path
    format: str
    readout: ReadoutName
    bytes: int
    deviation: float
    checked_on: str
    notes: tuple[str, ...] = ()
    quantized: Quantized | None = None

    def __str__(self) -> str:
        of = "" if self.quantized is None else " of the fp32 file"
        lines = [
            f"{self.path}   {self.format}, readout {self.readout}, {self.bytes / 1e6:.2f} MB",
            f"largest deviation{of} from PyTorch {self.deviation:.1e} on {self.checked_on}",
        ]
        if self.quantized is not None:
            lines.append(str(self.quantized))
        return "\n".join([*lines, *self.notes])


def export(
    source: str | Path | RunFolder | Student,
    to: str | Format,
    *,
    readout: ReadoutName | None = None,
    quantize: Literal["int8"] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    sampler: SamplerName | None = None,
    calibration: int = CALIBRATION,
    overwrite: bool = False,
    backbone: nn.Module | None = None,
    progress: bool = False,
) -> Exported:
    """Export one readout of a finished student to a file, and check it.

    Its logits are compared with PyTorch's on the run's test images, or on random images if there are none.

    Args:
        source: A run, its folder, a student's folder, the id of a Hugging Face repository, or a student.
        to: ``onnx`` and ``torch-export`` map any number of images (B, C, S, S) in [0, 1] to logits (B, K);
            ``timm`` is the state dict of a timm student with its linear classifier; ``safetensors`` is a
            folder for :func:`gendd.load` with only what the readout needs; ``path/to/file.py:NAME`` is a
            format of your own.
        readout: The student's chosen one by default, and ``linear`` for ``timm``.
        quantize: ``int8`` for an ONNX file with 8-bit weights and activations.
        out: The file (the folder of ``safetensors``); by default in ``export/`` of the source's folder.
        seed: Seed of the noise of readout ``sample``, which is the same for every image.
        steps: Sampling steps of readout ``sample``; the student's own by default.
        sampler: ``ddpm``, ``ddim`` or ``dpm-solver``; the student's own by default.
        calibration: Maximum number of training images to calibrate ``quantize`` with.
        overwrite: Replace an existing export at ``out``.
        backbone: The network of a student built in Python, see :func:`gendd.load`.
        progress: Show progress bars.

    Raises:
        UserError: an argument can't be used, a package is missing, the network can't be converted, or the
            logits differ by more than 1e-4 of the largest. Nothing is then written.
    """
    kind = to if isinstance(to, Format) else export_format(to)
    _check(kind, quantize, calibration, sampler, seed)
    run, folder, student = opened(source, backbone)
    if not student.readouts:
        raise UserError(
            "Export: expected a student that classifies, got one that gives features only; use its "
            "embed(images) from Python."
        )
    readout = kind.readout(student, readout)
    changed = _resample(student, readout, steps, sampler)
    more = [quantize] if quantize else [kind.tag] if kind.tag else []
    path = target(out, folder, "-".join(["student", readout, *more]), kind.name, kind.suffix)
    notes = []
    unrolled = readout == "sample" and kind.unrolled
    if unrolled and (remark := check_steps(student.settings.steps)) is not None:
        notes.append(remark)
    size = image_size(student, folder)
    exported = Source(student, deploy(student, readout, seed=seed), run, size, seed, changed)
    with fresh(path, folder, overwrite) as temporary:
        deviation, checked_on, figures = _written(exported, kind, temporary, quantize, calibration, progress)
    notes += kind.remarks(exported, path)
    written = sum(file.stat().st_size for file in files(path))
    return Exported(path, kind.name, readout, written, deviation, checked_on, tuple(notes), figures)


def _check(to: Format, quantize: str | None, calibration: int, sampler: str | None, seed: int) -> None:
    """Raise :class:`UserError` for arguments that suit no student, before one is loaded."""
    if quantize not in (None, "int8"):
        raise UserError(f"Export: expected quantize int8 or none, got {quantize!r}.")
    if quantize is not None and not to.quantizable:
        raise UserError(f"Export: expected format onnx for quantize int8, got {to.name}; leave quantize out.")
    if calibration < 1:
        raise UserError(f"Export: expected a positive number of calibration images, got {calibration}.")
    if not 0 <= seed < 2**63:
        raise UserError(f"Export: expected a seed from 0 to 2**63 - 1, got {seed}.")
    samplers = get_args(SamplerName)
    if sampler not in (None, *samplers):
        near = did_you_mean(str(sampler), samplers)
        raise UserError(f"Export: expected a known sampler, got {sampler!r}.{near}")
    to.needs()


def _resample(student: Student, readout: ReadoutName, steps: int | None, sampler: SamplerName | None) -> bool:
    """Set the given sampler options in the student's settings; return whether that changed them."""
    given: dict[str, Any] = {"steps": steps, "sampler": sampler}
    given = {key: value for key, value in given.items() if value is not None}
    if given and readout != "sample":
        raise UserError(
            f"Export: expected readout sample for {' and '.join(f'--{key}' for key in given)}, got "
            f"{readout!r}; leave the option out."
        )
    before, student.settings = student.settings, dataclasses.replace(student.settings, **given)
    return student.settings != before


def _written(
    source: Source, to: Format, path: Path, quantized: str | None, calibration: int, progress: bool
) -> tuple[float, str, Quantized | None]:
    """Write and check an export; return the deviation, the images used, and the scores of an int8 file."""
    data = int8.data_of(source) if quantized else None
    images, checked_on = images_of(source)
    plain = path if data is None else path.with_name(f"{path.stem}-fp32{path.suffix}")
    try:
        deviation = checked(to.write(source, plain), source, images, f"the {to.name} file")
        if data is None:
            return deviation, checked_on, None
        return deviation, checked_on, int8.quantize(plain, path, data, calibration, progress)
    finally:
        if data is not None:
            plain.unlink(missing_ok=True)
