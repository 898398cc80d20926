"""The frozen teacher of a run, and the cache of teachers trained on the labels."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gendd.config import EvaluationConfig, ReadoutConfig, RunConfig
from gendd.data import Data, load_data
from gendd.deploy.batch_norm import fold_batch_norms
from gendd.errors import UserError
from gendd.files import cache_folder, file_stem
from gendd.models import Backbone, Frozen, load_weights
from gendd.models.module import digest
from gendd.run.networks import teacher_network
from gendd.run.settings import absolute, binding_of, data_paths, is_taught, trains_teacher
from gendd.training import resolve_precision


def freeze(network: Backbone, config: RunConfig, device: torch.device) -> Frozen:
    """Freeze the teacher, with its weights, on the device.

    BatchNorms are folded into the convolutions, which makes a forward pass an eighth shorter, unless the
    weights are to be rounded or the network was built in Python and may be in use elsewhere.
    """
    dtype = torch.bfloat16 if config.teacher.dtype == "bf16" else None
    if dtype is None and not config.teacher.name.startswith("module/"):
        fold_batch_norms(network.eval())
    return Frozen(network.to(device), dtype=dtype, compile=config.teacher.compile)


def open_teacher(
    config: RunConfig, data: Data, device: torch.device, given: nn.Module | None = None
) -> Frozen:
    """Load the teacher of a finished run; none is trained.

    Args:
        config: Configuration of the run.
        data: Data of the run.
        device: Where to put it.
        given: The teacher, if it was built in Python.

    Raises:
        UserError: the run had no teacher, or it is no longer available.
    """
    if not is_taught(config):
        raise UserError(
            f"Teacher: expected a run with one, got one of method {config.method!r}, which has none."
        )
    if given is None and config.teacher.name.startswith("module/"):
        raise UserError(
            f"Teacher: expected {config.teacher.name!r}, which was built in Python; pass it from Python."
        )
    network = teacher_network(config, data, {} if given is None else {"teacher": given})
    assert network is not None
    if given is None and trains_teacher(config):
        folder, _ = teacher_run(config, data, network, device)
        if not (folder / "metrics.json").is_file():
            raise UserError(
                f"Teacher: expected the one trained for the run in {str(folder)!r}, found none; set "
                "GENDD_CACHE to the cache folder used then."
            )
        load_weights(network, folder)
    return freeze(network, config, device)


def teacher_run(
    config: RunConfig, data: Data, network: Backbone, device: torch.device
) -> tuple[Path, RunConfig]:
    """Return the cache folder of a teacher trained on the labels, and the configuration that trains it.

    Args:
        config: Configuration of the run that uses the teacher.
        data: Data of the run.
        network: The teacher as built, since its name may come to mean a different network.
        device: Where it is trained.
    """
    seen = config.data
    # resolved, so that the same teacher always has the same settings
    paths: dict[str, Any] = {
        key: None if path is None else absolute(path) for key, path in data_paths(seen).items()
    }
    training = RunConfig(
        method="supervised",
        student=dataclasses.replace(config.teacher, classes=None, dtype="fp32", compile=False),
        data=dataclasses.replace(seen, labels=True, **paths),
        training=dataclasses.replace(
            config.teacher_training, precision=resolve_precision(config.teacher_training.precision, device)
        ),
        readout=ReadoutConfig("linear"),
        evaluation=config.evaluation,
        seed=config.seed,
    )
    # without labels the split differs; streamed, so that no image is decoded to compute it
    own = data if seen.labels else load_data(dataclasses.replace(training.data, in_memory=False))
    made_of = [
        # the choice of test images does not change the teacher
        binding_of(dataclasses.replace(training, evaluation=EvaluationConfig())),
        network.config(),
        {key: list(value.shape) for key, value in network.net.state_dict().items()},
        own.class_names,
        {name: part.fingerprint for name, part in own.parts.items()},
        version("gendd"),
    ]
    sources = (digest(config.teacher.name), digest(seen.name))
    made_of += [source for source in sources if source is not None]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "teachers" / f"{file_stem(config.teacher.name)}-{data.name}-{key}", training
