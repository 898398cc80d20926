"""Training with weights, gradients and optimiser states sharded over the processes (FSDP).

Every process trains on its own images, as with DDP, but holds only a shard of each weight. A unit, usually a
block of the network, is gathered when it runs and freed afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from gendd.methods import Method
from gendd.models import Backbone, Frozen
from gendd.processes import same_state, world_size
from gendd.training.strategies import Replicated

# a unit holds at most this fraction of a network's parameters, if it can be split
_LARGEST_UNIT = 1 / 8


class Sharded(Replicated):
    """Lightning strategy for a method with sharded weights, including the teacher's.

    During training a sharded copy replaces the method. Checkpoints hold full tensors, as without sharding.
    """

    def configure_ddp(self) -> None:
        """Shard the method, once it is on the device."""
        module: Any = self.lightning_module
        module.method = shard(module.method, self.root_device)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """State dict with full tensors, on the CPU."""
        assert self.lightning_module is not None
        return {name: _whole(value) for name, value in self.lightning_module.state_dict().items()}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Optimiser state with full tensors, on the CPU."""
        state: dict[str, Any] = dict(super().optimizer_state(optimizer))
        values = {
            number: {name: _whole(value) for name, value in kept.items()}
            for number, kept in state["state"].items()
        }
        return state | {"state": values}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the optimiser states of a checkpoint, sharding their tensors."""
        for optimiser, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [each for group in optimiser.param_groups for each in group["params"]]
            values = {
                number: {name: _like(value, parameters[number]) for name, value in kept.items()}
                for number, kept in state["state"].items()
            }
            optimiser.load_state_dict(state | {"state": values})


def shard(method: Method, device: torch.device) -> Method:
    """Return a sharded copy of a method on ``device``; the method itself is moved to the CPU.

    Its teacher is sharded too. All processes must use it together.
    """
    same_state(method)
    method.to("cpu")
    sharded = copy.deepcopy(method)
    if method.teacher is not None:
        sharded.ask(shard_teacher(method.teacher, device))
    _shard_units(sharded.backbone, device)
    fully_shard(sharded, mesh=_mesh(device))
    for name in ("predict", "diffusion_loss"):
        register_fsdp_forward_method(sharded, name)
    return sharded.to(device)


def shard_teacher(teacher: Frozen, device: torch.device) -> Frozen:
    """Return a copy of a teacher on ``device`` with sharded blocks; its classifier is not sharded."""
    network = copy.deepcopy(teacher.backbone)
    _shard_units(network, device)
    return Frozen(network.to(device), graphs=False)


def _mesh(device: torch.device) -> Any:
    return init_device_mesh(device.type, (world_size(),))


def _shard_units(backbone: Backbone, device: torch.device) -> None:
    kept = {backbone.net.get_submodule(name) for name in backbone.classifier_names}
    largest = _LARGEST_UNIT * sum(value.numel() for value in backbone.net.parameters())
    mesh = _mesh(device)
    for unit in [*_units(backbone.net, kept, largest)]:
        # freed after it ran, even if no enclosing module is sharded
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)


def _units(net: nn.Module, kept: set[nn.Module], largest: float) -> Iterator[nn.Module]:
    """Modules of a network to gather as a unit: those that are called and not too large."""
    for child in net.children():
        count = sum(value.numel() for value in child.parameters())
        if count == 0 or child in kept:
            continue
        # containers may be iterated without being called
        called = type(child).forward is not nn.Module.forward and not isinstance(child, nn.Sequential)
        small = count <= largest or not [*child.children()] or isinstance(child, nn.MultiheadAttention)
        if called and small and kept.isdisjoint(child.modules()):
            yield child
        else:
            yield from _units(child, kept, largest)


def _whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.cpu() if isinstance(value, Tensor) else value


def _like(value: Any, parameter: nn.Parameter) -> Any:
    """Shard a value of an optimiser's state like its parameter."""
    if not isinstance(value, Tensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
