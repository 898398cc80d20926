"""The mean readout as it is deployed: everything that does not depend on the image is computed beforehand.

Shapes: B images · d student feature · D teacher feature · K classes · N tokens · C token width · W head
width.

The readout asks the head for x_0 at x_t = 0 and one time alone. The input layer is then a constant, and so
is what the first block's norm makes of it; time and position are a table of N rows; the LayerNorm's scale
and the condition's layer are one Linear; and where classes are few, the head's last layer, the features'
scale and the teacher's classifier are one Linear from hidden state to logits.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.diffusion import predicted_x0, time_embedding
from gendd.diffusion.head import Block
from gendd.generator import FeatureGenerator

Module = TypeVar("Module", bound=nn.Module)


class FoldedMean(nn.Module):
    """Student features (B, d) -> logits (B, K): :func:`gendd.readout.mean_logits` with its constants folded.

    Args:
        generator: Of the student.
        classifier: D -> K, which reads the expected feature.
    """

    first_bias: Tensor
    table: Tensor

    @torch.no_grad()
    def __init__(self, generator: FeatureGenerator, classifier: nn.Linear) -> None:
        super().__init__()
        weight = generator.head.condition.weight
        generator, classifier = _exact(generator), _exact(classifier)
        head = generator.head
        self.epsilon = generator.norm.eps
        # y = silu(condition(LayerNorm(s)) + time(t) + position(n))
        t = torch.tensor([generator.mean_time])
        constant = head.time(time_embedding(t).double())[0] + head.condition(generator.norm.bias)
        table = constant + head.position.weight
        # of one token the table is the condition's bias
        self.tokens = len(table)
        self.condition = _linear(
            head.condition.weight * generator.norm.weight, table[0] if self.tokens == 1 else None
        )
        self.register_buffer("table", table)
        # first block: its normed input is one vector a, so that MLP[0](a (1 + scale) + shift) is linear in y
        start = head.input.bias
        first, *others = (block for block in head.blocks if isinstance(block, Block))
        normed = first.norm(start)
        shift, scale, gate = first.modulation.weight.chunk(3)
        shift_bias, scale_bias, gate_bias = first.modulation.bias.chunk(3)
        inner, outer = first.mlp[0], first.mlp[2]
        assert isinstance(inner, nn.Linear) and isinstance(outer, nn.Linear)
        mixed = normed.unsqueeze(1) * scale + shift
        mixed_bias = normed * (1 + scale_bias) + shift_bias
        layers = [(inner.weight @ mixed, inner.weight @ mixed_bias + inner.bias), (gate, gate_bias)]
        self.first_outer = _linear(outer.weight, outer.bias)
        self.register_buffer("first_bias", start.clone())
        self.blocks = nn.ModuleList(FoldedBlock(block) for block in others)
        for block in others:
            ones = torch.tensor([0.0, 1.0, 0.0]).repeat_interleave(len(start))
            layers.append((block.modulation.weight, block.modulation.bias + ones))
        self.final, modulation = _fold_output(generator, classifier)
        layers.append(modulation)
        # whatever reads y is one layer, and split after it
        self.modulation = _linear(*(torch.cat(parts) for parts in zip(*layers, strict=True)))
        self.sizes = [len(bias) for _, bias in layers]
        self.to(weight.device, weight.dtype)

    def forward(self, features: Tensor) -> Tensor:
        """(B, d) -> (B, K), in the precision of the weights: of few rows, casting them would cost most."""
        if torch.is_autocast_enabled(features.device.type):
            with torch.autocast(features.device.type, enabled=False):
                return self(features)  # type: ignore[no-any-return]
        features = features.to(self.condition.weight.dtype)
        y = self.condition(F.layer_norm(features, features.shape[-1:], eps=self.epsilon))
        if self.tokens > 1:
            y = (y.unsqueeze(1) + self.table).flatten(0, 1)
        y = F.silu(y)
        inner, gate, *blocks, last = self.modulation(y).split(self.sizes, dim=-1)
        x = torch.addcmul(self.first_bias, gate, self.first_outer(F.silu(inner)))
        for block, modulation in zip(self.blocks, blocks, strict=True):
            x = block(x, modulation)
        logits: Tensor = self.final(x, y, last)
        return logits


class FoldedBlock(nn.Module):
    """A block of the head whose modulation has 1 + scale for scale: (R, W) and (R, 3 W) -> (R, W)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm, self.mlp = copy.deepcopy(block.norm), copy.deepcopy(block.mlp)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.mlp(torch.addcmul(shift, self.norm(x), scale)))


