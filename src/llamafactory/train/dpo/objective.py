"""The loss of the DPO family: the better answer of a pair should gain on the worse one. Shapes: N pairs, S = 2N."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...ops.preference import (
    PREFERENCE_LOSSES,
    LossSettings,
    PairLogProbs,
    PairLosses,
    PreferenceLoss,
    add_sft,
    mix_bco,
)
from ..answers import (
    NUM_ANSWERS,
    REFERENCE_LOGPS,
    AnswerLogProbs,
    add_over_ranks,
    answer_log_probs,
    reference_sums,
)
from ..objective import Batch, LossSum, MetricSum, Models
from ..reference import measuring
from ..stage import StageContext
from .baseline import RewardBaseline


DRIFTS = "pair_drifts"
"""Name in a batch of the mean log-ratios [2] of the better and the worse answers of the whole step."""
IS_COUNTED = "is_counted"
"""Name in a batch of whether it is more than a filler; in training with a baseline only."""


@dataclass(frozen=True)
class PreferenceObjective:
    """Sum over the pairs of a batch."""

    loss: PreferenceLoss
    settings: LossSettings
    sft_weight: float = 0.0
    bco_weight: float = 0.0
    ld_alpha: float | None = None
    baseline: RewardBaseline | None = None
    """Where the loss, or the part of it that is mixed in, needs one."""

    def __call__(self, models: Models, batch: Batch) -> LossSum:
        batch = dict(batch)
        drifts, is_counted = batch.pop(DRIFTS, None), batch.pop(IS_COUNTED, False)
        reference_S = self.reference(models, batch)
        policy = answer_log_probs(models.policy, batch, self.ld_alpha)
        pairs = make_pairs(policy, policy.sums_S, reference_S)
        settings = self._settings(drifts, policy.sums_S)

        losses = self.loss.compute(pairs, settings)
        if self.bco_weight:
            losses = mix_bco(losses, pairs, settings, self.bco_weight)
        if self.sft_weight:
            losses = add_sft(losses, make_pairs(policy, policy.plain_S, reference_S), self.sft_weight)
        if self.baseline is not None and is_counted:
            self.baseline.add(settings.beta * torch.cat((pairs.chosen_ratios, pairs.rejected_ratios)).detach())
        num_pairs = torch.tensor(losses.losses_N.numel(), device=losses.losses_N.device)
        return LossSum(losses.losses_N.sum(), num_pairs, self._metrics(losses, pairs, policy))

    def reference(self, models: Models, batch: Batch) -> Tensor:
        """Return the sums [S] of the reference; zeros where the loss has none."""
        if not self.loss.has_reference:
            return torch.zeros(batch[NUM_ANSWERS], device=batch["input_ids"].device)
        return reference_sums(models, batch, self.ld_alpha)

    def _settings(self, drifts: Tensor | None, like: Tensor) -> LossSettings:
        settings = self.settings
        if self.baseline is not None:
            settings = replace(settings, baseline=self.baseline.mean(like.detach()))
        if drifts is not None:
            settings = replace(settings, chosen_kl=drifts[0].clamp(min=0), rejected_kl=drifts[1].clamp(min=0))
        return settings

    def _metrics(self, losses: PairLosses, pairs: PairLogProbs, policy: AnswerLogProbs) -> dict[str, MetricSum]:
        chosen_N, rejected_N = losses.chosen_rewards_N, losses.rejected_rewards_N
        shown = pairs.per_token() if self.loss.averages else pairs
        right_N = (chosen_N > rejected_N).float()
        values = {
            "rewards/chosen": chosen_N,
            "rewards/rejected": rejected_N,
            "rewards/accuracies": right_N,
            "rewards/margins": chosen_N - rejected_N,
            "logps/chosen": shown.chosen_N.detach(),
            "logps/rejected": shown.rejected_N.detach(),
            **losses.parts,
        }
        weight = torch.tensor(chosen_N.numel(), device=chosen_N.device)
        metrics = {name: MetricSum(value.sum(), weight) for name, value in values.items()}
        sides = zip(("chosen", "rejected"), policy.logits_S.chunk(2), policy.lengths_S.chunk(2), strict=True)
        return metrics | {f"logits/{side}": MetricSum(sums.sum(), lengths.sum()) for side, sums, lengths in sides}


@dataclass(frozen=True)
class PairSurvey:
    """What losses need to know of a whole step: the drifts of both sides (kto_pair), which batches count (BCO)."""

    objective: PreferenceObjective

    def __call__(
        self, models: Models, batches: Iterable[tuple[Batch, bool]], *, is_training: bool
    ) -> Mapping[str, Any]:
        """Return the drifts; the reference's words stay in the batches, so that it is asked once."""
        if not (is_training or self.objective.loss.needs_kl):
            return {}
        total: Tensor | None = None
        for batch, is_counted in batches:
            if is_training and self.objective.baseline is not None:
                batch[IS_COUNTED] = is_counted
            if not self.objective.loss.needs_kl:
                continue
            inputs = {name: value for name, value in batch.items() if name != IS_COUNTED}
            batch[REFERENCE_LOGPS] = self.objective.reference(models, inputs)
            with measuring(models.policy) as policy:
                sums_S = answer_log_probs(policy, inputs, self.objective.ld_alpha).sums_S
            ratios_S = sums_S - batch[REFERENCE_LOGPS]
            sums = torch.stack(
                [*(side.sum() for side in ratios_S.chunk(2)), ratios_S.new_tensor(ratios_S.numel() / 2)]
            )
            total = sums * is_counted + (0 if total is None else total)
        if total is None:
            return {}
        total = add_over_ranks(total)
        return {DRIFTS: (total[:2] / total[2].clamp(min=1)).float()}


def pair_survey(context: StageContext) -> PairSurvey | None:
    """Make the survey of a run whose loss needs one."""
    objective = preference_objective(context)
    return PairSurvey(objective) if objective.loss.needs_kl or objective.baseline is not None else None


def preference_objective(context: StageContext) -> PreferenceObjective:
    """Make the objective of a run."""
    arguments = context.arguments.finetuning
    loss = PREFERENCE_LOSSES.get(arguments.pref_loss)
    return PreferenceObjective(
        loss,
        LossSettings(
            beta=arguments.pref_beta, label_smoothing=arguments.dpo_label_smoothing, gamma=arguments.simpo_gamma
        ),
        sft_weight=arguments.pref_ftx,
        bco_weight=arguments.pref_bco_weight,
        ld_alpha=arguments.ld_alpha,
        baseline=RewardBaseline() if loss.needs_baseline or arguments.pref_bco_weight else None,
    )


def make_pairs(found: AnswerLogProbs, sums_S: Tensor, reference_S: Tensor) -> PairLogProbs:
    """Take apart what is laid out as all better answers, then all worse ones."""
    return PairLogProbs(*sums_S.chunk(2), *reference_S.chunk(2), *found.lengths_S.chunk(2))


def count_pairs(batch: Batch) -> Tensor:
    """Count the pairs of a batch."""
    return torch.tensor(batch[NUM_ANSWERS] // 2)
