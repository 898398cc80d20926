"""Sections ``teacher`` and ``student``: a network and where its weights come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gendd.config.checks import POSITIVE_INTEGER, Rule, at_most, check_section, or_null

_RULES = {
    "classes": or_null(POSITIVE_INTEGER),
    "std": Rule(lambda value: value is None or all(each > 0 for each in value), "positive numbers"),
    "input_size": or_null(at_most(16_384, POSITIVE_INTEGER)),
    "channels": or_null(POSITIVE_INTEGER),
}


@dataclass
class ModelConfig:
    """A network and where its weights come from.

    Args:
        name: ``cifar/NAME``, ``timm/NAME`` or ``torchvision/NAME`` (``gendd models`` lists them); ``hf/ID``
            of transformers (a local folder as ``hf/./FOLDER`` or ``hf//FOLDER``), or
            ``path/to/file.py:factory``, a function that returns a network. The folder of a run stands for its
            student, with its weights.
        weights: A .safetensors file (``gendd:PATH``: one in gendd's own folder), a state dict saved by torch,
            or a run folder; null for random weights. For a student with other classes than the file's,
            everything but the classifier is loaded, and the classifier is new.
        pretrained: Load the library's pretrained weights; for a network from a Python file: it comes trained.
        mean: Per-channel mean for normalising the network's input, for images in [0, 1]; null: the network's
            own (timm, torchvision, hf), 0 for a network from a Python file, else 0.5.
        std: Per-channel standard deviation, likewise; null: the network's own, 1 for a network from a Python
            file, else 0.25.
        feature: Dotted name of the module that gives the feature: a Linear layer, which is the classifier and
            whose input is the feature, or any other module, whose pooled output is the feature (``NAME[0]``:
            its first token); ``output``: the network's own output; null: the input of the classifier,
            which is found automatically.
        classifier: Use the network's classifier; false: an embedding teacher, which gives features only.
        classes: Number of classes of a teacher whose weights have other classes than the data; null: as many
            as its weights have. A student's follow from the data and the teacher.
        input_size: Side in pixels that images are resized to for this network; null: the size of the data,
            or the only size that the network takes.
        channels: Input channels of the network, to convert images of 1 or 3 channels to 3 or 1; null: the
            data's, if the network can be built with them.
        dtype: Weights and arithmetic of the frozen teacher: ``fp32`` or ``bf16``.
        compile: Compile the frozen teacher.
        license: Licence of the teacher's weights, or of the finished student, for the model card; null: the
            one given by timm for its pretrained weights, or by a run for its student.
    """

    name: str = "cifar/resnet8"
    weights: str | None = None
    pretrained: bool = False
    mean: list[float] | None = None
    std: list[float] | None = None
    feature: str | None = None
    classifier: bool = True
    classes: int | None = None
    input_size: int | None = None
    channels: int | None = None
    dtype: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    license: str | None = None

    def __post_init__(self) -> None:
        check_section(self, "", _RULES)
