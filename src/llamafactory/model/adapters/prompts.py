"""Virtual tokens: trained vectors that stand before every text, while the model stays as it is.

Prompt tuning (arxiv.org/abs/2104.08691) and p-tuning (arxiv.org/abs/2103.10385) put V vectors before the embeddings of
a row, prefix tuning (arxiv.org/abs/2101.00190) puts V keys and values into the cache of every layer. Either way each
row has them before its first token, so rows are padded: in rows laid end to end only the first would see them. Nothing
about labels changes. Only positions that a stage asks for (model/readout.py) have to be moved, and logits of virtual
tokens are cut off, so that whoever calls the model gets one state and one row of logits for each token it gave.
"""

from collections.abc import Mapping
from types import MethodType
from typing import Any, cast

import torch
from peft import (
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptLearningConfig,
    PromptTuningConfig,
    PromptTuningInit,
    TaskType,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ..readout import Readout
from ..request import LoadRequest
from ..sources import resolve_model
from .carried import Carried, carry


logger = get_logger(__name__)


def prompt_tuning_config(model: PreTrainedModel, request: LoadRequest) -> PromptTuningConfig:
    """Vectors before the embeddings, starting from a text of the user or from words drawn at random."""
    args = request.finetuning_args
    _refuse_modules(request)
    start: dict[str, Any] = {"prompt_tuning_init": PromptTuningInit.SAMPLE_VOCAB}
    if args.prompt_init_text:
        source = str(resolve_model(request.model_args.model_name_or_path, request.model_args))
        start = {
            "prompt_tuning_init": PromptTuningInit.TEXT,
            "prompt_tuning_init_text": args.prompt_init_text,
            "tokenizer_name_or_path": source,
        }
    logger.info("Prompt tuning with %s virtual tokens.", args.num_virtual_tokens)
    return PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=args.num_virtual_tokens, **start)


def p_tuning_config(model: PreTrainedModel, request: LoadRequest) -> PromptEncoderConfig:
    """Vectors before the embeddings that a small network makes, which eases their training."""
    args = request.finetuning_args
    _refuse_modules(request)
    logger.info("P-tuning with %s virtual tokens.", args.num_virtual_tokens)
    return PromptEncoderConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=args.num_virtual_tokens,
        encoder_hidden_size=args.prompt_encoder_size or model.config.get_text_config().hidden_size,
    )


def prefix_tuning_config(model: PreTrainedModel, request: LoadRequest) -> PrefixTuningConfig:
    """Keys and values before those of the text, in every layer."""
    args = request.finetuning_args
    _refuse_modules(request)
    if request.model_args.disable_gradient_checkpointing is False:
        raise UserError(
            "prefix_tuning keeps its prefix in the key-value cache, which checkpointing cannot compute again: remove "
            "disable_gradient_checkpointing: false."
        )
    logger.info("Prefix tuning with %s virtual tokens in every layer.", args.num_virtual_tokens)
    return PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=args.num_virtual_tokens,
        prefix_projection=args.prefix_projection,
        encoder_hidden_size=args.prompt_encoder_size or model.config.get_text_config().hidden_size,
    )


def ready_prompt(model: PeftModel, request: LoadRequest | None) -> Carried:
    """Let a model with virtual tokens be called like one without, and carry the network behind them."""
    config = prompt_config(model)
    if isinstance(config, PromptTuningConfig):  # a path of this machine, which is of no use to a reader
        config.prompt_tuning_init, config.tokenizer_name_or_path = PromptTuningInit.RANDOM, None
        config.prompt_tuning_init_text = None
    if isinstance(config, PrefixTuningConfig):
        vars(model.get_base_model())["supports_gradient_checkpointing"] = False
    vars(model)["forward"] = MethodType(_forward, model)
    encoder: nn.Module = model.prompt_encoder[str(model.active_adapter)]  # pyright: ignore[reportIndexIssue]
    has_network = len(list(encoder.parameters())) > 1
    return carry(
        model,
        Carried(
            lambda: encoder.state_dict() if has_network else {},
            lambda tensors: _load_encoder(encoder, tensors),
            is_whole=has_network,
        ),
    )


def prompt_config(model: nn.Module) -> PromptLearningConfig | None:
    """Return the config of virtual tokens; None for a model without them."""
    config = model.active_peft_config if isinstance(model, PeftModel) else None
    return config if isinstance(config, PromptLearningConfig) else None


def _forward(
    self: PeftModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    readout: Readout | None = None,
    **kwargs: Any,
) -> Any:
    """The forward pass of PEFT, with positions and logits of the given tokens only."""
    config = cast(PromptLearningConfig, prompt_config(self))
    num_before = 0 if isinstance(config, PrefixTuningConfig) else cast(int, config.num_virtual_tokens)
    if readout is not None:
        given = cast(Tensor, kwargs.get("inputs_embeds") if input_ids is None else input_ids)
        kwargs["readout"] = readout._replace(positions_K=moved(readout.positions_K, given.shape[1], num_before))
    output = type(self).forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    if readout is None and num_before:
        output.logits = output.logits[:, num_before:]
    return output


def moved(positions_K: Tensor, width: int, num_before: int) -> Tensor:
    """Return where tokens stand in rows laid end to end when `num_before` others come before each row of `width`."""
    rows_K = torch.div(positions_K, width, rounding_mode="floor")
    return positions_K + (rows_K + 1) * num_before


def _refuse_modules(request: LoadRequest) -> None:
    args = request.finetuning_args
    if request.new_token_ids:
        raise UserError(
            "The rows of new tokens cannot be trained beside virtual tokens; take a method on layers, such as lora."
        )
    if args.additional_target:
        raise UserError(
            f"additional_target {', '.join(args.additional_target)} cannot be trained beside virtual tokens; remove "
            "it, or take a method on layers, such as lora."
        )


def _load_encoder(encoder: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    encoder.load_state_dict(dict(tensors))
