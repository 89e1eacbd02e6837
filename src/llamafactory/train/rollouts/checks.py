"""What a stage with rollouts refuses before anything is loaded."""

from ...extras.errors import UserError
from ..stage import RunArguments
from .generation import sampling_of
from .rewards import function_reward


def check_rollouts(arguments: RunArguments) -> None:
    """Refuse early what a rollout could not do."""
    if arguments.data.streaming:
        raise UserError("Stages that learn from their own answers need all prompts at hand; set streaming: false.")
    for name in ("deepspeed", "fsdp"):
        if getattr(arguments.training, name, None):
            raise UserError(f"{name} cannot go with stage {arguments.finetuning.stage} yet: its policy must generate.")
    sampling_of(arguments.generating)
    for name in arguments.finetuning.reward_funcs or ():
        function_reward(name)
