from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gendd.diffusion import Head, cosine_schedule, diffusion_loss, time_embedding


def inputs(rows: int = 7, channels: int = 4, condition: int = 6, tokens: int = 3) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, channels, generator=random),
        torch.randint(0, 1000, (rows,), generator=random),
        torch.randn(rows, condition, generator=random),
        torch.randint(0, tokens, (rows,), generator=random),
    )


def head(zero_init: bool = False, out_channels: int | None = None, depth: int = 2) -> Head:
    torch.manual_seed(0)
    return Head(4, 6, 3, width=16, depth=depth, out_channels=out_channels, zero_init=zero_init)


def test_time_embedding_is_cosines_then_sines_of_geometric_frequencies() -> None:
    embedding = time_embedding(torch.tensor([0, 1, 7, 999]))
    assert embedding.shape == (4, 256) and embedding.dtype == torch.float32
    assert torch.equal(embedding[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    for row, t in enumerate([0, 1, 7, 999]):
        for i in (0, 1, 64, 127):
            angle = t * 10_000.0 ** (-i / 128)
            assert float(embedding[row, i]) == pytest.approx(math.cos(angle), abs=2e-4)
            assert float(embedding[row, 128 + i]) == pytest.approx(math.sin(angle), abs=2e-4)


def test_output_is_the_published_formula() -> None:
    model = head(out_channels=8, depth=1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, t, condition, token = inputs()

    def norm(values: Tensor) -> Tensor:
        centred = values - values.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def silu(values: Tensor) -> Tensor:
        return values / (1 + torch.exp(-values))

    state = model.state_dict()

    def linear(name: str, values: Tensor) -> Tensor:
        return values @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    y = linear("time.2", silu(linear("time.0", time_embedding(t))))
    y = silu(y + linear("condition", condition) + state["position.weight"][token])
    h = linear("input", x)
    shift, scale, gate = linear("blocks.0.modulation", y).split(16, -1)
    inner = norm(h) * state["blocks.0.norm.weight"] + state["blocks.0.norm.bias"]
    inner = inner * (1 + scale) + shift
    h = h + gate * linear("blocks.0.mlp.2", silu(linear("blocks.0.mlp.0", inner)))
    shift, scale = linear("final_modulation", y).split(16, -1)
    expected = linear("final", norm(h) * (1 + scale) + shift)
    torch.testing.assert_close(model(x, t, condition, token), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("out_channels", [None, 4, 8])
def test_a_zero_initialised_head_outputs_zeros_of_the_asked_width(out_channels: int | None) -> None:
    out = head(True, out_channels)(*inputs())
    assert torch.equal(out, torch.zeros(7, out_channels or 8))


def test_the_condition_has_a_gradient_only_without_zero_initialisation() -> None:
    for zero_init in (True, False):
        x, t, condition, token = inputs()
        condition.requires_grad_(True)
        out = head(zero_init)(x, t, condition, token)
        (gradient,) = torch.autograd.grad(out.square().sum() + out.sum(), condition)
        assert bool((gradient != 0).any()) is not zero_init


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = Head(8, 12, 5, width=64, depth=2, zero_init=True)
    for layer in (model.time[0], model.time[2]):
        assert isinstance(layer, nn.Linear)
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
    bound = math.sqrt(6 / (12 + 64))
    assert 0.95 * bound < float(model.condition.weight.detach().abs().max()) <= bound
    assert not model.condition.bias.any()
    for block in model.blocks:
        assert not block.modulation.weight.any()
        assert block.mlp[0].weight.any()
    bounded = Head(8, 12, 5, width=64, depth=2, zero_init=False).final.weight.detach().abs().max()
    assert 0.9 * math.sqrt(6 / (64 + 16)) < float(bounded) <= math.sqrt(6 / (64 + 16))


def test_each_input_matters_and_rows_are_independent() -> None:
    model = head().eval()
    x, t, condition, token = inputs()
    base = model(x, t, condition, token)
    changed = {
        "x": (x + 1, t, condition, token),
        "t": (x, (t + 300) % 1000, condition, token),
        "condition": (x, t, condition.flip(0) + 1, token),
        "token": (x, t, condition, (token + 1) % 3),
    }
    for name, values in changed.items():
        assert (model(*values) - base).abs().amax(-1).min() > 1e-4, name
    torch.testing.assert_close(
        model(*(values[2:5] for values in (x, t, condition, token))), base[2:5], rtol=1e-5, atol=1e-5
    )


def test_bf16_autocast_computes_in_bf16_and_the_loss_in_float32() -> None:
    model = head()
    x, t, condition, token = inputs()
    exact = model(x, t, condition, token)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x, t, condition, token)
        rows = diffusion_loss(out, x, x, t, x, cosine_schedule())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1)
    assert rows.mse.dtype == torch.float32
    assert rows.vlb is not None and rows.vlb.dtype == torch.float32
