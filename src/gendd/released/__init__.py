"""The authors' released code: import of its checkpoints, and reproduction of its numbers."""

from gendd.released.importing import import_released

__all__ = ["import_released"]
