"""Export a finished student: ONNX, torch.export, timm or plain safetensors.

Every file is written under a temporary name, checked against PyTorch, and only then renamed.
"""

from gendd.deploy.export.exporter import Exported, export
from gendd.deploy.export.formats import Format, formats
from gendd.deploy.export.int8 import Quantized

__all__ = ["Exported", "Format", "Quantized", "export", "formats"]
