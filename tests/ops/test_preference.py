"""Row N25: every preference loss and its gradient against a formula written here from its paper, in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from llamafactory.ops.preference import (
    PREFERENCE_LOSSES,
    KtoSettings,
    LossSettings,
    PairLogProbs,
    add_sft,
    bco_pair_loss,
    kto_loss,
    length_desensitized_weights,
    mix_bco,
    sigmoid_loss,
)


BETA, SMOOTHING, GAMMA, DELTA, CHOSEN_KL, REJECTED_KL, TAU = 0.3, 0.1, 0.7, 0.2, 0.4, 0.15, 0.05


def s(value: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-value))


def pairs_of(num_pairs: int = 9, dtype: torch.dtype = torch.float32) -> PairLogProbs:
    generator = torch.Generator().manual_seed(3)
    lengths = [torch.randint(1, 12, (num_pairs,), generator=generator) for _ in range(2)]
    sums = [
        -(0.05 + 2 * torch.rand(num_pairs, generator=generator, dtype=torch.float64)) * lengths[index % 2]
        for index in range(4)
    ]
    return PairLogProbs(*(value.to(dtype) for value in sums), *lengths)


def h(p: PairLogProbs) -> Tensor:
    """DPO's log-ratio margin."""
    return (p.chosen_N - p.reference_chosen_N) - (p.rejected_N - p.reference_rejected_N)


def h_mean(p: PairLogProbs) -> Tensor:
    chosen = (p.chosen_N - p.reference_chosen_N) / p.chosen_lengths_N
    return chosen - (p.rejected_N - p.reference_rejected_N) / p.rejected_lengths_N


def rc(p: PairLogProbs) -> Tensor:
    return p.chosen_N - p.reference_chosen_N


def rr(p: PairLogProbs) -> Tensor:
    return p.rejected_N - p.reference_rejected_N


def exo(p: PairLogProbs) -> Tensor:
    """KL between the softmax over the two ratios and the smoothed labels."""
    share = torch.softmax(torch.stack([BETA * rc(p), BETA * rr(p)]), dim=0)
    labels = torch.tensor([[1 - SMOOTHING], [SMOOTHING]], dtype=torch.float64)
    return (share * (share.log() - labels.log())).sum(0)


def orpo(p: PairLogProbs) -> Tensor:
    chosen, rejected = torch.exp(p.chosen_N / p.chosen_lengths_N), torch.exp(p.rejected_N / p.rejected_lengths_N)
    odds = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
    return -torch.log(chosen) - BETA * torch.log(s(torch.log(odds)))


def simpo(p: PairLogProbs) -> Tensor:
    means = p.chosen_N / p.chosen_lengths_N - p.rejected_N / p.rejected_lengths_N
    return -torch.log(s(BETA * means - GAMMA))


def discopop(p: PairLogProbs) -> Tensor:
    rho = BETA * h(p)
    return (1 - s(rho / TAU)) * torch.log(1 + torch.exp(-rho)) + s(rho / TAU) * torch.exp(-rho)


def robust(p: PairLogProbs) -> Tensor:
    kept, flipped = -torch.log(s(BETA * h(p))), -torch.log(s(-BETA * h(p)))
    return ((1 - SMOOTHING) * kept - SMOOTHING * flipped) / (1 - 2 * SMOOTHING)


def cdpo(margin: Callable[[PairLogProbs], Tensor]) -> Callable[[PairLogProbs], Tensor]:
    return lambda p: -(1 - SMOOTHING) * torch.log(s(BETA * margin(p))) - SMOOTHING * torch.log(1 - s(BETA * margin(p)))


FORMULAS: dict[str, Callable[[PairLogProbs], Tensor]] = {
    "sigmoid": cdpo(h),
    "sigmoid_norm": cdpo(h_mean),
    "hinge": lambda p: torch.clamp(1 - BETA * h(p), min=0),
    "ipo": lambda p: (h_mean(p) - 1 / (2 * BETA)) ** 2,
    "kto_pair": lambda p: (1 - s(BETA * (rc(p) - REJECTED_KL)) + 1 - s(BETA * (CHOSEN_KL - rr(p)))) / 2,
    "orpo": orpo,
    "simpo": simpo,
    "robust": robust,
    "exo_pair": exo,
    "bco_pair": lambda p: -torch.log(s(BETA * rc(p) - DELTA)) - torch.log(s(DELTA - BETA * rr(p))),
    "apo_zero": lambda p: 1 - s(BETA * rc(p)) + s(BETA * rr(p)),
    "apo_down": lambda p: s(BETA * rc(p)) + 1 - s(BETA * h(p)),
    "sppo_hard": lambda p: (rc(p) - 0.5 / BETA) ** 2 + (rr(p) + 0.5 / BETA) ** 2,
    "discopop": discopop,
}


def settings(dtype: torch.dtype = torch.float32) -> LossSettings:
    return LossSettings(
        beta=BETA,
        label_smoothing=SMOOTHING,
        gamma=GAMMA,
        baseline=torch.tensor(DELTA, dtype=dtype),
        chosen_kl=torch.tensor(CHOSEN_KL, dtype=dtype),
        rejected_kl=torch.tensor(REJECTED_KL, dtype=dtype),
    )


def value_and_gradient(function: Any, pairs: PairLogProbs) -> tuple[Tensor, Tensor]:
    chosen, rejected = (value.clone().requires_grad_() for value in pairs[:2])
    losses = function(pairs._replace(chosen_N=chosen, rejected_N=rejected))
    return losses.detach(), torch.stack(torch.autograd.grad(losses.sum(), [chosen, rejected]))


