"""Arguments of the stages that learn from their own answers: rewards, PPO, GRPO."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from .kinds import Arguments, Count, Names, NonNegative, PartShare, Positive, Share


@dataclass(frozen=True, kw_only=True)
class RewardArguments(Arguments):
    """Rewards of written answers."""

    reward_funcs: Names | None = None
    """Python functions that judge answers: `path/to/file.py:name`, or names that a plug-in registers."""
    reward_weights: tuple[float, ...] | None = None
    """Weight of each of `reward_funcs`, and of `reward_model` behind them; unset weighs all alike."""
    rollout_batch_size: Count | None = None
    """Answers written at a time; unset writes all that the next updates learn from at once."""


@dataclass(frozen=True, kw_only=True)
class PpoArguments(Arguments):
    """PPO."""

    ppo_clip_range: Positive = 0.2
    """How far one update may move the chance of a token, as a share."""
    ppo_value_clip: Positive = 0.2
    """How far one update may move a value, as a share of the spread of the returns."""
    ppo_value_coef: NonNegative = 0.1
    """Weight of the value loss, which is measured in the spread of the returns, squared."""
    ppo_kl_coef: NonNegative = 0.2
    """Price of leaving the reference model at the start; it follows `ppo_target` from there."""
    ppo_gamma: Share = 1.0
    """Discount of later rewards, per token."""
    ppo_lambda: Share = 0.95
    """How far advantages trust rewards over values; 1 trusts rewards only."""
    ppo_missing_eos_penalty: NonNegative = 0.0
    """Taken off the score of an answer that does not end within `max_new_tokens`."""


@dataclass(frozen=True, kw_only=True)
class GrpoArguments(Arguments):
    """GRPO and its kin."""

    num_generations: Annotated[int, Ge(2)] = 8
    """Answers to each prompt that are compared with one another."""
    grpo_loss: Literal["grpo", "dapo", "dr_grpo", "gspo"] = "grpo"
    """Counts answers alike (grpo), tokens alike (dapo), divides by a constant (dr_grpo), or clips answers (gspo)."""
    grpo_beta: NonNegative = 0.0
    """Price of leaving the reference model; 0 needs no reference."""
    grpo_clip_range: PartShare = 0.2
    """How far one update may lower the chance of a token (of an answer in gspo), as a share."""
    grpo_clip_range_high: Positive | None = None
    """How far it may raise it; unset takes `grpo_clip_range`, and 0.28 is what DAPO proposes."""
    grpo_scale_rewards: bool | None = None
    """Divides by the spread of a group's rewards; unset does, except in dr_grpo."""
    grpo_epochs: Count = 1
    """Passes over the gathered answers."""
    grpo_buffer_size: Count = 1
    """Updates in each pass; above 1, later updates learn from answers of a slightly older policy."""
