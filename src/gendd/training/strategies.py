"""Lightning strategies for distributed training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from gendd.config import TrainingConfig
from gendd.processes import world_size


class Replicated(DDPStrategy):
    """DDP without buffer exchange in validation, where processes may have different numbers of batches."""

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module itself, as in the non-distributed strategy."""
        assert self.lightning_module is not None
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*args, **kwargs)


def is_sharded(config: TrainingConfig) -> bool:
    """Whether weights are sharded, so that no process can run the networks without the others."""
    return config.strategy == "fsdp" and world_size() > 1


def strategy(config: TrainingConfig, accumulate: int) -> DDPStrategy:
    """Strategy for several processes and steps of ``accumulate`` batches."""
    if is_sharded(config):
        from gendd.training.sharding import Sharded

        return Sharded()
    # a static graph finds unused parameters only once, but does not allow accumulated gradients
    once = accumulate == 1
    # buffers are broadcast before they are read (LightningMethod.on_validation_epoch_start); doing so at
    # every step would be another synchronisation
    return Replicated(static_graph=once, find_unused_parameters=not once, broadcast_buffers=False)
