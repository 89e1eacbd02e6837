"""Loads the tokenizer, the config and the model; a model is loaded by a visible list of passes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..extras.device import current_device, device_facts
from ..extras.env import read_env
from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..hparams.methods import tuning_methods
from .adapter import apply_method
from .base_changes import BaseChanges, apply_positions, carry_changes, read_changes
from .by_unsloth import read_by_unsloth
from .depths import with_depths
from .dtype import DtypeChoice, DtypeFlags, choose_dtype, inference_flags, stored_dtype
from .fused import fuse_modules
from .load_errors import reading_model
from .model_utils.attention import attention_implementation
from .model_utils.checkpointing import prepare_checkpointing
from .model_utils.parameters import report_parameters, settle_dtypes
from .model_utils.rope import stretch_positions
from .model_utils.upcast import upcast_logits, upcast_norms
from .model_utils.valuehead import add_value_head, settle_score_head, without_fresh_score
from .patcher import settle_cache_use, settle_generation_config
from .processor import is_multimodal, load_processor
from .quantization import Quantizer, choose_quantizer, settle_packing
from .quantization.aware import prepare_rounding
from .readout import install_readout
from .request import Head, LoadRequest
from .sources import resolve_model
from .vocabulary import add_tokens, grow_vocabulary, new_ids_of, noted_tokens


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    from ..hparams import FinetuningArguments, ModelArguments


logger = get_logger(__name__)

Pass = Callable[[PreTrainedModel, LoadRequest], PreTrainedModel]

PASSES: tuple[Pass, ...] = (
    settle_generation_config,
    settle_cache_use,
    settle_score_head,
    settle_packing,
    apply_method,
    add_value_head,
    install_readout,
    upcast_logits,
    settle_dtypes,
    upcast_norms,
    prepare_checkpointing,
    prepare_rounding,
    fuse_modules,
    report_parameters,
)
"""What happens to a model after its weights are there, in order."""


class TokenizerModule(TypedDict):
    """What turns text, images and sound into a model's input."""

    tokenizer: "PreTrainedTokenizerBase"
    processor: "ProcessorMixin | None"


def load_tokenizer(model_args: "ModelArguments", *, needs_weights: bool = True) -> TokenizerModule:
    """Load the tokenizer of the model, as it was saved; with needs_weights, missing weights are found out already."""
    source = resolve_model(model_args.model_name_or_path, model_args, needs_weights=needs_weights)
    with reading_model(source):
        tokenizer = AutoTokenizer.from_pretrained(
            str(source),
            use_fast=model_args.use_fast_tokenizer,
            padding_side="right",
            **({"split_special_tokens": True} if model_args.split_special_tokens else {}),
            **_source_options(source, model_args),
        )
    for key in ("local_files_only", "is_local"):  # about this call, not about the tokenizer: they must not be saved
        tokenizer.init_kwargs.pop(key, None)
    processor = load_processor(source, tokenizer, _source_options(source, model_args))
    add_tokens(tokenizer, model_args, read_changes(model_args))
    return {"tokenizer": tokenizer, "processor": processor}


def load_config(model_args: "ModelArguments") -> PreTrainedConfig:
    """Load the config of the model, with what an adapter notes about positions."""
    source = resolve_model(model_args.model_name_or_path, model_args)
    with reading_model(source):
        config = AutoConfig.from_pretrained(str(source), **_source_options(source, model_args))
    apply_positions(config, read_changes(model_args))
    return config


def load_generation_config(model_args: "ModelArguments") -> GenerationConfig | None:
    """Load what was saved about generation with the model; None where it has nothing of the kind."""
    source = resolve_model(model_args.model_name_or_path, model_args)
    try:
        return GenerationConfig.from_pretrained(str(source), **_source_options(source, model_args))
    except OSError:
        return None


def load_model(
    tokenizer: "PreTrainedTokenizerBase",
    model_args: "ModelArguments",
    finetuning_args: "FinetuningArguments",
    is_trainable: bool = False,
    *,
    dtype: DtypeChoice | None = None,
    head: Head = "words",
) -> PreTrainedModel:
    """Load the model, with its adapters, ready to train or (with adapters merged) to answer, or to score.

    Without `dtype` the number formats are chosen from `infer_dtype`, or for training by the device alone.
    """
    config, noted = load_config(model_args), read_changes(model_args)
    positions = stretch_positions(config, model_args) or noted.positions
    flags = DtypeFlags(is_trainable=True) if is_trainable else inference_flags(model_args)
    dtypes = dtype or choose_dtype(flags, device_facts(), stored_dtype(config))
    logger.info("Number format: %s.", dtypes)
    request = LoadRequest(
        model_args=model_args,
        finetuning_args=finetuning_args,
        is_trainable=is_trainable,
        dtypes=dtypes,
        head=head,
        new_token_ids=new_ids_of(tokenizer),
    )
    model = _read_weights(config, request)
    num_rows = grow_vocabulary(model, tokenizer, model_args, noted.num_rows)
    check_vocabulary(tokenizer, model)
    for apply in PASSES:
        model = apply(model, request)
    if isinstance(model, PeftModel):
        carry_changes(model, BaseChanges(positions, num_rows, *noted_tokens(tokenizer, noted)))
    return model.train() if is_trainable else model.eval()


