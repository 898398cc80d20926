"""Recompute reference numbers on this machine.

A reference file (.npz) holds a complete small model and the outputs of the authors' code for it on fixed
inputs: schedule, respacing, head, loss parts and gradient, sampling with every noise draw recorded, and
the full training loss. All sizes and weights come from the file.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gendd.config import GenDDConfig
from gendd.diffusion import Head, add_noise, ancestral, cosine_schedule, diffusion_loss, tokens
from gendd.errors import UserError
from gendd.files import read_bytes
from gendd.released.checkpoints import load_generator
from gendd.student.generator import FeatureGenerator, GuidedDenoiser

PUBLIC_REFERENCE = Path(__file__).parent / "reference.npz"
TOLERANCE = 1e-4

# numpy's errors for a missing, foreign, truncated or damaged file; TypeError is that of a single array (.npy)
_UNREADABLE = (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)

# λ of the recorded training loss
CONTRACTION = 0.9


def verify(reference: Path | None = None, device: torch.device | str = "cpu") -> dict[str, float]:
    """Compute the largest relative deviation from the reference in each group; infinite if one is NaN.

    Deviations are relative to the reference value itself for losses and coefficients, and to the largest
    entry for vectors, some of whose entries are close to zero.

    Args:
        reference: The file; by default the one shipped with the package.
        device: Device to compute on, in float32.

    Raises:
        UserError: the file can't be read or lacks a group.
    """
    path = PUBLIC_REFERENCE if reference is None else Path(reference)
    try:
        with np.load(io.BytesIO(read_bytes(path))) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or "it is not one"
        raise UserError(
            f"Reference {str(path)!r}: expected a readable .npz file; {reason}; correct the path."
        ) from error
    try:
        return _verify(arrays, torch.device(device))
    except KeyError as error:
        raise UserError(f"Reference {str(path)!r}: expected the array {error}; it is not there.") from error
    except (RuntimeError, ValueError) as error:
        reason = " ".join(" ".join(str(error).splitlines()[:2]).split())[:300]
        raise UserError(f"Reference {str(path)!r}: expected arrays that fit together; {reason}") from error


def _verify(arrays: dict[str, NDArray[Any]], device: torch.device) -> dict[str, float]:
    def host(name: str) -> Tensor:
        return torch.from_numpy(np.asarray(arrays[name]))

    def read(name: str) -> Tensor:
        return host(name).to(device)

    _, feature_width, token_width, _, width, _, depth, repeats = (int(n) for n in arrays["config"])
    state = {name[6:]: read(name) for name in arrays if name.startswith("state/")}
    condition_width = state["cls_projector.0.weight"].shape[0]
    config = GenDDConfig(
        token_width=token_width,
        head_width=width,
        head_depth=depth,
        repeats=repeats,
        prediction="epsilon",
        learned_variance=True,
        standardise=False,
        contraction=CONTRACTION,
    )
    generator = FeatureGenerator(condition_width, feature_width, config).to(device)
    load_generator(generator, state)

    found: dict[str, float] = {}
    schedule = cosine_schedule(len(arrays["schedule/betas"]))
    found["schedule"] = max(
        _pointwise(getattr(schedule, name.split("/")[1]), host(name))
        for name in arrays
        if name.startswith("schedule/")
    )
    respaced = sorted({int(name.split("/")[1]) for name in arrays if name.startswith("respaced/")})
    if not respaced:
        raise KeyError("respaced/10/timesteps")
    for steps in respaced:
        short = schedule.respace(steps)
        found[f"respaced/{steps}"] = max(
            _pointwise(short.timesteps, host(f"respaced/{steps}/timesteps")),
            _pointwise(short.betas, host(f"respaced/{steps}/betas")),
        )
    with torch.no_grad():
        output = generator.head(*(read(f"head/{name}") for name in ("x", "t", "cond", "token_index")))
    found["head"] = _vector(output, read("head/out"))
    found |= _verify_loss(generator.head, read)
    for name in ("cfg1.0", "cfg2.0"):
        found[f"sample/{name}"] = _verify_sampling(generator, read, f"sample/{name}", float(name[3:]))
    for name in ("hard", "soft"):
        found |= _verify_full(generator, state, read, f"full/{name}", CONTRACTION)
    return found


def _verify_loss(head: Head, read: Callable[[str], Tensor]) -> dict[str, float]:
    x0, t, noise, condition = (read(f"loss/{name}") for name in ("x0", "t", "noise", "cond"))
    condition.requires_grad_(True)
    schedule = cosine_schedule()
    x_t = add_noise(x0, t, noise, schedule)
    output = head(x_t, t, condition, read("loss/token_index"))
    rows = diffusion_loss(output, x0, x_t, t, noise, schedule, "epsilon")
    assert rows.vlb is not None
    loss = rows.mse + rows.vlb
    (gradient,) = torch.autograd.grad(loss.mean(), condition)
    return {
        "loss/mse": _pointwise(rows.mse, read("loss/mse")),
        "loss/vlb": _pointwise(rows.vlb, read("loss/vb")),
        "loss/total": _pointwise(loss, read("loss/loss")),
        "loss/gradient": _vector(gradient, read("loss/grad_cond")),
    }


@torch.no_grad()
def _verify_sampling(
    generator: FeatureGenerator, read: Callable[[str], Tensor], group: str, guidance: float
) -> float:
    step_noise = read(f"{group}/step_noise")
    schedule = generator.schedule.respace(len(step_noise))
    # one image with as many tokens as rows, each with its own condition
    condition, position = read(f"{group}/cond").unsqueeze(0), read(f"{group}/token_index")
    denoise = GuidedDenoiser(generator.head, condition, position, schedule, guidance, generator.prediction)
    start = read(f"{group}/init_noise")[: step_noise.shape[1]]
    return _vector(ancestral(denoise, start, schedule, step_noise=step_noise), read(f"{group}/out"))


@torch.no_grad()
def _verify_full(
    generator: FeatureGenerator,
    state: dict[str, Tensor],
    read: Callable[[str], Tensor],
    group: str,
    contraction: float,
) -> dict[str, float]:
    images = read(f"{group}/images")
    features = F.relu(F.linear(images, state["model.l.weight"], state["model.l.bias"]))
    logits = F.linear(features, state["model.fc.weight"], state["model.fc.bias"])
    centres = state["cls_centers"]
    labels = read(f"{group}/labels")
    probabilities = tokens.class_probabilities(labels, len(centres))
    targets = tokens.contract(read(f"{group}/teacher_features"), probabilities, centres, contraction)
    rows = generator.loss_rows(
        targets, generator.condition(features), read(f"{group}/t"), read(f"{group}/noise")
    )
    assert rows.vlb is not None
    loss = (rows.mse + rows.vlb).mean()
    return {
        f"{group}/loss": _pointwise(loss, read(f"{group}/loss")),
        f"{group}/probe": _vector(logits, read(f"{group}/probe_logits")),
    }


def _pointwise(ours: Tensor, reference: Tensor) -> float:
    ours, reference = ours.detach().cpu().double(), reference.cpu().double()
    difference = (ours - reference).abs()
    relative = difference / reference.abs().clamp(min=torch.finfo(torch.float64).tiny)
    return _largest(torch.where(difference == 0, torch.zeros_like(relative), relative))


def _vector(ours: Tensor, reference: Tensor) -> float:
    ours, reference = ours.detach().cpu().double(), reference.cpu().double()
    return _largest((ours - reference).abs() / reference.abs().max())


def _largest(deviation: Tensor) -> float:
    # Python's max and <= would treat NaN as agreement
    return float(deviation.nan_to_num(nan=torch.inf, posinf=torch.inf).max())
