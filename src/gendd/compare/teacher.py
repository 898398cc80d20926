"""A frozen teacher whose answers are recorded on disk, shared by methods that train on the same batches.

Shapes: B images, C channels, D feature width, K classes, (E, h, w) map.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gendd.config import ModelConfig
from gendd.models import Asked, Frozen, Stages
from gendd.models.costs import synchronise
from gendd.models.frozen import bytes_of
from gendd.models.module import digest

_HALF = torch.float16
# answers between checks of the folder's size, as other processes write to it too
_RESCAN = 256
_TENSORS = ("feature", "logits")


@dataclass(frozen=True)
class _Answer:
    """The teacher's answer for a batch.

    Attributes:
        feature: (B, D), in the dtype it was computed in.
        logits: (B, K), in the dtype they were computed in.
        maps: The map and those of the stages, as stored; empty if not requested.
        map_type: The dtype they are returned in.
        seconds: Duration of the computation.
    """

    feature: Tensor
    logits: Tensor
    maps: list[Tensor]
    map_type: torch.dtype
    seconds: float


class RecordedTeacher(Frozen):
    """A teacher that reads its answers from disk for batches it has seen.

    Of the stages' maps it returns and stores those that ``stages`` asks for. Answers are keyed by the
    content of the images, their memory format and the arithmetic dtype. Feature and logits are stored
    exactly; maps are rounded to fp16 (unless out of its range), also when first computed, so that no result
    depends on which method asked first. Files are written atomically, so any number of processes may share
    the folder.

    Args:
        teacher: The teacher to record.
        folder: Folder of this teacher's answers, see :func:`answers_folder`.
        limit: Maximum bytes below ``root``; answers beyond it are computed and not stored.
        root: Folder whose size counts; None: ``folder``.
        ledger: File that keeps, by batch, the seconds to add to the training's own; None: not kept.

    Attributes:
        computed: Number of answers computed.
        found: Number of answers read from disk.
        saved: Seconds of training that the record saved this process; negative if writing took longer than
            was saved.
    """

    def __init__(
        self,
        teacher: Frozen,
        folder: Path,
        *,
        limit: float = float("inf"),
        root: Path | None = None,
        ledger: Path | None = None,
    ) -> None:
        super().__init__(teacher.backbone)
        self._compiled = teacher._compiled
        self.folder = folder
        self.limit = limit
        self.root = root or folder
        self.ledger = ledger
        self.computed = self.found = 0
        self.saved = 0.0
        self._held = 0
        self._until_scan = 0
        if ledger is not None:
            ledger.parent.mkdir(parents=True, exist_ok=True)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`Frozen.forward`."""
        feature, logits, _ = self._answer(images, "feature")
        return feature, logits

    def with_map(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As :meth:`Frozen.with_map`; the map is rounded to fp16."""
        feature, logits, maps = self._answer(images, "map" if self.has_map else "feature")
        return feature, logits, maps[0] if maps else None

    def with_stages(
        self, images: Tensor, stages: Stages = None
    ) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
        """As :meth:`Frozen.with_stages`; the maps are rounded to fp16."""
        del stages
        feature, logits, maps = self._answer(images, "stages" if self.has_map else "feature")
        return feature, logits, maps[0] if maps else None, maps[1:]

    def _answer(self, images: Tensor, kind: Asked) -> tuple[Tensor, Tensor, list[Tensor]]:
        start = time.perf_counter()
        key = self._key(images, kind)
        path = self.folder / key[:2] / f"{key}.safetensors"
        answer = _read(path, kind, self.stages_part)
        if answer is None:
            answer = self._compute(images, kind)
            self._keep(path, answer, kind)
            self.computed += 1
        else:
            self.found += 1
        feature, logits = answer.feature.to(images.device), answer.logits.to(images.device)
        maps = [each.to(images.device, answer.map_type) for each in answer.maps]
        # only training steps run with gradients enabled; validation is not part of the training seconds
        if torch.is_grad_enabled():
            self._enter(f"{key}-{kind}", answer.seconds - (time.perf_counter() - start))
        return feature, logits, maps

    def _key(self, images: Tensor, kind: Asked) -> str:
        device = images.device.type
        made_of = [
            tuple(images.shape),
            images.dtype,
            device,
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
            images.is_contiguous(),
            # requests with maps don't use the compiled network
            kind != "feature" and self._compiled is not None,
        ]
        content = hashlib.blake2b(repr(made_of).encode(), digest_size=20)
        content.update(bytes_of(images))
        return content.hexdigest()

    def _compute(self, images: Tensor, kind: Asked) -> _Answer:
        found: list[Tensor | None] = []
        synchronise(images.device)
        start = time.perf_counter()
        if kind == "stages":
            feature, logits, last, stages = super().with_stages(images, self.stages)
            found = [last, *stages]
        elif kind == "map":
            feature, logits, last = super().with_map(images)
            found = [last]
        else:
            feature, logits = super().forward(images)
        synchronise(images.device)
        seconds = time.perf_counter() - start
        maps = [each for each in found if each is not None]
        kept = [each.to(_HALF) for each in maps]
        if not all(bool(torch.isfinite(each).all()) for each in kept):
            kept = maps
        return _Answer(feature, logits, kept, maps[0].dtype if maps else feature.dtype, seconds)

    def _keep(self, path: Path, answer: _Answer, kind: Asked) -> None:
        size = sum(tensor.nbytes for tensor in (answer.feature, answer.logits, *answer.maps))
        if self._until_scan == 0:
            self._held, self._until_scan = _size(self.root), _RESCAN
        self._until_scan -= 1
        if self._held + size > self.limit:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind != "feature":
                about = {"seconds": repr(answer.seconds), "maps": _name(answer.map_type)}
                maps = {str(number): each for number, each in enumerate(answer.maps)}
                _write(_maps_path(path, self.stages_part if kind == "stages" else kind), maps, about)
            if not path.exists():
                about = {name: _name(getattr(answer, name).dtype) for name in _TENSORS}
                found = {name: getattr(answer, name).float() for name in _TENSORS}
                _write(path, found, {"seconds": repr(answer.seconds), **about})
        except OSError:
            # a full disk costs time but changes no result
            self.limit = 0
            return
        self._held += size

    def _enter(self, key: str, seconds: float) -> None:
        self.saved += seconds
        if self.ledger is not None:
            with self.ledger.open("a", encoding="ascii") as stream:
                stream.write(f"{key} {seconds:.6f}\n")


def ledger_seconds(path: Path) -> float:
    """Return the seconds of a ledger, to be added to the training's own.

    Each batch counts once, by its last entry, as steps repeated after an interruption also count once in the
    training's own seconds.
    """
    if not path.exists():
        return 0.0
    entries = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        # a killed process may leave an incomplete line
        if match := re.fullmatch(r"([0-9a-f]{40}-[a-z]+) (-?\d+\.\d{6})", line):
            entries[match[1]] = float(match[2])
    return sum(entries.values())


def answers_folder(root: Path, teacher: Frozen, config: ModelConfig) -> Path:
    """Return the folder of a teacher's answers below ``root``, unique to its weights and settings."""
    return root / teacher.digest(config.compile, digest(config.name), torch.__version__)


def remove_unfinished(root: Path) -> None:
    """Delete incomplete files of killed processes; call only while no process writes."""
    for path in root.glob("*/*/.*.tmp"):
        path.unlink(missing_ok=True)


def _maps_path(path: Path, part: str) -> Path:
    return path.with_suffix(f".{part}.safetensors")


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _write(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    # written under a temporary name, then renamed
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.tmp")
    try:
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, temporary, about)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(path: Path, kind: Asked, stages: str) -> _Answer | None:
    """Read the answer at a path; None if there is none, or it lacks the requested maps."""
    files = [path]
    if kind != "feature":
        # the stages' maps include the map
        places = [_maps_path(path, part) for part in ([stages] if kind == "stages" else [kind, stages])]
        files.append(next((place for place in places if place.exists()), places[0]))
    if not all(each.exists() for each in files):
        return None
    tensors: dict[str, Tensor] = {}
    about: dict[str, str] = {}
    try:
        for each in files:
            with safe_open(each, framework="pt") as file:
                about |= file.metadata()
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        feature, logits = (tensors.pop(name).to(getattr(torch, about[name])) for name in _TENSORS)
        maps = [tensors[str(number)] for number in range(len(tensors))]
        given = getattr(torch, about["maps"]) if maps else feature.dtype
        maps = maps[:1] if kind == "map" else maps
        return _Answer(feature, logits, maps, given, float(about["seconds"]))
    except (OSError, SafetensorError, KeyError, ValueError):
        # deleted or damaged: compute it again
        return None


def _size(root: Path) -> int:
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total
