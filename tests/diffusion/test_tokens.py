from __future__ import annotations

import pytest
import torch

from gendd.diffusion import tokens


def test_hard_labels_become_one_hot_and_soft_labels_pass() -> None:
    hard = tokens.class_probabilities(torch.tensor([2, 0]), 3)
    assert torch.equal(hard, torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    assert hard.dtype == torch.float32
    soft = torch.tensor([[0.25, 0.75, 0.0]])
    assert torch.equal(tokens.class_probabilities(soft, 3), soft)
    assert tokens.class_probabilities(soft.double(), 3).dtype == torch.float32


def test_contraction_by_hand() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    centres = torch.tensor([[10.0, 0.0], [0.0, 20.0]])
    probabilities = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    contracted = tokens.contract(features, probabilities, centres, 0.9)
    torch.testing.assert_close(contracted, torch.tensor([[0.1, 18.2], [4.8, 9.4]]))


def test_contraction_of_strength_zero_keeps_features_and_of_one_gives_the_centres() -> None:
    features, centres = torch.randn(4, 3), torch.randn(5, 3)
    labels = torch.tensor([4, 0, 2, 2])
    probabilities = tokens.class_probabilities(labels, 5)
    assert torch.equal(tokens.contract(features, probabilities, centres, 0.0), features)
    assert torch.equal(tokens.contract(features, probabilities, centres, 1.0), centres[labels])


def test_contraction_scales_the_distance_to_the_centre() -> None:
    features, centres = torch.randn(4, 3), torch.randn(5, 3)
    labels = torch.tensor([4, 0, 2, 2])
    contracted = tokens.contract(features, tokens.class_probabilities(labels, 5), centres, 0.7)
    torch.testing.assert_close(
        (contracted - centres[labels]).norm(dim=1), 0.3 * (features - centres[labels]).norm(dim=1)
    )


def test_mix_by_hand() -> None:
    values = torch.tensor([[1.0], [2.0], [4.0]])
    mixed = tokens.mix(values, 0.75, torch.tensor([2, 0, 1]))
    assert torch.equal(mixed, torch.tensor([[1.75], [1.75], [3.5]]))
    assert torch.equal(tokens.mix(values, torch.tensor(1.0), torch.tensor([2, 0, 1])), values)


def test_token_n_is_the_nth_slice() -> None:
    features = torch.arange(12.0).reshape(2, 6)
    parts = tokens.split(features, 2)
    assert parts.shape == (2, 3, 2)
    for n in range(3):
        assert torch.equal(parts[:, n], features[:, 2 * n : 2 * n + 2])


def test_the_last_token_is_padded_with_zeros() -> None:
    parts = tokens.split(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), 3)
    assert torch.equal(parts, torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]]]))


@pytest.mark.parametrize("width, token, count", [(64, 64, 1), (64, 16, 4), (10, 4, 3), (3, 8, 1), (9, 8, 2)])
def test_merge_inverts_split(width: int, token: int, count: int) -> None:
    features = torch.randn(5, width)
    parts = tokens.split(features, token)
    assert parts.shape == (5, count, token) and tokens.num_tokens(width, token) == count
    assert torch.equal(tokens.merge(parts, width), features)


def test_split_and_merge_keep_leading_dimensions() -> None:
    features = torch.randn(2, 3, 10)
    parts = tokens.split(features, 4)
    assert parts.shape == (2, 3, 3, 4)
    assert torch.equal(tokens.merge(parts, 10), features)


def test_rows_are_repeat_major() -> None:
    repeats, images, count = 3, 4, 2
    values = torch.randn(images, count, 5)
    rows = tokens.repeat_rows(values, repeats)
    assert rows.shape == (24, 5)
    for m in range(repeats):
        for i in range(images):
            for n in range(count):
                row = (m * images + i) * count + n
                assert torch.equal(rows[row], values[i, n])


def test_repeated_rows_sum_their_gradients() -> None:
    values = torch.randn(2, 2, 3, requires_grad=True)
    tokens.repeat_rows(values, 4).sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, torch.full((2, 2, 3), 4.0))
