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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.diffusion import predicted_x0, time_embedding
from gendd.diffusion.head import Block
from gendd.generator import FeatureGenerator


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
        head = generator.head
        self.epsilon = generator.norm.eps
        # y = silu(condition(LayerNorm(s)) + time(t) + position(n))
        t = torch.tensor([generator.mean_time], device=head.condition.weight.device)
        constant = head.time(time_embedding(t))[0] + head.condition(generator.norm.bias)
        self.condition = _linear(head.condition.weight * generator.norm.weight, None)
        self.register_buffer("table", constant + head.position.weight)
        # first block: its normed input is one vector a, so that MLP[0](a (1 + scale) + shift) is linear in y
        start = head.input.bias
        first, *others = (block for block in head.blocks if isinstance(block, Block))
        normed = first.norm(start)
        shift, scale, gate = first.modulation.weight.double().chunk(3)
        shift_bias, scale_bias, gate_bias = first.modulation.bias.double().chunk(3)
        inner, outer = first.mlp[0], first.mlp[2]
        assert isinstance(inner, nn.Linear) and isinstance(outer, nn.Linear)
        mixed = normed.double().unsqueeze(1) * scale + shift
        mixed_bias = normed.double() * (1 + scale_bias) + shift_bias
        weight = torch.cat([inner.weight.double() @ mixed, gate])
        bias = torch.cat([inner.weight.double() @ mixed_bias + inner.bias.double(), gate_bias])
        self.first_inner = _linear(weight, bias)
        self.first_outer = _linear(outer.weight, outer.bias)
        self.register_buffer("first_bias", start.clone())
        self.blocks = nn.ModuleList(copy.deepcopy(others))
        self.final = FoldedOutput(generator, classifier)

    def forward(self, features: Tensor) -> Tensor:
        """(B, d) -> (B, K)."""
        normed = F.layer_norm(features, features.shape[-1:], eps=self.epsilon)
        y = F.silu(self.condition(normed).unsqueeze(1) + self.table)
        inner, gate = self.first_inner(y).chunk(2, dim=-1)
        x = self.first_bias + gate * self.first_outer(F.silu(inner))
        for block in self.blocks:
            assert isinstance(block, Block)
            x = block(x, block.modulation(y))
        logits: Tensor = self.final(x, y)
        return logits


class FoldedOutput(nn.Module):
    """Hidden states and modulation inputs (B, N, W) -> logits (B, K): final layer, scale, classifier.

    Args:
        generator: Of the student.
        classifier: D -> K.
    """

    @torch.no_grad()
    def __init__(self, generator: FeatureGenerator, classifier: nn.Linear) -> None:
        super().__init__()
        head, width, tokens = generator.head, generator.head.condition.out_features, generator.num_tokens
        shift, scale = head.final_modulation.weight.double().chunk(2)
        shift_bias, scale_bias = head.final_modulation.bias.double().chunk(2)
        # x̂_0 = factor · output at x_t = 0
        t = torch.tensor([generator.mean_time])
        one, zero = torch.ones(1, 1), torch.zeros(1, 1)
        factor = float(predicted_x0(one, zero, t, generator.schedule, generator.prediction))
        channels = generator.token_width
        output = factor * head.final.weight[:channels].double()
        output_bias = factor * head.final.bias[:channels].double()
        classes = classifier.out_features
        # the classifier acts on features of their own scale, of which padded channels are none
        weight = classifier.weight.double() * generator.feature_scale.double()
        padded = F.pad(weight, (0, tokens * channels - weight.shape[1]))
        by_token = padded.reshape(classes, tokens, channels)
        bias = classifier.weight.double() @ generator.feature_mean.double()
        if classifier.bias is not None:
            bias = bias + classifier.bias.double()
        bias = bias + (by_token @ output_bias).sum(1)
        # multiply-adds a token: of scale and classifier, or of scale, shift, output and classifier
        together, apart = width**2 + 2 * classes * width, 2 * width**2 + (width + classes) * channels
        self.collapsed = together < apart
        if self.collapsed:
            # logits = Σ_n P_n (LN(x_n) (1 + scale y_n) + shift y_n), P_n (K, W)
            matrix = (by_token @ output).transpose(0, 1)
            self.scale = _linear(scale, scale_bias + 1)
            from_shift = matrix @ shift
            bias = bias + (matrix @ shift_bias).sum(0)
            joined = torch.cat([matrix, from_shift], dim=-1)
            self.classifier = _linear(joined.transpose(0, 1).reshape(classes, -1), bias)
        else:
            self.scale = _linear(torch.cat([shift, scale]), torch.cat([shift_bias, scale_bias + 1]))
            self.output = _linear(output, None)
            self.classifier = _linear(padded, bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, N, W) twice -> (B, K)."""
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        if self.collapsed:
            hidden = torch.cat([normed * self.scale(y), y], dim=-1)
        else:
            shift, scale = self.scale(y).chunk(2, dim=-1)
            hidden = self.output(normed * scale + shift)
        logits: Tensor = self.classifier(hidden.flatten(1))
        return logits


def savings(generator: FeatureGenerator, classifier: nn.Linear) -> dict[str, int]:
    """Multiply-adds that each fold takes from one image's :func:`gendd.readout.mean_logits`.

    Scales that become part of a layer beside them (the LayerNorm's, the features' statistics) cost none.
    """
    head, tokens = generator.head, generator.num_tokens
    width, channels = head.condition.out_features, generator.token_width
    output = FoldedOutput(generator, classifier)
    plain = tokens * (_weights(head.final_modulation) + _weights(head.final)) + _weights(classifier)
    # its classifier runs once an image, the rest once a token
    folded = tokens * (_weights(output) - _weights(output.classifier)) + _weights(output.classifier)
    return {
        "time embedding": _weights(head.time),
        "input layer": channels * width,
        # shift and scale of a constant vector are part of the layer that follows
        "first block's shift and scale": tokens * 2 * width**2,
        "final layer and classifier": plain - folded,
    }


def _weights(module: nn.Module) -> int:
    """Multiply-adds of a row through all linear layers of a module."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A frozen float32 layer of given weights."""
    layer: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device
    )
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer.requires_grad_(False)
