"""Models that stand beside the one in training (a reference, a reward model), and the answers that a policy writes."""

from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ...hparams.methods import tuning_methods
from ...hparams.rules_method import REFERENCE_FREE_LOSSES
from ...model.dtype import DtypeChoice
from ...model.quantization.sizes import weight_bytes
from ...model.request import Head
from ...model.skeleton import load_skeleton
from ..choices import ROLLOUTS
from ..rollouts.sources import reward_model_arguments
from ..stage import RunArguments


LOGITS = 3 * 4
"""Bytes for every word while a token is drawn: its score, with noise, and sorted, in float32."""


def helper_bytes(model: nn.Module, arguments: RunArguments, dtypes: DtypeChoice) -> int:
    """Return the weights of all frozen models beside the one in training; train/reference.py makes them."""
    return _reference_bytes(model, arguments, dtypes) + _reward_bytes(arguments, dtypes)


def needs_reference(arguments: RunArguments) -> bool:
    """Whether the loss compares with the starting model."""
    finetuning = arguments.finetuning
    return {
        "sft": finetuning.use_asft_loss and finetuning.asft_alpha > 0,
        "dpo": finetuning.pref_loss not in REFERENCE_FREE_LOSSES and not finetuning.precompute_ref_logps,
        "kto": True,
        "ppo": True,
        "grpo": finetuning.grpo_beta > 0,
    }.get(finetuning.stage, False)


def generation_bytes(model: PreTrainedModel, arguments: RunArguments, prompt_len: int, itemsize: int) -> int:
    """Return keys, values and scores of the answers that are written at the same time; 0 where none are."""
    finetuning, training = arguments.finetuning, arguments.training
    if finetuning.stage not in ROLLOUTS:
        return 0
    buffer = finetuning.ppo_buffer_size if finetuning.stage == "ppo" else finetuning.grpo_buffer_size
    gathered = training.per_device_train_batch_size * training.gradient_accumulation_steps * buffer
    count = min(finetuning.rollout_batch_size or gathered, gathered)
    config: Any = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    keys = int(getattr(config, "num_key_value_heads", None) or heads)
    head = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    length = prompt_len + arguments.generating.max_new_tokens
    cache = 2 * int(config.num_hidden_layers) * keys * head * itemsize * length
    return count * (cache + LOGITS * int(config.vocab_size))


def _reference_bytes(model: nn.Module, arguments: RunArguments, dtypes: DtypeChoice) -> int:
    finetuning = arguments.finetuning
    if not needs_reference(arguments):
        return 0
    if finetuning.ref_model is not None or finetuning.ref_model_adapters:
        name = finetuning.ref_model or arguments.model.model_name_or_path
        return _whole(arguments, dtypes, name, finetuning.ref_model_quantization_bit)
    if tuning_methods()[finetuning.finetuning_type].is_adapter:
        goes_on = arguments.model.adapter_name_or_path and not finetuning.create_new_adapter
        trained = (weight for weight in model.parameters() if weight.requires_grad)
        return sum(weight.numel() * weight.element_size() for weight in trained) if goes_on else 0
    return _whole(arguments, dtypes, arguments.model.model_name_or_path, finetuning.ref_model_quantization_bit)


def _reward_bytes(arguments: RunArguments, dtypes: DtypeChoice) -> int:
    finetuning = arguments.finetuning
    if finetuning.stage not in ROLLOUTS or finetuning.reward_model is None or finetuning.reward_model_type == "api":
        return 0
    if finetuning.reward_model_type == "lora" and tuning_methods()[finetuning.finetuning_type].is_adapter:
        return 0  # it stands on the base of the policy (rollouts/shared_base.py)
    chosen = reward_model_arguments(arguments)
    return _whole(arguments, dtypes, chosen.model_name_or_path, chosen.quantization_bit, head="score")


def _whole(arguments: RunArguments, dtypes: DtypeChoice, name: str, bits: Any, *, head: Head = "words") -> int:
    model_args = replace(arguments.model, model_name_or_path=name, adapter_name_or_path=None, quantization_bit=bits)
    frozen = replace(dtypes, trainable=dtypes.frozen)
    loading = replace(arguments.finetuning, finetuning_type="lora")
    skeleton = load_skeleton(model_args, loading, frozen, head=head, is_trainable=False)
    return weight_bytes(skeleton.model, skeleton.packing)
