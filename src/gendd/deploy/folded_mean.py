"""The deployed mean readout: everything that does not depend on the image is precomputed.

Shapes: B images · d student feature · D teacher feature · K classes · N tokens · C token width · W head
width.

The readout evaluates the head at one x_t and a single time step. The input layer's output is then a constant,
and so is the first block's norm of it; time and position become a table of N rows; the LayerNorm's scale and
the condition's layer become one Linear; and with few classes, the head's last layer, the features' scale and
the teacher's classifier become one Linear from hidden state to logits.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.diffusion import predicted_x0, time_embedding
from gendd.diffusion.head import Block
from gendd.student.generator import FeatureGenerator

Module = TypeVar("Module", bound=nn.Module)


class Affine(nn.Module):
    """A frozen Linear whose weight is stored as (in, out), which is fast for a single row.

    Args:
        weight: (out, in).
        bias: (out,).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.t().contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(R, in) -> (R, out)."""
        if self.bias is None:
            return torch.mm(x, self.weight)
        return torch.addmm(self.bias, x, self.weight)


class FoldedMean(nn.Module):
    """Student features (B, d) -> logits (B, K): :func:`mean_logits` with its constants folded.

    Args:
        generator: The student's generator.
        classifier: D -> K, applied to the expected feature.
    """

    first_bias: Tensor
    table: Tensor | None

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
        # with a single token the table becomes the condition's bias
        single = len(table) == 1
        self.condition = Affine(head.condition.weight * generator.norm.weight, table[0] if single else None)
        self.register_buffer("table", None if single else table)
        # first block: its normed input is one vector a, so that MLP[0](a (1 + scale) + shift) is linear in y
        start = head.input(generator.mean_input.to(head.input.weight))
        first, *others = (block for block in head.blocks if isinstance(block, Block))
        normed = first.norm(start)
        shift, scale, gate = first.modulation.weight.chunk(3)
        shift_bias, scale_bias, gate_bias = first.modulation.bias.chunk(3)
        inner, outer = first.mlp[0], first.mlp[2]
        assert isinstance(inner, nn.Linear) and isinstance(outer, nn.Linear)
        mixed = normed.unsqueeze(1) * scale + shift
        mixed_bias = normed * (1 + scale_bias) + shift_bias
        layers = [(inner.weight @ mixed, inner.weight @ mixed_bias + inner.bias), (gate, gate_bias)]
        self.first_outer = Affine(outer.weight, outer.bias)
        self.register_buffer("first_bias", start.clone())
        self.blocks = nn.ModuleList()
        for block in others:
            folded, modulation = _fold_block(block)
            self.blocks.append(folded)
            layers += modulation
        self.final, modulation = _fold_output(generator, classifier)
        layers += modulation
        self.estimate = _fold_estimate(generator, classifier) if generator.residual else None
        # all layers that read y are one layer, whose output is split
        self.modulation = Affine(*(torch.cat(parts) for parts in zip(*layers, strict=True)))
        self.sizes = [len(bias) for _, bias in layers]
        self.to(weight.device, weight.dtype)

    def forward(self, features: Tensor) -> Tensor:
        """(B, d) -> (B, K), in the precision of the weights, as for few rows casting them would dominate."""
        if torch.is_autocast_enabled(features.device.type):
            with torch.autocast(features.device.type, enabled=False):
                return self(features)  # type: ignore[no-any-return]
        features = features.to(self.first_bias.dtype)
        y = self.condition(F.layer_norm(features, features.shape[-1:], eps=self.epsilon))
        if self.table is not None:
            y = (y.unsqueeze(1) + self.table).flatten(0, 1)
        y = F.silu(y)
        inner, gate, *rest = torch.split(self.modulation(y), self.sizes, dim=-1)
        x = torch.addcmul(self.first_bias, gate, self.first_outer(F.silu(inner)))
        for number, block in enumerate(self.blocks):
            x = block(x, *rest[3 * number : 3 * number + 3])
        logits: Tensor = self.final(x, y, *rest[3 * len(self.blocks) :])
        return logits if self.estimate is None else logits + self.estimate(features)


class FoldedBlock(nn.Module):
    """A block of the head with its norm folded into its modulation: (R, W) and three of (R, W) -> (R, W)."""

    def __init__(self, inner: Affine, outer: Affine, epsilon: float) -> None:
        super().__init__()
        self.inner, self.outer, self.epsilon = inner, outer, epsilon

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:], eps=self.epsilon)
        hidden = F.silu(self.inner(torch.addcmul(shift, normed, scale)))
        return torch.addcmul(x, gate, self.outer(hidden))


class FoldedOutput(nn.Module):
    """Hidden states, y and its modulation, (B · N, W) each -> logits (B, K).

    Args:
        output: Hidden states -> tokens (B · N, C); None if it is merged with the classifier.
        classifier: All tokens, or all hidden states and y, -> logits.
        tokens: N.
    """

    def __init__(self, output: Affine | None, classifier: Affine, tokens: int) -> None:
        super().__init__()
        self.output, self.classifier, self.tokens = output, classifier, tokens

    def forward(self, x: Tensor, y: Tensor, *modulation: Tensor) -> Tensor:
        """(B · N, W), (B · N, W), then scale, or shift and scale, (B · N, W) -> (B, K)."""
        hidden = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        if self.output is None:
            hidden = torch.cat([hidden * modulation[0], y], dim=-1)
        else:
            shift, scale = modulation
            hidden = self.output(torch.addcmul(shift, hidden, scale))
        if self.tokens > 1:
            hidden = hidden.reshape(-1, self.tokens * hidden.shape[-1])
        logits: Tensor = self.classifier(hidden)
        return logits


def _fold_block(block: Block) -> tuple[FoldedBlock, list[tuple[Tensor, Tensor]]]:
    """Return a block without its modulation, and weights and biases of its shift, scale and gate.

    With LN weight w and bias b: (n w + b)(1 + scale) + shift = n · w (1 + scale) + b (1 + scale) + shift.
    """
    shift, scale, gate = block.modulation.weight.chunk(3)
    shift_bias, scale_bias, gate_bias = block.modulation.bias.chunk(3)
    weight, bias = block.norm.weight, block.norm.bias
    modulation = [
        (shift + bias.unsqueeze(1) * scale, shift_bias + bias * (1 + scale_bias)),
        (weight.unsqueeze(1) * scale, weight * (1 + scale_bias)),
        (gate, gate_bias),
    ]
    inner, outer = block.mlp[0], block.mlp[2]
    assert isinstance(inner, nn.Linear) and isinstance(outer, nn.Linear)
    layers = Affine(inner.weight, inner.bias), Affine(outer.weight, outer.bias)
    return FoldedBlock(*layers, block.norm.eps), modulation


def _fold_output(
    generator: FeatureGenerator, classifier: nn.Linear
) -> tuple[FoldedOutput, list[tuple[Tensor, Tensor]]]:
    """Fold final layer, scale and classifier; also return weights and biases of the modulation it takes.

    Args:
        generator: In float64 on the CPU, like the classifier.
        classifier: D -> K.
    """
    head, width, tokens = generator.head, generator.head.condition.out_features, generator.num_tokens
    shift, scale = head.final_modulation.weight.chunk(2)
    shift_bias, scale_bias = head.final_modulation.bias.chunk(2)
    # x̂_0 = factor · output, without the share of x_t
    t = torch.tensor([generator.mean_time])
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    factor = float(predicted_x0(one, zero, t, generator.schedule, generator.prediction))
    channels = generator.token_width
    output = factor * head.final.weight[:channels]
    output_bias = factor * head.final.bias[:channels]
    classes = classifier.out_features
    # the classifier acts on unscaled features without padded channels
    weight = classifier.weight * generator.feature_scale
    padded = F.pad(weight, (0, tokens * channels - weight.shape[1]))
    by_token = padded.reshape(classes, tokens, channels)
    bias = classifier.weight @ generator.feature_mean
    if classifier.bias is not None:
        bias = bias + classifier.bias
    bias = bias + (by_token @ output_bias).sum(1)
    # multiply-adds per token: of scale and classifier, or of scale, shift, output and classifier
    together, apart = width**2 + 2 * classes * width, 2 * width**2 + (width + classes) * channels
    if together < apart:
        # logits = Σ_n P_n (LN(x_n) (1 + scale y_n) + shift y_n), P_n (K, W)
        matrix = (by_token @ output).transpose(0, 1)
        bias = bias + (matrix @ shift_bias).sum(0)
        joined = torch.cat([matrix, matrix @ shift], dim=-1).transpose(0, 1).reshape(classes, -1)
        return FoldedOutput(None, Affine(joined, bias), tokens), [(scale, scale_bias + 1)]
    modulation = [(shift, shift_bias), (scale, scale_bias + 1)]
    return FoldedOutput(Affine(output, None), Affine(padded, bias), tokens), modulation


def _fold_estimate(generator: FeatureGenerator, classifier: nn.Linear) -> Affine:
    """Return the layer from student features (B, D) to the logits added by the student's own estimate.

    x̂_0 is rescaled to f̂ = x̂_0 scale + mean; (1-ᾱ) of the standardised estimate adds (1-ᾱ)(s - mean) to it.
    """
    share = 1 - generator.schedule.value("alphas_cumprod", generator.mean_time)
    weight = share * classifier.weight
    return Affine(weight, -(weight @ generator.feature_mean))


@torch.no_grad()
def savings(generator: FeatureGenerator, classifier: nn.Linear) -> dict[str, int]:
    """Return the multiply-adds per image that each fold saves in :func:`gendd.student.readout.mean_logits`.

    Scales merged into a neighbouring layer (the LayerNorm's, the features' statistics) count as none.
    """
    head, tokens = generator.head, generator.num_tokens
    width, channels = head.condition.out_features, generator.token_width
    output, modulation = _fold_output(_exact(generator), _exact(classifier))
    plain = tokens * (_weights(head.final_modulation) + _weights(head.final)) + _weights(classifier)
    # the estimate has its own classifier
    plain -= _weights(classifier) if generator.residual else 0
    # its classifier runs once per image, the rest once per token
    by_token = sum(weight.numel() for weight, _ in modulation)
    by_token += 0 if output.output is None else _weights(output.output)
    folded = tokens * by_token + _weights(output.classifier)
    return {
        "time embedding": _weights(head.time),
        "input layer": channels * width,
        # shift and scale of a constant vector are merged into the next layer
        "first block's shift and scale": tokens * 2 * width**2,
        "final layer and classifier": plain - folded,
    }


def _exact(module: Module) -> Module:
    """Copy a module to the CPU in float64, which autocast does not affect."""
    return copy.deepcopy(module).cpu().double()


def _weights(module: nn.Module) -> int:
    """Return the multiply-adds per row of all linear layers of a module."""
    layers = (layer for layer in module.modules() if isinstance(layer, (nn.Linear, Affine)))
    return sum(layer.weight.numel() for layer in layers)
