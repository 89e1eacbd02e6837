"""Rows N34 and N35: advantages, whitening, groups and KL estimates against loops and closed forms in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from llamafactory.ops.advantages import (
    clipped_surrogate,
    clipped_value_loss,
    generalized_advantages,
    group_advantages,
    kl_estimates,
    length_mean_log_ratios,
    sums_by_sequence,
    whiten,
)


def gae_by_hand(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The definition: the sum over all later steps, each discounted, without any recursion."""
    length = len(rewards)
    ahead = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * ahead[t] - values[t] for t in range(length)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_n34_advantages_equal_the_definition_whatever_stands_in_the_padding(
    lengths: list[int], gamma: float, lam: float, pads_left: bool
):
    generator = torch.Generator().manual_seed(len(lengths))
    width = max(lengths) + 2
    shape = (len(lengths), width)
    rewards, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, length in enumerate(lengths):
        start = width - length if pads_left else 0
        mask[row, start : start + length] = True
    found = generalized_advantages(rewards, values, mask, gamma=gamma, lam=lam)
    for row in range(len(lengths)):
        kept = mask[row]
        expected = gae_by_hand(rewards[row, kept].tolist(), values[row, kept].tolist(), gamma, lam)
        assert_close(found[row, kept], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
        assert not found[row, ~kept].any()


def test_with_lambda_one_an_advantage_is_the_return_minus_the_value():
    rewards, values = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.5, -1.0, 3.0]])
    found = generalized_advantages(rewards, values, torch.ones(1, 3), gamma=1.0, lam=1.0)
    assert_close(found, torch.tensor([[3.0 - 0.5, 3.0 + 1.0, 2.0 - 3.0]]))


def test_n34_whitening_looks_at_real_tokens_only():
    values = torch.tensor([[1.0, 2.0, 99.0], [4.0, -77.0, -77.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    real = torch.tensor([1.0, 2.0, 4.0])
    expected = (real - real.mean()) / real.std()
    assert_close(whiten(values, mask)[mask], expected, rtol=1e-5, atol=1e-6)
    assert not whiten(values, mask)[~mask].any()
    assert_close(whiten(values, mask, shift_mean=False)[mask], expected + real.mean(), rtol=1e-5, atol=1e-6)
    assert whiten(torch.tensor([3.0])).tolist() == [0.0]
    assert whiten(torch.full((4,), 0.1)).abs().max() < 1e-3


def test_n35_a_group_of_equal_rewards_has_advantage_zero_and_not_nan():
    rewards = torch.tensor([0.1, 0.1, 0.1, 1.0, 0.0, 0.5])
    found = group_advantages(rewards, 3)
    assert found[:3].tolist() == [0.0, 0.0, 0.0]
    assert_close(found[3:], (rewards[3:] - 0.5) / rewards[3:].std())
    assert_close(group_advantages(rewards, 3, scale=False)[3:], torch.tensor([0.5, -0.5, 0.0]))
    assert group_advantages(torch.tensor([2.0, 5.0]), 1).tolist() == [0.0, 0.0]
    assert group_advantages(torch.full((3,), 1e30), 3).tolist() == [0.0, 0.0, 0.0]


def test_kl_estimates_equal_their_formulas_and_their_means_the_true_kl():
    p, q = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    true_kl = (p * (p / q).log()).sum()
    for name in ("k1", "k3"):
        assert_close((p * kl_estimates(p.log(), q.log(), name)).sum(), true_kl)
    k3 = kl_estimates(p.log(), q.log())
    assert (k3 >= 0).all()
    assert_close(k3, q / p - 1 - (q / p).log())
    assert_close(kl_estimates(p.log(), q.log(), "k2"), (p / q).log().square() / 2)
    assert kl_estimates(p.log(), p.log()).abs().max() == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "is_clipped"),
    [(1.5, 1.0, -1.28, 1.0), (1.5, -1.0, 1.5, 0.0), (0.5, 1.0, -0.5, 0.0), (0.5, -1.0, 0.8, 1.0), (1.1, 2.0, -2.2, 0)],
)
def test_the_surrogate_is_clipped_on_the_side_that_would_gain(
    ratio: float, advantage: float, loss: float, is_clipped: float
):
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
    found, clipped = clipped_surrogate(log_ratio, torch.tensor([advantage]), 0.2, 0.28)
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert clipped.item() == is_clipped
    found.backward()
    expected = 0.0 if is_clipped else -ratio * advantage
    assert log_ratio.grad is not None
    assert log_ratio.grad.item() == pytest.approx(expected, abs=1e-6)


def test_the_value_loss_takes_the_worse_of_free_and_bounded_values():
    values, old, returns = torch.tensor([1.0, 0.05, -1.0]), torch.zeros(3), torch.tensor([1.0, 1.0, 1.0])
    loss, clipped = clipped_value_loss(values, old, returns, 0.2)
    assert_close(loss, 0.5 * torch.tensor([0.8**2, 0.95**2, 2.0**2]))
    assert clipped.tolist() == [1.0, 0.0, 0.0]


def test_tokens_are_added_up_by_sequence():
    values, sequences = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 0, 2, 0])
    assert sums_by_sequence(values, sequences, 3).tolist() == [7.0, 0.0, 3.0]
    assert_close(length_mean_log_ratios(values, sequences, torch.tensor([3, 0, 1])), torch.tensor([7 / 3, 0.0, 3.0]))
