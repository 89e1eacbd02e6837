"""Which weights learn: all of them (full), some layers (freeze), or small adapters (lora).

Every method is a row of ADAPTERS; an unknown one is an error that names the known ones.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel

from ..extras.device import device_facts
from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..extras.registry import Registry
from .dtype import DtypeFlags, choose_dtype, inference_flags, stored_dtype
from .freeze import choose_trainable
from .merge import merge_adapter
from .model_utils.valuehead import refuse_foreign_score, score_head_name
from .modules import find_all_linear_modules, match_modules, match_targets
from .request import Head, LoadRequest
from .sources import resolve_adapter


if TYPE_CHECKING:
    from ..hparams import FinetuningArguments, ModelArguments


logger = get_logger(__name__)

TuningMethod = Callable[[PreTrainedModel, LoadRequest], PreTrainedModel]
PEFT_SCORES = ("classifier", "score")  # PEFT saves layers of these names with a classification model by itself
ADAPTERS: Registry[TuningMethod] = Registry("finetuning_type")


def init_adapter(
    config: PreTrainedConfig,
    model: PreTrainedModel,
    model_args: "ModelArguments",
    finetuning_args: "FinetuningArguments",
    is_trainable: bool,
) -> PreTrainedModel:
    """Apply the tuning method; at inference this merges the adapters and freezes everything."""
    flags = DtypeFlags(is_trainable=True) if is_trainable else inference_flags(model_args)
    dtypes = choose_dtype(flags, device_facts(), stored_dtype(config))
    request = LoadRequest(
        model_args=model_args, finetuning_args=finetuning_args, is_trainable=is_trainable, dtypes=dtypes
    )
    return apply_method(model, request)


def apply_method(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """The pass over a loaded model that decides which of its weights learn."""
    method = ADAPTERS.get(request.finetuning_args.finetuning_type)
    if not request.is_trainable:
        model.requires_grad_(False)
    return method(model, request)


def load_adapter(model: PreTrainedModel, folder: Path, *, is_trainable: bool = False) -> PeftModel:
    """Put a saved adapter on the model; one that was made for another model is a UserError."""
    try:
        with _without_noise():
            config = PeftConfig.from_pretrained(str(folder))
            if config.task_type == TaskType.CAUSAL_LM and not model.can_generate():
                config.task_type = None  # an adapter of the established tool, whose score lies in a file of its own
            loaded = PeftModel.from_pretrained(
                model, str(folder), is_trainable=is_trainable, config=config, low_cpu_mem_usage=True
            )
    except (ValueError, RuntimeError) as error:
        if "size mismatch" in str(error) or "not found in the base model" in str(error):
            raise UserError(f"The adapter {folder} was made for another model than {model.name_or_path}.") from error
        raise
    restore_adapter(loaded, folder)
    return loaded


def restore_adapter(model: PeftModel, folder: Path) -> None:
    """Copy an adapter's saved weights into the one that is on the model, bit for bit.

    PEFT 0.21 rounds them to the base's format while it puts them there (_move_adapter_to_device_of_base_layer) and
    only then makes them float32: over a bfloat16 base, two thirds of the mantissa would be lost.
    """
    weights = load_file(folder / "adapter_model.safetensors")
    needed = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if missing := needed - set(weights):
        raise UserError(
            f"The adapter {folder} lacks {len(missing)} of the weights that {model.name_or_path} needs, such as "
            f"{min(missing)}; it is damaged or was made for another model."
        )
    set_peft_model_state_dict(model, weights)


def merge_adapters(model: PreTrainedModel, folders: Sequence[Path], dtype: torch.dtype) -> PreTrainedModel:
    """Merge saved adapters into the model, one after another; the adapted layers are cast to `dtype` at the end."""
    for folder in folders:
        merged = merge_adapter(load_adapter(model, folder), dtype if folder == folders[-1] else torch.float32)
        logger.info("Merged the adapter %s into %s layers.", folder, merged.num_layers)
        model = merged.model
    return model


@ADAPTERS.register("full")
def _full(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    return model.requires_grad_(request.is_trainable)


@ADAPTERS.register("freeze")
def _freeze(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    if request.is_trainable:
        args = request.finetuning_args
        extra = list(args.freeze_extra_modules or ())
        if request.head == "score":
            extra.append(score_head_name(model))  # a new layer: without it nothing is learned
        choose_trainable(model, args.freeze_trainable_layers, args.freeze_trainable_modules, extra)
    return model


@ADAPTERS.register("lora")
def _lora(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    plan = _plan_adapters(request)
    model = merge_adapters(model, plan.merged, request.dtypes.frozen)
    if plan.continued is not None:
        refuse_foreign_score(plan.continued, request.head)
        peft_model = load_adapter(model, plan.continued, is_trainable=True)
        logger.info("Training goes on with the adapter %s; its own rank and targets count.", plan.continued)
    elif request.is_trainable:
        with _without_noise():
            peft_model = get_peft_model(model, lora_config(model, request.finetuning_args, request.head))
    else:
        return model
    return cast(PreTrainedModel, peft_model)  # it passes every call and attribute on to the model inside


def lora_config(model: PreTrainedModel, args: "FinetuningArguments", head: Head = "words") -> LoraConfig:
    """The PEFT config of a fresh adapter, with all targets checked against the model.

    The score layer of a reward model is trained in full and saved with the adapter.
    """
    scores = [score_head_name(model)] if head == "score" else []
    if args.lora_target == ("all",):
        targets: list[str] | str = find_all_linear_modules(model, args.freeze_vision_tower, scores)
    else:
        targets = match_targets(model, args.lora_target, "lora_target")
    saved = match_modules(model, args.additional_target, "additional_target") if args.additional_target else None
    logger.info("LoRA of rank %s on: %s.", args.lora_rank, targets if isinstance(targets, str) else ", ".join(targets))
    if scores and scores[0] not in PEFT_SCORES:
        saved = [*(saved or []), *scores]
    return LoraConfig(
        task_type=TaskType.SEQ_CLS if scores else TaskType.CAUSAL_LM,
        r=args.lora_rank,
        lora_alpha=args.lora_alpha or 2 * args.lora_rank,
        lora_dropout=args.lora_dropout,
        target_modules=targets,
        modules_to_save=saved,
        use_rslora=args.use_rslora,
        use_dora=args.use_dora,
    )


@dataclass(frozen=True)
class _AdapterPlan:
    merged: tuple[Path, ...]
    continued: Path | None


def _plan_adapters(request: LoadRequest) -> _AdapterPlan:
    """All but the last are merged; the last one too, unless training goes on with it."""
    names = request.model_args.adapter_name_or_path or ()
    folders = tuple(resolve_adapter(name, request.model_args) for name in names)
    if folders and request.is_trainable and not request.finetuning_args.create_new_adapter:
        return _AdapterPlan(folders[:-1], folders[-1])
    return _AdapterPlan(folders, None)


@contextmanager
def _without_noise() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5.23 a question under its old name, which warns in every run."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield
