"""The reference of the preference stages: the policy as it was before the first step, or another model.

Where the policy is an adapter, the reference costs nothing: it is the same model with the adapter switched off, or,
where training goes on with an adapter (after SFT, say), with a frozen copy of that adapter in its place. Where whole
weights are trained it is a second model. It always answers in evaluation mode: no dropout, no NEFTune noise, no
gradient, and whatever was trained beside the adapter (`additional_target`) is off as well.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from ..extras.device import current_device, device_facts
from ..extras.env import read_env
from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..model.dtype import DtypeChoice, choose_dtype, training_flags
from ..model.loader import load_model
from ..model.model_utils.attention import use_flat_attention
from ..model.model_utils.isolation import find_leak
from ..model.quantization import is_quantized
from .objective import Models
from .stage import StageContext


logger = get_logger(__name__)

REFERENCE = "reference"
"""Name of the helper model, and of the frozen adapter."""


def make_reference(context: StageContext) -> dict[str, nn.Module]:
    """Make what the reference needs; nothing where switching the adapter off is enough."""
    finetuning, model = context.arguments.finetuning, context.model
    if finetuning.ref_model is not None or finetuning.ref_model_adapters:
        logger.info("Reference: %s.", finetuning.ref_model or "the starting model with ref_model_adapters")
        return {REFERENCE: _load_other(context)}
    if isinstance(model, PeftModel):
        if context.arguments.model.adapter_name_or_path and not finetuning.create_new_adapter:
            keep_adapter(model)
            logger.info("Reference: the adapter that training goes on with, kept as it is now.")
        else:
            logger.info("Reference: the model without its adapter.")
        return {}
    if finetuning.ref_model_quantization_bit is not None:
        logger.info("Reference: the starting model in %s bits.", finetuning.ref_model_quantization_bit)
        return {REFERENCE: _load_base(context)}
    if context.arguments.training.do_train:
        logger.info("Reference: a copy of the model as it is now.")
        return {REFERENCE: _copy(context)}
    if not context.arguments.model.adapter_name_or_path:
        logger.warning("Without ref_model the model is measured against itself: all rewards will be 0.")
    return {REFERENCE: _load_base(context)}


@contextmanager
def reference_of(models: Models) -> Iterator[nn.Module]:
    """Lend the reference, ready to be called: a helper, or the policy with its adapter out of the way.

    Call it before the policy's own forward pass of a step: what is lent may be the very model in training.
    """
    helper = models.helpers.get(REFERENCE)
    if helper is not None:
        with torch.no_grad():
            yield helper
        return
    with measuring(models.policy), _adapter_away(adapted_model(models.policy)):
        yield models.policy


@contextmanager
def measuring(policy: nn.Module) -> Iterator[nn.Module]:
    """Lend the policy in evaluation mode and without gradients."""
    was_training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            yield policy
    finally:
        policy.train(was_training)


def adapted_model(model: nn.Module) -> PeftModel:
    """Return the model with adapters inside the wrappers of a distributed run."""
    found = next((module for module in model.modules() if isinstance(module, PeftModel)), None)
    if found is None:
        raise RuntimeError("There is neither an adapter nor a reference model.")
    return found


def keep_adapter(model: PeftModel) -> None:
    """Put a frozen copy of the active adapter beside it; checkpoints hold the one in training only."""
    active = str(model.active_adapter)
    needs_gradient = {name: weight.requires_grad for name, weight in model.named_parameters()}
    config = copy.deepcopy(model.peft_config[active])
    config.inference_mode = True
    if hasattr(config, "init_lora_weights"):
        cast(Any, config).init_lora_weights = True  # pissa and the like would change the base once more
    model.add_adapter(REFERENCE, config)
    model.set_adapter(active)

    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if name in needs_gradient:
            weight.requires_grad_(needs_gradient[name])
        else:
            weight.data = weights[_source_name(name, active)].detach().clone()
            weight.requires_grad_(False)
    saving: Any = model
    saving.save_pretrained = partial(model.save_pretrained, selected_adapters=[active])


def silence_dropout(model: nn.Module) -> None:
    """Switch dropout off for good, on this instance: noise in log-ratios is no regularizer.

    Policy and reference must be compared on equal terms, and a sum over hundreds of tokens turns small noise into
    rewards that have nothing to do with learning.
    """
    silenced = 0.0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            silenced, module.p = max(silenced, module.p), 0.0
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
                silenced = max(silenced, value)
    if silenced:
        logger.info(
            "Dropout (%s) is off: this stage compares log-probabilities with those of the reference.", silenced
        )


@contextmanager
def _adapter_away(model: PeftModel) -> Iterator[None]:
    """Switch to the frozen adapter or to none, and back.

    PEFT also changes which weights need a gradient while it switches; that is put back as it was.
    """
    needs_gradient = [(weight, weight.requires_grad) for weight in model.parameters()]
    active: Any = model.active_adapter
    tuner: Any = model.base_model
    try:
        if REFERENCE in model.peft_config:
            model.set_adapter(REFERENCE)
        else:
            tuner.disable_adapter_layers()
        yield
    finally:
        if REFERENCE in model.peft_config:
            model.set_adapter(active)
        else:
            tuner.enable_adapter_layers()
        for weight, needed in needs_gradient:
            if weight.requires_grad != needed:
                weight.requires_grad_(needed)


def _source_name(name: str, active: str) -> str:
    """Name the weight of the active adapter that a weight of the copy stands for."""
    return ".".join(active if part == REFERENCE else part for part in name.split("."))


def _copy(context: StageContext) -> nn.Module:
    """Load the model a second time and give it the very weights of the first, in their formats.

    Not `copy.deepcopy`: functions that passes put on an instance would still belong to the original.
    """
    reference = _load_base(context)
    with torch.no_grad():
        tensors = dict(context.model.named_parameters()) | dict(context.model.named_buffers())
        for name, tensor in [*reference.named_parameters(), *reference.named_buffers()]:
            tensor.data = tensors[name].detach().to(tensor.device, copy=True)
    return reference


def _load_base(context: StageContext) -> nn.Module:
    """Load the starting model without the adapters that an evaluation merges."""
    return _load(context, adapter_name_or_path=None)


def _load_other(context: StageContext) -> nn.Module:
    finetuning = context.arguments.finetuning
    name = finetuning.ref_model or context.arguments.model.model_name_or_path
    model = _load(context, model_name_or_path=name, adapter_name_or_path=finetuning.ref_model_adapters)
    leak = find_leak(model) if context.layout.kind == "flat" and finetuning.ref_model else None
    if leak is not None:
        raise UserError(f"ref_model: {leak}; set padding_free: false.")
    return model


def _load(context: StageContext, **changes: Any) -> nn.Module:
    arguments = context.arguments
    chosen = choose_dtype(training_flags(arguments.training, arguments.finetuning), device_facts())
    whole = DtypeChoice(
        frozen=chosen.frozen, trainable=chosen.frozen, autocast=chosen.autocast, reason="of the reference"
    )
    model: PreTrainedModel = load_model(
        context.tokenizer,
        replace(arguments.model, **changes, quantization_bit=arguments.finetuning.ref_model_quantization_bit),
        replace(arguments.finetuning, finetuning_type="lora"),  # adapters are merged, nothing is trained
        dtype=whole,
    )
    use_flat_attention(model, arguments.model.flash_attn)
    if is_quantized(model):
        return model  # on its device since it was packed
    return model.to(current_device(read_env().local_rank or 0))  # pyright: ignore[reportArgumentType]
