"""The model of a run without its weights, to be counted: nothing is read but its config, nothing is allocated.

It goes through the passes of `load_model` that decide what there is and what learns. Weights are not quantized here:
`packing` says how they would be, and model/quantization/sizes.py knows what that makes of them.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from ..hparams.quantizers import QUANTIZERS
from .adapter import apply_method
from .base_changes import read_changes
from .dtype import DtypeChoice
from .fused.blocks import mlp_activation
from .fused.packed import covers
from .load_errors import reading_model
from .loader import load_config, load_dtype
from .model_utils.attention import attention_implementation
from .model_utils.parameters import settle_dtypes
from .model_utils.rope import stretch_positions
from .model_utils.upcast import upcast_norms
from .model_utils.valuehead import add_value_head, settle_score_head
from .quantization.choosing import stored_name, stored_quantization
from .quantization.sizes import Packing
from .request import Head, LoadRequest
from .sources import resolve_model


if TYPE_CHECKING:
    from ..hparams import FinetuningArguments, ModelArguments


FUSED_METHODS = ("full", "freeze", "lora")
"""Methods whose layers model/fused knows."""


class Skeleton(NamedTuple):
    """An empty model, and what its weights would become."""

    model: PreTrainedModel
    packing: Packing | None
    is_fused: bool


def load_skeleton(
    model_args: "ModelArguments",
    finetuning_args: "FinetuningArguments",
    dtypes: DtypeChoice,
    *,
    num_tokens: int | None = None,
    head: Head = "words",
    is_trainable: bool = True,
) -> Skeleton:
    """Make the model of a run on torch's meta device; `num_tokens` is the size of its tokenizer, where that grows."""
    model_args = replace(model_args, train_from_scratch=True)  # a folder without weights will do
    config = load_config(model_args)
    stretch_positions(config, model_args)
    packing = find_packing(config, model_args)
    request = LoadRequest(
        model_args=model_args,
        finetuning_args=_from_nothing(finetuning_args),
        is_trainable=is_trainable,
        dtypes=dtypes,
        head=head,
    )
    dtype = dtypes.frozen if packing else load_dtype(config, request)
    model = _empty(config, model_args, dtype, head)
    rows = max(read_changes(model_args).num_rows or 0, num_tokens or 0)
    if rows > model.get_input_embeddings().get_parameter("weight").shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.device("meta"):
        for apply in (settle_score_head, apply_method, add_value_head, settle_dtypes, upcast_norms):
            model = apply(model, request)
    is_covered = packing is None or covers(packing)
    is_fused = is_trainable and model_args.fused_modules and is_covered and _takes_fused(model, finetuning_args)
    return Skeleton(model.train(), packing, is_fused)


def find_packing(config: PreTrainedConfig, model_args: "ModelArguments") -> Packing | None:
    """Return how the weights will be in few bits, or are in the checkpoint; None where they are (or become) plain."""
    stored = stored_quantization(config)
    if not stored:
        bits = model_args.quantization_bit
        if bits is None:
            return None
        return Packing(model_args.quantization_method, bits, model_args.double_quantization)
    name = stored_name(stored)
    row = QUANTIZERS.get(name)
    if row is not None and row.build.endswith("whole_config"):
        return None
    in_four = stored.get("load_in_4bit") or stored.get("_load_in_4bit")
    bits = int(stored.get("bits") or stored.get("w_bit") or (4 if in_four else 8))
    return Packing(name, bits, bool(stored.get("bnb_4bit_use_double_quant")))


def _empty(config: PreTrainedConfig, model_args: "ModelArguments", dtype: torch.dtype, head: Head) -> PreTrainedModel:
    kind: Any = AutoModelForCausalLM
    if head == "score":
        kind, config.num_labels = AutoModelForSequenceClassification, 1
    for name in ("quantization_config",):
        if hasattr(config, name):
            delattr(config, name)
    source = resolve_model(model_args.model_name_or_path, model_args)
    attention = attention_implementation(model_args.flash_attn)
    with reading_model(source), torch.device("meta"):
        model: PreTrainedModel = kind.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=model_args.trust_remote_code
        )
    model.tie_weights()
    return model


def _from_nothing(finetuning_args: "FinetuningArguments") -> "FinetuningArguments":
    """Leave out starting points that look at weights; they change no size."""
    return replace(finetuning_args, pissa_init=False, lora_init="default")


def _takes_fused(model: nn.Module, finetuning_args: "FinetuningArguments") -> bool:
    """Tell by structure what model/fused would replace; it asks the modules themselves, which takes weights."""
    method = finetuning_args.finetuning_type
    if method not in FUSED_METHODS or (
        method == "lora" and (finetuning_args.lora_dropout > 0 or finetuning_args.use_dora)
    ):
        return False
    return any(mlp_activation(module) is not None for module in model.modules())
