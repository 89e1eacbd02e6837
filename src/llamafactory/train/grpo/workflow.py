"""The row of GRPO, and its entry point."""

from collections.abc import Mapping

from torch import nn

from ...extras.errors import UserError
from ..collation import row_collator
from ..objective import RolloutPlan
from ..reference import make_reference, silence_dropout
from ..rollouts.checks import check_rollouts
from ..rollouts.generation import sampling_of
from ..rollouts.making import make_answer_maker
from ..rollouts.predictor import reward_predictor
from ..rollouts.schedule import keep_rows
from ..rollouts.sources import make_reward_model
from ..stage import RunArguments, Stage, StageContext
from ..workflow import entry_point
from .objective import GrpoObjective, count_weight
from .rollout import GrpoRollout


CARD_KEYS = (
    "reward_funcs",
    "reward_model",
    "num_generations",
    "grpo_loss",
    "grpo_beta",
    "grpo_epochs",
    "grpo_clip_range",
)


def check_groups(arguments: RunArguments) -> None:
    """Refuse groups of answers that cannot differ, on top of what no rollout could do."""
    check_rollouts(arguments)
    if arguments.training.do_train and sampling_of(arguments.generating).temperature == 0:
        raise UserError(
            "stage: grpo compares different answers to one prompt, but do_sample: false (or temperature: 0) writes "
            "the same one each time: remove it."
        )


def grpo_objective(context: StageContext) -> GrpoObjective:
    """Make the loss; the policy must not differ between writing and learning, so dropout is off."""
    silence_dropout(context.model)
    finetuning, generating = context.arguments.finetuning, context.arguments.generating
    return GrpoObjective(
        kind=finetuning.grpo_loss,
        clip_low=finetuning.grpo_clip_range,
        clip_high=finetuning.grpo_clip_range_high or finetuning.grpo_clip_range,
        beta=finetuning.grpo_beta,
        temperature=generating.temperature if generating.do_sample else 1.0,
    )


def grpo_rollout(context: StageContext) -> GrpoRollout:
    """Make the rollout; the groups of a rollout lie on one rank as a whole."""
    finetuning, training = context.arguments.finetuning, context.arguments.training
    gathered = training.per_device_train_batch_size * training.gradient_accumulation_steps
    scales = finetuning.grpo_scale_rewards
    return GrpoRollout(
        plan=RolloutPlan(
            num_prompts=gathered * finetuning.grpo_buffer_size // finetuning.num_generations,
            num_steps=finetuning.grpo_buffer_size,
            num_passes=finetuning.grpo_epochs,
        ),
        maker=make_answer_maker(context, row_collator(context)),
        kind=finetuning.grpo_loss,
        group_size=finetuning.num_generations,
        longest=context.arguments.generating.max_new_tokens,
        scales=finetuning.grpo_loss != "dr_grpo" if scales is None else scales,
        needs_reference=finetuning.grpo_beta > 0,
    )


def grpo_helpers(context: StageContext) -> Mapping[str, nn.Module]:
    """Load the reference, where leaving it has a price, and the reward model."""
    reference = make_reference(context) if context.arguments.finetuning.grpo_beta > 0 else {}
    return {**reference, **make_reward_model(context)}


STAGE = Stage(
    name="grpo",
    title="GRPO",
    dataset="ppo",
    collator=lambda context: keep_rows,
    objective=grpo_objective,
    weigh=count_weight,
    helpers=grpo_helpers,
    rollout=grpo_rollout,
    predictor=reward_predictor,
    check=check_groups,
    loss_may_be_zero=True,
    card_keys=CARD_KEYS,
    plots=("loss", "reward", "answer_length", "entropy"),
)

run_grpo = entry_point(STAGE)
