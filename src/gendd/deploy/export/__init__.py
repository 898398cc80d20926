"""A finished student as a file that runs elsewhere: ONNX, torch.export, timm or plain safetensors.

Every file is written under another name, checked against PyTorch, and only then takes its own.
"""

from gendd.deploy.export.exporter import FORMATS, Exported, Format, export
from gendd.deploy.export.int8 import Quantized

__all__ = ["FORMATS", "Exported", "Format", "Quantized", "export"]
