"""Preference losses as pure functions of log-probabilities. Shapes: N pairs (or marked answers), one number each.

Every loss takes the summed log-probabilities of the better and the worse answers under the policy and under the
reference, and returns one loss per pair. Nothing is averaged over pairs here: the driver divides once per optimizer
step. What a loss needs to know about other pairs (a running mean, a drift) is given to it as a number, so that the
value of a pair never depends on how a step was cut into batches.

`PREFERENCE_LOSSES` names them as the key `pref_loss` does; a plug-in may register its own.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..extras.registry import Registry


DISCOPOP_TEMPERATURE = 0.05
"""Tau of DiscoPOP's paper, found together with the loss."""


class PairLogProbs(NamedTuple):
    """What a loss sees of N pairs: log-probabilities summed over the tokens of each answer, in nats."""

    chosen_N: Tensor
    rejected_N: Tensor
    reference_chosen_N: Tensor
    """Of the reference model; zeros where the loss has none."""
    reference_rejected_N: Tensor
    chosen_lengths_N: Tensor
    """Numbers of tokens in the answers."""
    rejected_lengths_N: Tensor

    def per_token(self) -> "PairLogProbs":
        """Return means per token in place of sums."""
        return PairLogProbs(
            self.chosen_N / self.chosen_lengths_N,
            self.rejected_N / self.rejected_lengths_N,
            self.reference_chosen_N / self.chosen_lengths_N,
            self.reference_rejected_N / self.rejected_lengths_N,
            torch.ones_like(self.chosen_lengths_N),
            torch.ones_like(self.rejected_lengths_N),
        )

    @property
    def chosen_ratios(self) -> Tensor:
        """log(policy / reference) of the better answers."""
        return self.chosen_N - self.reference_chosen_N

    @property
    def rejected_ratios(self) -> Tensor:
        """log(policy / reference) of the worse answers."""
        return self.rejected_N - self.reference_rejected_N


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The numbers of all losses; each reads its own."""

    beta: float = 0.1
    """How closely the policy stays to the reference; in ORPO the weight of the odds."""
    label_smoothing: float = 0.0
    """Share of the pairs that are taken to be the wrong way round."""
    gamma: float = 0.5
    """Lead that SimPO asks for."""
    baseline: Tensor | float = 0.0
    """Mean reward of earlier answers (BCO's delta)."""
    chosen_kl: Tensor | float = 0.0
    """Mean log-ratio of the better answers of the whole step, at least 0 (kto_pair)."""
    rejected_kl: Tensor | float = 0.0
    """The same of the worse answers."""


class PairLosses(NamedTuple):
    """One number per pair."""

    losses_N: Tensor
    """Carries the gradient."""
    chosen_rewards_N: Tensor
    """What the loss takes the better answers to be worth; detached."""
    rejected_rewards_N: Tensor
    parts: Mapping[str, Tensor]
    """Terms of the loss by name, for the log; detached."""


@dataclass(frozen=True)
class PreferenceLoss:
    """A loss and what it has to be given."""

    compute: Callable[[PairLogProbs, LossSettings], PairLosses]
    has_reference: bool = True
    averages: bool = False
    """The loss looks at means per token, not at sums."""
    needs_baseline: bool = False
    needs_kl: bool = False


def sigmoid_loss(pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    """DPO, -log s(beta h) with h = chosen ratio - rejected ratio (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    With `label_smoothing` e it is conservative DPO, -(1 - e) log s(beta h) - e log s(-beta h) (Mitchell 2023, "A note
    on DPO with noisy preferences & relationship to IPO").
    """
    smoothing = settings.label_smoothing
    margins_N = settings.beta * (pairs.chosen_ratios - pairs.rejected_ratios)
    losses_N = -(1 - smoothing) * logsigmoid(margins_N) - smoothing * logsigmoid(-margins_N)
    return _with_rewards(losses_N, pairs, settings)


def sigmoid_norm_loss(pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    """DPO on means per token, for answers of all lengths alike (Tulu 3: Lambert et al. 2024, arXiv:2411.15124)."""
    return sigmoid_loss(pairs.per_token(), settings)


def robust_loss(pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    """Robust DPO: unbiased when a share e of the labels is flipped (Chowdhury et al. 2024, arXiv:2403.00409, eq. 8).

    (-(1 - e) log s(beta h) + e log s(-beta h)) / (1 - 2e).
    """
    smoothing = settings.label_smoothing
    margins_N = settings.beta * (pairs.chosen_ratios - pairs.rejected_ratios)
    kept_N, flipped_N = -(1 - smoothing) * logsigmoid(margins_N), -smoothing * logsigmoid(-margins_N)
    return _with_rewards((kept_N - flipped_N) / (1 - 2 * smoothing), pairs, settings)


def exo_pair_loss(pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    """EXO for two answers (Ji et al. 2024, arXiv:2402.00856, eq. 16); needs a `label_smoothing` e above 0.

    KL(p || q) with p = softmax(beta ratios) and q = (1 - e, e).
    """
    smoothing = settings.label_smoothing
    margins_N = settings.beta * (pairs.chosen_ratios - pairs.rejected_ratios)
    chosen_N = margins_N.sigmoid() * (logsigmoid(margins_N) - math.log1p(-smoothing))
    rejected_N = (-margins_N).sigmoid() * (logsigmoid(-margins_N) - math.log(smoothing))
    return _with_rewards(chosen_N + rejected_N, pairs, settings)


def hinge_loss(pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    """max(0, 1 - beta h), as in SLiC (Zhao et al. 2023, arXiv:2305.10425; Liu et al. 2023, arXiv:2309.06657)."""
    margins_N = settings.beta * (pairs.chosen_ratios - pairs.rejected_ratios)
    return _with_rewards((1 - margins_N).relu(), pairs, settings)


def ipo_loss(pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    """IPO, (h - 1 / (2 beta))^2 (Azar et al. 2023, arXiv:2310.12036, eq. 17).

    h is made of means per token, which the paper's authors confirmed to be what they ran: with sums, the goal
    1 / (2 beta) would mean something else for every length.
    """
    means = pairs.per_token()
    margins_N = means.chosen_ratios - means.rejected_ratios
    return _with_rewards((margins_N - 1 / (2 * settings.beta)).square(), means, settings)


def kto_pair_loss(pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    """KTO on both answers of a pair, each against the drift of the other side (Ethayarajh et al. 2023, HALOs).

    Half of (1 - s(beta (chosen ratio - rejected KL))) + (1 - s(beta (chosen KL - rejected ratio))): the mean over the
    two answers. The KLs come from the whole step (`LossSettings`) and carry no gradient.
    """
    chosen_N = 1 - (settings.beta * (pairs.chosen_ratios - settings.rejected_kl)).sigmoid()
    rejected_N = 1 - (settings.beta * (settings.chosen_kl - pairs.rejected_ratios)).sigmoid()
    return _with_rewards((chosen_N + rejected_N) / 2, pairs, settings)


def bco_pair_loss(pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    """BCO: a classifier of good and bad answers, shifted by the mean reward (Jung et al. 2024, arXiv:2404.04656).

    -log s(chosen reward - delta) - log s(delta - rejected reward), with delta = `baseline`.
    """
    chosen_N = settings.beta * pairs.chosen_ratios - settings.baseline
    rejected_N = settings.beta * pairs.rejected_ratios - settings.baseline
    return _with_rewards(-logsigmoid(chosen_N) - logsigmoid(-rejected_N), pairs, settings)


def apo_zero_loss(pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    """APO-zero, for chosen answers that are better than the model's own (D'Oosterlinck et al. 2024, arXiv:2408.06266).

    Equation 7: (1 - s(beta chosen ratio)) + s(beta rejected ratio).
    """
    chosen_N = 1 - (settings.beta * pairs.chosen_ratios).sigmoid()
    return _with_rewards(chosen_N + (settings.beta * pairs.rejected_ratios).sigmoid(), pairs, settings)


def apo_down_loss(pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    """APO-down, for chosen answers that are worse than the model's own (D'Oosterlinck et al. 2024, arXiv:2408.06266).

    Equation 8: s(beta chosen ratio) + (1 - s(beta h)).
    """
    margins_N = settings.beta * (pairs.chosen_ratios - pairs.rejected_ratios)
    return _with_rewards((settings.beta * pairs.chosen_ratios).sigmoid() + 1 - margins_N.sigmoid(), pairs, settings)


def sppo_hard_loss(pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    """SPPO with win rates of 1 and 0 (Wu et al. 2024, arXiv:2405.00675, eq. 4.7).

    (chosen ratio - 1 / (2 beta))^2 + (rejected ratio + 1 / (2 beta))^2.
    """
    goal = 1 / (2 * settings.beta)
    losses_N = (pairs.chosen_ratios - goal).square() + (pairs.rejected_ratios + goal).square()
    return _with_rewards(losses_N, pairs, settings)


def discopop_loss(pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    """DiscoPOP's log-ratio modulated loss, found by a language model (Lu et al. 2024, arXiv:2406.08414, eq. 5).

    (1 - m) (-log s(beta h)) + m exp(-beta h), with m = s(beta h / tau).
    """
    margins_N = settings.beta * (pairs.chosen_ratios - pairs.rejected_ratios)
    modulation_N = (margins_N / DISCOPOP_TEMPERATURE).sigmoid()
    losses_N = -logsigmoid(margins_N) * (1 - modulation_N) + (-margins_N).exp() * modulation_N
    return _with_rewards(losses_N, pairs, settings)


def simpo_loss(pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    """SimPO, -log s(beta (mean chosen - mean rejected) - gamma) (Meng et al. 2024, arXiv:2405.14734, eq. 6)."""
    means = pairs.per_token()
    chosen_N, rejected_N = settings.beta * means.chosen_N, settings.beta * means.rejected_N
    losses_N = -logsigmoid(chosen_N - rejected_N - settings.gamma)
    return PairLosses(losses_N, chosen_N.detach(), rejected_N.detach(), {})


def orpo_loss(pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    """ORPO: SFT on the better answer and beta times -log s(log odds ratio) (Hong et al. 2024, arXiv:2403.07691).

    Equation 6; odds = p / (1 - p) with p = exp(mean log-probability per token).
    """
    means = pairs.per_token()
    odds_N = (means.chosen_N - means.rejected_N) - (
        _log_complement(means.chosen_N) - _log_complement(means.rejected_N)
    )
    ratio_N, sft_N = -logsigmoid(odds_N), -means.chosen_N
    return PairLosses(
        sft_N + settings.beta * ratio_N,
        settings.beta * means.chosen_N.detach(),
        settings.beta * means.rejected_N.detach(),
        {"sft_loss": sft_N.detach(), "odds_ratio_loss": ratio_N.detach()},
    )


def mix_bco(losses: PairLosses, pairs: PairLogProbs, settings: LossSettings, weight: float) -> PairLosses:
    """Return (loss + weight BCO) / (1 + weight) of each pair; the rewards stay those of the first loss."""
    mixed_N = (losses.losses_N + weight * bco_pair_loss(pairs, settings).losses_N) / (1 + weight)
    return losses._replace(losses_N=mixed_N)


def add_sft(losses: PairLosses, pairs: PairLogProbs, weight: float) -> PairLosses:
    """Add `weight` times the mean of -log p per token of each better answer."""
    sft_N = -pairs.chosen_N / pairs.chosen_lengths_N
    return losses._replace(
        losses_N=losses.losses_N + weight * sft_N, parts={**losses.parts, "sft_loss": sft_N.detach()}
    )


@dataclass(frozen=True, kw_only=True)
class KtoSettings:
    """The numbers of KTO."""

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


class KtoLosses(NamedTuple):
    """One number per marked answer."""

    losses_N: Tensor
    rewards_N: Tensor
    """beta times the log-ratio; detached."""


def kto_loss(logps_N: Tensor, reference_N: Tensor, is_good_N: Tensor, kl: Tensor, settings: KtoSettings) -> KtoLosses:
    """KTO (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8): w (1 - s(+-beta (ratio - KL))), + for a good answer.

    `kl` is one number, the mean log-ratio of mismatched answers, at least 0 and without gradient.
    """
    ratios_N = logps_N - reference_N
    values_N = (settings.beta * (ratios_N - kl) * torch.where(is_good_N, 1.0, -1.0)).sigmoid()
    weights_N = torch.where(is_good_N, settings.desirable_weight, settings.undesirable_weight).to(values_N)
    return KtoLosses(weights_N * (1 - values_N), (settings.beta * ratios_N).detach())


def length_desensitized_weights(documents_K: Tensor, lengths_S: Tensor, alpha: float) -> Tensor:
    """Return the weight of each answer token under LD-DPO (Liu et al. 2024, arXiv:2409.06411, eq. 8 and 9).

    1 up to the length of the shorter answer of the pair, `alpha` behind it. documents_K says which of S answers a
    token belongs to, in ascending order; the S answers are all better ones, then all worse ones.
    """
    starts_S = lengths_S.cumsum(0) - lengths_S
    places_K = torch.arange(documents_K.numel(), device=documents_K.device) - starts_S[documents_K]
    chosen_N, rejected_N = lengths_S.chunk(2)
    shared_S = torch.minimum(chosen_N, rejected_N).repeat(2)
    return torch.where(places_K < shared_S[documents_K], 1.0, alpha)


def _with_rewards(losses_N: Tensor, pairs: PairLogProbs, settings: LossSettings) -> PairLosses:
    chosen_N = settings.beta * pairs.chosen_ratios.detach()
    return PairLosses(losses_N, chosen_N, settings.beta * pairs.rejected_ratios.detach(), {})


def _log_complement(logps_N: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0; a probability of 1 counts as the number just below it."""
    below_N = logps_N.clamp(max=-torch.finfo(logps_N.dtype).eps)
    return torch.log(-torch.expm1(below_N))


PREFERENCE_LOSSES: Registry[PreferenceLoss] = Registry(
    "pref_loss",
    {
        "sigmoid": PreferenceLoss(sigmoid_loss),
        "hinge": PreferenceLoss(hinge_loss),
        "ipo": PreferenceLoss(ipo_loss, averages=True),
        "kto_pair": PreferenceLoss(kto_pair_loss, needs_kl=True),
        "orpo": PreferenceLoss(orpo_loss, has_reference=False, averages=True),
        "simpo": PreferenceLoss(simpo_loss, has_reference=False, averages=True),
        "sigmoid_norm": PreferenceLoss(sigmoid_norm_loss, averages=True),
        "robust": PreferenceLoss(robust_loss),
        "exo_pair": PreferenceLoss(exo_pair_loss),
        "bco_pair": PreferenceLoss(bco_pair_loss, needs_baseline=True),
        "apo_zero": PreferenceLoss(apo_zero_loss),
        "apo_down": PreferenceLoss(apo_down_loss),
        "sppo_hard": PreferenceLoss(sppo_hard_loss),
        "discopop": PreferenceLoss(discopop_loss),
    },
)
"""By the word of the key `pref_loss`."""
