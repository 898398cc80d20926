"""A finished student as a file that runs elsewhere: ONNX, torch.export, timm or plain safetensors.

Every file is written under another name, checked against PyTorch, and only then takes its own.
"""

from gendd.deploy.export.exporter import Exported, export
from gendd.deploy.export.formats import Format, formats
from gendd.deploy.export.int8 import Quantized

__all__ = ["Exported", "Format", "Quantized", "export", "formats"]