def _read_weights(config: PreTrainedConfig, request: LoadRequest) -> PreTrainedModel:
    """Read the weights of a request, quantized if it says so, or let Unsloth do it."""
    args = request.model_args
    if request.is_by_unsloth:
        source = resolve_model(args.model_name_or_path, args)
        with reading_model(source):
            return read_by_unsloth(source, config, request)
    tuning = request.finetuning_args if request.is_trainable else None
    quantizer = choose_quantizer(config, args, tuning, request.dtypes)
    return load_weights(
        config,
        args,
        request.dtypes.frozen if quantizer else load_dtype(config, request),
        placed=not request.is_trainable or quantizer is not None,  # packed weights are packed where they stay
        head=request.head,
        quantizer=quantizer,
    )


def load_weights(
    config: PreTrainedConfig,
    model_args: "ModelArguments",
    dtype: torch.dtype,
    *,
    placed: bool,
    head: Head = "words",
    quantizer: Quantizer | None = None,
) -> PreTrainedModel:
    """Read the weights (or draw them, with train_from_scratch); `placed` puts them on the device at once.

    With a score as its head, the model is one for sequence classification with one label.
    """
    kind: Any = AutoModelForMultimodalLM if is_multimodal(config) else AutoModelForCausalLM
    if head == "score":
        kind, config.num_labels = AutoModelForSequenceClassification, 1
    attention = attention_implementation(model_args.flash_attn)
    source = resolve_model(model_args.model_name_or_path, model_args)
    pack = quantizer.pack if quantizer else None
    with reading_model(source):
        if model_args.train_from_scratch:
            drawn = kind.from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=model_args.trust_remote_code
            )
            return with_depths(drawn, source, model_args)
        loaded: Any = kind.from_pretrained(
            str(source),
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            device_map=_device_map(model_args) if placed and pack is None else None,
            quantization_config=quantizer.config if quantizer else None,
            offload_folder=model_args.offload_folder if placed else None,
            output_loading_info=True,
            **_source_options(source, model_args),
        )
    model, report = loaded  # a pair, because of output_loading_info
    missing = sorted(report["missing_keys"])
    if head == "score":
        missing = without_fresh_score(model, missing, model_args, is_trainable=not placed)
    if missing:
        raise UserError(
            f"The weights of {source} are incomplete: {len(missing)} tensors are missing, such as {missing[0]}."
        )
    return with_depths(pack(model) if pack else model, source, model_args)


def load_dtype(config: PreTrainedConfig, request: LoadRequest) -> torch.dtype:
    """The format to read the weights in: wide enough that nothing is rounded twice.

    A base that adapters are merged into keeps its stored format until then.
    """
    if request.model_args.adapter_name_or_path:
        return torch.promote_types(stored_dtype(config), request.dtypes.frozen)
    if request.is_trainable and not tuning_methods()[request.finetuning_args.finetuning_type].is_adapter:
        return request.dtypes.trainable
    return request.dtypes.frozen


def check_vocabulary(tokenizer: "PreTrainedTokenizerBase", model: PreTrainedModel) -> None:
    """Refuse a tokenizer whose ids reach past the embedding: the first such token would crash the run."""
    num_rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    if len(tokenizer) > num_rows:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens but the model only {num_rows} rows for them: the two do not "
            "belong together, or the template added tokens and another template fits this model better."
        )


def _source_options(source: Path | str, model_args: "ModelArguments") -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": model_args.trust_remote_code}
    if isinstance(source, Path):
        return options | {"local_files_only": True}
    return options | {
        "revision": model_args.model_revision,
        "token": model_args.hf_hub_token,
        "cache_dir": model_args.cache_dir,
    }


def _device_map(model_args: "ModelArguments") -> str | dict[str, torch.device] | None:
    """At inference the weights go where they will run: over all devices, or to this process's own."""
    facts, env = device_facts(), read_env()
    if model_args.quantization_device_map is not None:
        return model_args.quantization_device_map
    if facts.kind == "cpu":
        return None
    if facts.count > 1 and not env.is_distributed:
        return "auto"
    return {"": current_device(env.local_rank or 0)}
