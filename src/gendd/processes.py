"""Distributed training: ranks and collective operations.

All processes run the same program. Only the first one writes files and prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

T = TypeVar("T")


def launched_size() -> int:
    """Number of processes started by torchrun, PyTorchJob, srun or the first process."""
    if by_slurm():
        return int(os.environ["SLURM_STEP_NUM_TASKS"])
    return int(os.environ["WORLD_SIZE"]) if _told() else 1


def launched_rank() -> int:
    """Rank of this process among those launched."""
    if by_slurm():
        return int(os.environ["SLURM_PROCID"])
    return int(os.environ["RANK"]) if _told() else 0


def by_slurm() -> bool:
    """Whether srun started several processes; False if each of them was started by torchrun."""
    return not _told() and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def _told() -> bool:
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def rank() -> int:
    """Rank of this process, from 0."""
    from torch import distributed

    return distributed.get_rank() if _joined() else 0


def world_size() -> int:
    """Number of processes."""
    from torch import distributed

    return distributed.get_world_size() if _joined() else 1


def is_first() -> bool:
    """Whether this is the first process, which writes files."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes reach this point."""
    any_of(False)


def any_of(value: bool) -> bool:
    """Whether a value is true in any process; reduced on the CPU, so that no device waits."""
    if world_size() == 1:
        return value
    import torch

    flag = torch.tensor(int(value))
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


def from_first(make: Callable[[], T]) -> T:
    """Call ``make`` in the first process, return its result in all; if it fails, the others exit silently."""
    if world_size() == 1:
        return make()
    from torch import distributed

    # whether it succeeded, and the result
    outcome: list[Any] = [False, None]
    try:
        if is_first():
            outcome = [True, make()]
    finally:
        distributed.broadcast_object_list(outcome, src=0)
    if not outcome[0]:
        raise SystemExit(2)
    return outcome[1]  # type: ignore[no-any-return]


def first_then_all(make: Callable[[], T]) -> T:
    """Call ``make`` in the first process, then in the others, which find what the first one downloaded."""
    if is_first():
        found: list[T] = []
        from_first(lambda: found.append(make()))
        return found[0]
    from_first(lambda: None)
    return make()


def same_state(module: Module) -> None:
    """Broadcast a module's parameters and buffers from the first process."""
    if world_size() == 1:
        return
    from torch import distributed

    for value in module.state_dict().values():
        distributed.broadcast(value, src=0)


def total(counts: Tensor) -> Tensor:
    """Sum counts over the processes; returned on their original device."""
    if world_size() == 1:
        return counts
    from torch import distributed

    summed = counts.cpu()
    distributed.all_reduce(summed)
    return summed.to(counts.device)


def in_turn(rows: list[Tensor]) -> list[Tensor]:
    """Gather all processes' tensors on the CPU, interleaved: the first of each, the second of each, …"""
    if world_size() == 1:
        return rows
    from torch import distributed

    found: list[list[Tensor]] = [[] for _ in range(world_size())]
    distributed.all_gather_object(found, rows)
    most = max(map(len, found))
    return [each[index] for index in range(most) for each in found if index < len(each)]


def share(count: int, rank: int, world_size: int) -> Tensor:
    """Indices of one process's share of a batch of ``count``, ascending int64 (count // world_size,).

    An index and its mirror image count - 1 - index belong to the same process, so that mixing a batch with
    itself in reverse order needs no images of other processes (except for the middle one of an odd share).
    """
    import torch

    size = count // world_size
    half = size // 2
    front = torch.arange(rank * half, (rank + 1) * half)
    middle = torch.arange(world_size * half + rank, world_size * half + rank + size % 2)
    return torch.cat([front, middle, world_size * size - 1 - front.flip(0)])


def _joined() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()