class FoldedOutput(nn.Module):
    """Hidden states, y and its modulation, (B · N, W) each or more -> logits (B, K).

    Args:
        output: Hidden states -> tokens (B · N, C); None where it is one with the classifier.
        classifier: Of all tokens, or of all hidden states and y, to logits.
        tokens: N.
    """

    def __init__(self, output: nn.Linear | None, classifier: nn.Linear, tokens: int) -> None:
        super().__init__()
        self.output, self.classifier, self.tokens = output, classifier, tokens

    def forward(self, x: Tensor, y: Tensor, modulation: Tensor) -> Tensor:
        """(B · N, W), (B · N, W), (B · N, W or 2 W) -> (B, K)."""
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        if self.output is None:
            hidden = torch.cat([normed * modulation, y], dim=-1)
        else:
            shift, scale = modulation.chunk(2, dim=-1)
            hidden = self.output(torch.addcmul(shift, normed, scale))
        if self.tokens > 1:
            hidden = hidden.reshape(-1, self.tokens * hidden.shape[-1])
        logits: Tensor = self.classifier(hidden)
        return logits


def _fold_output(
    generator: FeatureGenerator, classifier: nn.Linear
) -> tuple[FoldedOutput, tuple[Tensor, Tensor]]:
    """Final layer, scale and classifier, and weight and bias of the modulation that it takes.

    Args:
        generator: In float64 on the CPU, like the classifier.
        classifier: D -> K.
    """
    head, width, tokens = generator.head, generator.head.condition.out_features, generator.num_tokens
    shift, scale = head.final_modulation.weight.chunk(2)
    shift_bias, scale_bias = head.final_modulation.bias.chunk(2)
    # x̂_0 = factor · output at x_t = 0
    t = torch.tensor([generator.mean_time])
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    factor = float(predicted_x0(one, zero, t, generator.schedule, generator.prediction))
    channels = generator.token_width
    output = factor * head.final.weight[:channels]
    output_bias = factor * head.final.bias[:channels]
    classes = classifier.out_features
    # the classifier acts on features of their own scale, of which padded channels are none
    weight = classifier.weight * generator.feature_scale
    padded = F.pad(weight, (0, tokens * channels - weight.shape[1]))
    by_token = padded.reshape(classes, tokens, channels)
    bias = classifier.weight @ generator.feature_mean
    if classifier.bias is not None:
        bias = bias + classifier.bias
    bias = bias + (by_token @ output_bias).sum(1)
    # multiply-adds a token: of scale and classifier, or of scale, shift, output and classifier
    together, apart = width**2 + 2 * classes * width, 2 * width**2 + (width + classes) * channels
    if together < apart:
        # logits = Σ_n P_n (LN(x_n) (1 + scale y_n) + shift y_n), P_n (K, W)
        matrix = (by_token @ output).transpose(0, 1)
        bias = bias + (matrix @ shift_bias).sum(0)
        joined = torch.cat([matrix, matrix @ shift], dim=-1).transpose(0, 1).reshape(classes, -1)
        return FoldedOutput(None, _linear(joined, bias), tokens), (scale, scale_bias + 1)
    modulation = torch.cat([shift, scale]), torch.cat([shift_bias, scale_bias + 1])
    return FoldedOutput(_linear(output, None), _linear(padded, bias), tokens), modulation


@torch.no_grad()
def savings(generator: FeatureGenerator, classifier: nn.Linear) -> dict[str, int]:
    """Multiply-adds that each fold takes from one image's :func:`gendd.readout.mean_logits`.

    Scales that become part of a layer beside them (the LayerNorm's, the features' statistics) cost none.
    """
    head, tokens = generator.head, generator.num_tokens
    width, channels = head.condition.out_features, generator.token_width
    output, (modulation, _) = _fold_output(_exact(generator), _exact(classifier))
    plain = tokens * (_weights(head.final_modulation) + _weights(head.final)) + _weights(classifier)
    # its classifier runs once an image, the rest once a token
    by_token = modulation.numel() + (0 if output.output is None else _weights(output.output))
    folded = tokens * by_token + _weights(output.classifier)
    return {
        "time embedding": _weights(head.time),
        "input layer": channels * width,
        # shift and scale of a constant vector are part of the layer that follows
        "first block's shift and scale": tokens * 2 * width**2,
        "final layer and classifier": plain - folded,
    }


def _exact(module: Module) -> Module:
    """A copy on the CPU in float64, in which autocast changes nothing."""
    return copy.deepcopy(module).cpu().double()


def _weights(module: nn.Module) -> int:
    """Multiply-adds of a row through all linear layers of a module."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A frozen layer of given weights."""
    layer: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype
    )
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer.requires_grad_(False)
