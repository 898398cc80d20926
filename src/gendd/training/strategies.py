"""How processes share a training: Lightning's strategies."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from gendd.config import TrainingConfig
from gendd.processes import world_size


class Replicated(DDPStrategy):
    """Lightning's, whose validation doesn't exchange buffers: processes may have other numbers of batches."""

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """As the plain strategy's, of the module itself."""
        assert self.lightning_module is not None
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*args, **kwargs)


def is_sharded(config: TrainingConfig) -> bool:
    """Whether each process has a part of each weight: none can do anything without the others."""
    return config.strategy == "fsdp" and world_size() > 1


def strategy(config: TrainingConfig, accumulate: int) -> DDPStrategy:
    """The strategy of several processes, for steps of so many batches."""
    if is_sharded(config):
        from gendd.training.sharding import Sharded

        return Sharded()
    # parameters that a method doesn't use: found once, which accumulated gradients don't allow
    once = accumulate == 1
    # buffers are those of the first process before they are read (LightningMethod.on_validation_epoch_start);
    # to send them at every step is one more wait for the slowest
    return Replicated(static_graph=once, find_unused_parameters=not once, broadcast_buffers=False)
