"""Where rewards come from in a run: the keys `reward_funcs` and `reward_model` become judges and helper models."""

from dataclasses import replace
from typing import Any

from torch import nn

from ...extras.device import current_device, device_facts
from ...extras.env import read_env
from ...extras.errors import UserError
from ...extras.logging import get_logger
from ...hparams import FinetuningArguments, ModelArguments
from ...model.dtype import DtypeChoice, choose_dtype, training_flags
from ...model.loader import load_model, load_tokenizer
from ...model.model_utils.valuehead import load_valuehead_params
from ...model.quantization import is_quantized
from ...model.sources import resolve_adapter
from ..collation import row_collator
from ..rm.scoring import ScoredCollator
from ..stage import RunArguments, StageContext
from .rewards import REWARD, ApiJudge, ModelJudge, Reward, function_reward
from .shared_base import reward_on_shared_base


logger = get_logger(__name__)


def make_rewards(context: StageContext) -> list[Reward]:
    """Make the judges, those of `reward_funcs` first, then the one of `reward_model`."""
    finetuning = context.arguments.finetuning
    rewards = [function_reward(name) for name in finetuning.reward_funcs or ()]
    if len({reward.name for reward in rewards}) < len(rewards):
        raise UserError(f"reward_funcs: {', '.join(finetuning.reward_funcs or ())} have two functions of one name.")
    if finetuning.reward_model is not None:
        rewards.append(_model_reward(context, finetuning.reward_model))
    weights = finetuning.reward_weights or (1.0,) * len(rewards)
    return [replace(reward, weight=weight) for reward, weight in zip(rewards, weights, strict=True)]


def make_reward_model(context: StageContext) -> dict[str, nn.Module]:
    """Load the reward model as a helper; nothing where a server or functions judge."""
    finetuning = context.arguments.finetuning
    if finetuning.reward_model is None or finetuning.reward_model_type == "api":
        return {}
    model_args = reward_model_arguments(context.arguments)
    _check_tokenizer(context, model_args)
    _check_score(model_args)
    shared = _on_policy_base(context, model_args)
    if shared is not None:
        logger.info("Reward model: the adapter %s on the base of the policy.", finetuning.reward_model)
        return {REWARD: shared}
    chosen = choose_dtype(training_flags(context.arguments.training, finetuning), device_facts())
    whole = DtypeChoice(
        frozen=chosen.frozen, trainable=chosen.frozen, autocast=chosen.autocast, reason="of the reward model"
    )
    # adapters are merged and nothing is trained, whatever the policy does
    loading = replace(finetuning, finetuning_type="lora", create_new_adapter=False)
    model: Any = load_model(context.tokenizer, model_args, loading, dtype=whole, head="score")
    logger.info("Reward model: %s.", finetuning.reward_model)
    if not is_quantized(model):
        model = model.to(current_device(read_env().local_rank or 0))
    return {REWARD: model.requires_grad_(False)}


def reward_model_arguments(arguments: RunArguments) -> ModelArguments:
    """Say how to load the reward model: an adapter on the starting model, or a model of its own."""
    finetuning: FinetuningArguments = arguments.finetuning
    name = str(finetuning.reward_model)
    if finetuning.reward_model_type == "lora":
        adapters = tuple(name.split(","))
        return replace(arguments.model, adapter_name_or_path=adapters, adapter_folder=None)
    return replace(
        arguments.model,
        model_name_or_path=name,
        adapter_name_or_path=finetuning.reward_model_adapters,
        adapter_folder=None,
        quantization_bit=finetuning.reward_model_quantization_bit,
    )


def _model_reward(context: StageContext, name: str) -> Reward:
    arguments = context.arguments
    if arguments.finetuning.reward_model_type == "api":
        if not name.startswith(("http://", "https://")):
            raise UserError(f"reward_model {name!r} is no address; with reward_model_type: api give one, http://...")

        def decode(rows: list[list[int]]) -> list[str]:
            return context.tokenizer.batch_decode(rows, skip_special_tokens=False)

        return Reward(REWARD, ApiJudge(name, decode))
    collate = ScoredCollator(row_collator(context))
    size = arguments.training.per_device_train_batch_size
    return Reward(REWARD, ModelJudge(collate, size))


def _on_policy_base(context: StageContext, model_args: ModelArguments) -> nn.Module | None:
    """Put a reward adapter on the base that is in memory already, where the policy left it as it was stored."""
    names = model_args.adapter_name_or_path
    merges = context.arguments.model.adapter_name_or_path and context.arguments.finetuning.create_new_adapter
    several = context.arguments.model.adapter_name_or_path or ()
    if context.arguments.finetuning.reward_model_type != "lora" or names is None or len(names) != 1:
        return None
    if merges or len(several) > 1:
        return None  # adapters were merged into the policy's base
    return reward_on_shared_base(context.model, resolve_adapter(names[0], model_args), model_args)


def _check_tokenizer(context: StageContext, model_args: ModelArguments) -> None:
    """Token ids go from the policy to the reward model as they are, so both must mean the same by them."""
    if model_args.model_name_or_path == context.arguments.model.model_name_or_path:
        return
    theirs: Any = load_tokenizer(model_args)["tokenizer"]
    if theirs.get_vocab() != context.tokenizer.get_vocab():
        raise UserError(
            f"The reward model {model_args.model_name_or_path} has another vocabulary than the policy, so it cannot "
            "read its token ids: serve it, and use reward_model_type: api."
        )


def _check_score(model_args: ModelArguments) -> None:
    """Refuse a reward model without a score, which would be drawn afresh and judge at random."""
    from safetensors import safe_open

    names = model_args.adapter_name_or_path
    if names is None:
        return  # load_model finds out
    if load_valuehead_params(names[-1], model_args) is not None:
        return
    with safe_open(resolve_adapter(names[-1], model_args) / "adapter_model.safetensors", "pt") as file:
        has_score = any(".score." in key or ".classifier." in key for key in file.keys())  # noqa: SIM118
    if not has_score:
        raise UserError(
            f"The adapter {names[-1]} holds no score layer and no value head file, so it is no reward model; train "
            "one with stage: rm."
        )
