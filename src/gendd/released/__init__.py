"""The authors' released code: its checkpoints as students and runs, and its numbers reproduced."""

from gendd.released.importing import import_released

__all__ = ["import_released"]
