"""A frozen backbone.

Shapes: B images, C channels, D feature width, K classes, E channels of the feature map.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gendd.models.backbone import Backbone
from gendd.models.compiled import Compiled
from gendd.models.graphs import GraphedPasses
from gendd.models.maps import Stages

# requested outputs: the feature and logits; also the last feature map; also the maps of the stages
Asked = Literal["feature", "map", "stages"]


class Frozen(nn.Module):
    """A frozen backbone: always in eval mode, even after ``train()``, and without gradients.

    The backbone is frozen in place. Its outputs are constants that may be used in an autograd graph. On
    CUDA a forward pass is captured as a CUDA graph when its input shape is seen for the third time.

    Args:
        backbone: The backbone to freeze.
        dtype: Type of its weights and arithmetic, see :meth:`Backbone.compute_in`; None: unchanged.
        compile: Compile the network at its first use; if that fails, it runs uncompiled, with a warning.
        graphs: Use CUDA graphs.

    Attributes:
        stages: The stage maps that teachers which store their outputs store and return, see
            :meth:`Backbone.with_stages`.
    """

    stages: Stages = None

    def __init__(
        self,
        backbone: Backbone,
        *,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        graphs: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        if dtype is not None and dtype != torch.float32:
            backbone.compute_in(dtype)
        self.eval()
        self._passes = GraphedPasses(graphs)
        # the view of a network that stays in eval mode stays valid
        self._compiled: Compiled[[Tensor], Tensor] | None = None
        if compile:
            self._compiled = Compiled(backbone._reader(), backbone.name)

    @property
    def stages_part(self) -> str:
        """Name under which those are stored."""
        if self.stages is None:
            return "stages"
        flags = "".join("t" if thin else "w" for thin in self.stages)
        return f"stages{len(flags)}" + (f"-{flags}" if any(self.stages) else "")

    def digest(self, *more: object) -> str:
        """Digest of everything the outputs depend on: weights, settings, and further values if given."""
        backbone = self.backbone
        settings = sorted(backbone.config().items(), key=str)
        made_of = (settings, backbone.image_size, str(backbone._dtype), *more)
        content = hashlib.blake2b(repr(made_of).encode(), digest_size=8)
        for name, tensor in sorted(backbone.state_dict().items()):
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(bytes_of(tensor))
        return content.hexdigest()

    def train(self, mode: bool = True) -> Frozen:
        """Keep eval mode, so that no BatchNorm statistics change."""
        del mode
        super().train(False)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        # immutable: copies of the methods that use it share it
        return self

    @property
    def has_classifier(self) -> bool:
        """Whether there are logits; False for an embedding network."""
        return self.backbone.has_classifier

    @property
    def classifier(self) -> nn.Linear:
        """The frozen layer from feature (B, D) to logits (B, K); raises like :attr:`Backbone.classifier`."""
        return self.backbone.classifier

    @property
    def feature_dim(self) -> int:
        """D, the width of the feature."""
        return self.backbone.feature_dim

    @property
    def num_classes(self) -> int:
        """K, the number of logits; 0 without a classifier."""
        return self.backbone.num_classes

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> (feature (B, D), logits (B, K)), detached."""
        # not inference_mode, whose tensors can't be saved for a backward pass
        with torch.no_grad():
            if self._compiled is None:
                found: tuple[Tensor, Tensor] = self._passes("feature", self.backbone, images)
                return found
            feature = self.backbone._as_feature(self._compiled(self.backbone.prepare(images)))
            return self.backbone.with_logits(feature)

    def drop_graphs(self) -> None:
        """Free the memory of recorded passes; they are recorded again when needed."""
        self._passes.clear()

    def _apply(self, fn: Any, recurse: bool = True) -> Frozen:
        self.drop_graphs()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def has_map(self) -> bool:
        """See :attr:`Backbone.has_map`."""
        return self.backbone.has_map

    @property
    def map_dim(self) -> int:
        """See :attr:`Backbone.map_dim`."""
        return self.backbone.map_dim

    def with_stages(
        self, images: Tensor, stages: Stages = None
    ) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
        """Like :meth:`with_map`, followed by the finer feature maps of :meth:`Backbone.with_stages`.

        Teachers that store their outputs return the maps that :attr:`stages` names, whatever is asked for.
        """

        def look(images: Tensor) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
            feature, found, maps = self.backbone.with_stages(images, stages)
            return *self.backbone.with_logits(feature), found, maps

        with torch.no_grad():
            return self._passes(f"stages {stages}", look, images)

    def with_map(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images (B, C, H, W) in [0, 1] -> (feature (B, D), logits (B, K), map (B, E, h, w)), detached."""

        def look(images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            feature, found = self.backbone.with_map(images)
            return *self.backbone.with_logits(feature), found

        with torch.no_grad():
            return self._passes("map", look, images)


def bytes_of(tensor: Tensor) -> Any:
    """Raw bytes of a tensor of any type."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
