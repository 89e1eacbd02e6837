"""The row of PPO, and its entry point."""

from collections.abc import Mapping

from torch import nn

from ..collation import row_collator
from ..objective import RolloutPlan
from ..reference import make_reference, silence_dropout
from ..rollouts.checks import check_rollouts
from ..rollouts.making import make_answer_maker
from ..rollouts.predictor import reward_predictor
from ..rollouts.schedule import keep_rows
from ..rollouts.sources import make_reward_model
from ..stage import Stage, StageContext
from ..workflow import entry_point
from .control import KlController
from .objective import PpoObjective, count_tokens
from .rollout import PpoRollout, PpoSettings


CARD_KEYS = (
    "reward_funcs",
    "reward_model",
    "ppo_epochs",
    "ppo_buffer_size",
    "ppo_kl_coef",
    "ppo_target",
    "ppo_clip_range",
)


def ppo_objective(context: StageContext) -> PpoObjective:
    """Make the loss; the policy must not differ between writing and learning, so dropout is off."""
    silence_dropout(context.model)
    finetuning, generating = context.arguments.finetuning, context.arguments.generating
    return PpoObjective(
        clip_range=finetuning.ppo_clip_range,
        value_clip=finetuning.ppo_value_clip,
        value_coef=finetuning.ppo_value_coef,
        temperature=generating.temperature if generating.do_sample else 1.0,
    )


def ppo_rollout(context: StageContext) -> PpoRollout:
    """Make the rollout."""
    finetuning, training = context.arguments.finetuning, context.arguments.training
    gathered = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return PpoRollout(
        plan=RolloutPlan(
            num_prompts=gathered * finetuning.ppo_buffer_size,
            num_steps=finetuning.ppo_buffer_size,
            num_passes=finetuning.ppo_epochs,
        ),
        maker=make_answer_maker(context, row_collator(context)),
        settings=PpoSettings(
            gamma=finetuning.ppo_gamma,
            lam=finetuning.ppo_lambda,
            missing_eos_penalty=finetuning.ppo_missing_eos_penalty,
            normalizes_scores=finetuning.ppo_score_norm,
            whitens_rewards=finetuning.ppo_whiten_rewards,
        ),
        controller=KlController(finetuning.ppo_kl_coef, finetuning.ppo_target),
    )


def ppo_helpers(context: StageContext) -> Mapping[str, nn.Module]:
    """Load the reference and the reward model."""
    return {**make_reference(context), **make_reward_model(context)}


STAGE = Stage(
    name="ppo",
    title="PPO",
    dataset="ppo",
    collator=lambda context: keep_rows,
    objective=ppo_objective,
    weigh=count_tokens,
    helpers=ppo_helpers,
    rollout=ppo_rollout,
    predictor=reward_predictor,
    check=check_rollouts,
    loss_may_be_zero=True,
    card_keys=CARD_KEYS,
    plots=("loss", "reward", "kl", "value_loss", "entropy"),
    head="value",
)

run_ppo = entry_point(STAGE)
