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
            ``path/to/file.py:factory``, a function that returns a network.
        weights: A .safetensors file (``gendd:PATH``: one in gendd's own folder), a state dict saved by torch,
            or a run's folder; null for random weights. Of other classes than a student's it gives all but
            the classifier, which is new.
        pretrained: Take the library's pretrained weights; of a file's network: it comes trained.
        mean: Per-channel mean the network's input is normalised with, for images in [0, 1]; null:
            the network's own (timm, torchvision, hf), 0 for a file's, else 0.5.
        std: Likewise the standard deviation; null: the network's own, 1 for a file's, else 0.25.
        feature: Dotted name of the module where the feature is: a Linear layer, whose input it is and
            which is the classifier, or any other, whose pooled output it is (``NAME[0]``: its first
            token); ``output``: the network's own; null: found, as the input of the classifier.
        classifier: Use the network's classifier; false: a teacher of features alone, an embedding.
        classes: Classes of a teacher whose weights are of other classes than the data's; null: as many as
            its weights have. A student's follow from the data and the teacher.
        input_size: Side in pixels that images are resized to for this network; null: as the data come,
            or the size that the network takes alone.
        channels: The network's channels, where 1 or 3 of the data are to become 3 or 1; null: the
            data's, where the network can be built with them.
        dtype: Weights and arithmetic of the frozen teacher: ``fp32`` or ``bf16``.
        compile: Compile the frozen teacher.
        license: What the model card tells of the teacher's weights, or of the finished student; null: what
            timm tells of its pretrained weights, or a run of its student.
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