@pytest.mark.parametrize("name", PREFERENCE_LOSSES.names())
def test_n25_a_loss_and_its_gradient_equal_the_formula_of_the_paper(name: str):
    loss = PREFERENCE_LOSSES.get(name)
    exact = pairs_of(dtype=torch.float64)

    expected = value_and_gradient(FORMULAS[name], exact)
    wide = value_and_gradient(lambda pairs: loss.compute(pairs, settings(torch.float64)).losses_N, exact)
    narrow = value_and_gradient(lambda pairs: loss.compute(pairs, settings()).losses_N, pairs_of())

    assert_close(wide, expected, rtol=0, atol=1e-12)
    assert_close(narrow[0].double(), expected[0], rtol=1e-6, atol=1e-6)
    assert_close(narrow[1].double(), expected[1], rtol=1e-6, atol=1e-6)


def test_every_loss_has_a_formula():
    assert set(FORMULAS) == set(PREFERENCE_LOSSES.names())


def test_n26_losses_of_a_policy_that_is_its_reference():
    pairs = pairs_of(dtype=torch.float64)
    same = pairs._replace(reference_chosen_N=pairs.chosen_N, reference_rejected_N=pairs.rejected_N)
    plain = LossSettings(beta=BETA)

    starts = {name: PREFERENCE_LOSSES.get(name).compute(same, plain).losses_N for name in ("sigmoid", "hinge", "ipo")}
    rewards = sigmoid_loss(same, plain)

    assert_close(starts["sigmoid"], torch.full((9,), math.log(2), dtype=torch.float64))
    assert_close(starts["hinge"], torch.ones(9, dtype=torch.float64))
    assert_close(starts["ipo"], torch.full((9,), 1 / (2 * BETA) ** 2, dtype=torch.float64))
    assert not rewards.chosen_rewards_N.any()
    assert not rewards.rejected_rewards_N.requires_grad


@pytest.mark.parametrize("name", ["sigmoid", "simpo", "ipo"])
def test_n25_the_added_sft_term_is_divided_by_the_length_once(name: str):
    pairs = pairs_of(dtype=torch.float64)
    plain = PREFERENCE_LOSSES.get(name).compute(pairs, settings())

    added = add_sft(plain, pairs, 0.5)

    expected = plain.losses_N - 0.5 * pairs.chosen_N / pairs.chosen_lengths_N
    assert_close(added.losses_N, expected)
    assert_close(added.parts["sft_loss"], -pairs.chosen_N / pairs.chosen_lengths_N)


def test_the_bco_mix_is_a_weighted_mean_of_the_two_losses():
    pairs = pairs_of(dtype=torch.float64)
    plain = sigmoid_loss(pairs, settings())

    mixed = mix_bco(plain, pairs, settings(), 0.25)

    expected = (plain.losses_N + 0.25 * bco_pair_loss(pairs, settings()).losses_N) / 1.25
    assert_close(mixed.losses_N, expected)
    assert_close(mixed.chosen_rewards_N, plain.chosen_rewards_N)


def test_rewards_are_what_the_loss_looks_at():
    pairs = pairs_of(dtype=torch.float64)

    sums, means = (PREFERENCE_LOSSES.get(name).compute(pairs, settings()) for name in ("sigmoid", "sigmoid_norm"))
    free = PREFERENCE_LOSSES.get("orpo").compute(pairs, settings())

    assert_close(sums.chosen_rewards_N, BETA * rc(pairs))
    assert_close(means.rejected_rewards_N, BETA * rr(pairs) / pairs.rejected_lengths_N)
    assert_close(free.chosen_rewards_N, BETA * pairs.chosen_N / pairs.chosen_lengths_N)
    assert_close(free.losses_N, free.parts["sft_loss"] + BETA * free.parts["odds_ratio_loss"])


def test_an_answer_that_is_certain_leaves_orpo_finite():
    certain = torch.zeros(1, requires_grad=True)
    pairs = pairs_of(1)._replace(chosen_N=certain)

    losses = PREFERENCE_LOSSES.get("orpo").compute(pairs, settings()).losses_N
    losses.sum().backward()

    assert losses.isfinite().all()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


def test_kto_equals_the_formula_of_the_paper():
    pairs, kl = pairs_of(8, torch.float64), torch.tensor(0.35, dtype=torch.float64)
    is_good = torch.tensor([True, False, False, True, True, False, True, False])
    logps = pairs.chosen_N.clone().requires_grad_()
    expected_logps = pairs.chosen_N.clone().requires_grad_()

    found = kto_loss(
        logps,
        pairs.reference_chosen_N,
        is_good,
        kl,
        KtoSettings(beta=BETA, desirable_weight=1.5, undesirable_weight=0.5),
    )
    found.losses_N.sum().backward()
    reward = BETA * (expected_logps - pairs.reference_chosen_N)
    good, bad = 1.5 * (1 - s(reward - BETA * kl)), 0.5 * (1 - s(BETA * kl - reward))
    expected = torch.where(is_good, good, bad)
    expected.sum().backward()

    assert_close(found.losses_N, expected, rtol=0, atol=1e-12)
    assert_close(logps.grad, expected_logps.grad, rtol=0, atol=1e-12)
    assert_close(found.rewards_N, reward.detach())


def test_ld_dpo_weighs_what_lies_behind_the_shorter_answer():
    lengths = torch.tensor([2, 3, 4, 1])  # two pairs: (2, 4) and (3, 1)
    documents = torch.repeat_interleave(torch.arange(4), lengths)

    weights = length_desensitized_weights(documents, lengths, 0.25)

    assert weights.tolist() == [1, 1, 1, 0.25, 0.25, 1, 1, 0.25, 0.25, 1]
    assert length_desensitized_weights(documents, lengths, 1.0).eq(1).all()
