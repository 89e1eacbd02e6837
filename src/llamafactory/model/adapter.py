"""Which weights learn: the model's own (full, freeze), or those of a small adapter that is put on it.

Every method is a row of hparams/methods.toml. A row of kind "weights" names a function that sets what learns; any
other names one that makes PEFT's config of a fresh adapter. What is saved tells its own method, so it can be loaded,
merged and talked to without naming it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import PreTrainedConfig, PreTrainedModel

from ..extras.device import device_facts
from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..extras.registry import Registry
from ..hparams.methods import tuning_methods
from .adapters.ready import make_ready
from .adapters.saved import load_adapter, merge_adapters, method_of, restore_adapter, without_noise
from .adapters.start import SEED, starts_from_weights
from .by_unsloth import adapt_by_unsloth
from .dtype import DtypeFlags, choose_dtype, inference_flags, stored_dtype
from .model_utils.valuehead import refuse_foreign_score
from .quantization import is_quantized
from .request import LoadRequest
from .sources import resolve_adapter


if TYPE_CHECKING:
    from ..hparams import FinetuningArguments, ModelArguments

__all__ = ["ADAPTERS", "apply_method", "init_adapter", "load_adapter", "merge_adapters", "restore_adapter"]

logger = get_logger(__name__)

TuningMethod = Callable[[PreTrainedModel, LoadRequest], Any]
"""Sets what learns and returns the model, or returns PEFT's config of a fresh adapter."""
ADAPTERS: Registry[TuningMethod] = Registry(
    "finetuning_type", {name: row.build for name, row in tuning_methods().items()}
)


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
    name = request.finetuning_args.finetuning_type
    build = ADAPTERS.get(name)
    if not request.is_trainable:
        model.requires_grad_(False)
    if not tuning_methods()[name].is_adapter:
        return build(model, request)
    plan = _plan_adapters(request, is_mergeable=not is_quantized(model))
    model = merge_adapters(model, plan.merged, request.dtypes.frozen)
    if plan.kept is not None:
        return cast(PreTrainedModel, _continued(model, plan.kept, request))
    return cast(PreTrainedModel, _fresh(model, build, request)) if request.is_trainable else model


def _fresh(model: PreTrainedModel, build: TuningMethod, request: LoadRequest) -> Any:
    """Put a new adapter on the model; it passes every call and attribute on to the model inside.

    What is drawn where the base changes must not depend on anything before: a resumed run changes it again.
    """
    config: PeftConfig = build(model, request)
    if request.is_by_unsloth:
        return adapt_by_unsloth(model, cast(LoraConfig, config), request)
    with torch.random.fork_rng(enabled=starts_from_weights(config)), without_noise():
        if starts_from_weights(config):
            torch.manual_seed(SEED)
        adapted: Any = get_peft_model(model, config)
    make_ready(adapted, request)
    return adapted


def _continued(model: PreTrainedModel, folder: Path, request: LoadRequest) -> Any:
    """Put a saved adapter on the model, to train on with it or because it cannot be merged."""
    if not request.is_trainable:
        return load_adapter(model, folder)
    refuse_foreign_score(folder, request.head)
    wanted, saved = request.finetuning_args.finetuning_type, method_of(folder)
    if saved is None or saved.name != wanted:
        title = saved.name if saved else "of a kind that is not trained here"
        raise UserError(
            f"The adapter {folder} is {title}, but finetuning_type says {wanted}: make them equal, or set "
            "create_new_adapter: true, which merges it and starts a new one."
        )
    adapted = load_adapter(model, folder, is_trainable=True)
    logger.info("Training goes on with the adapter %s; its own rank and targets count.", folder)
    return adapted


@dataclass(frozen=True)
class _AdapterPlan:
    merged: tuple[Path, ...]
    kept: Path | None
    """Stays on the model: training goes on with it, or it cannot be merged."""


def _plan_adapters(request: LoadRequest, *, is_mergeable: bool) -> _AdapterPlan:
    """All but the last are merged; the last one too, unless training goes on with it or it cannot be.

    Nothing can be merged into a base of few bits, which takes one adapter (a rule says so).
    """
    names = request.model_args.adapter_name_or_path or ()
    folders = tuple(resolve_adapter(name, request.model_args) for name in names)
    if not folders:
        return _AdapterPlan((), None)
    goes_on = request.is_trainable and not request.finetuning_args.create_new_adapter
    last = None if goes_on else method_of(folders[-1])
    stays = goes_on or (not request.is_trainable and not (is_mergeable and (last is None or last.merges)))
    return _AdapterPlan(folders[:-1], folders[-1]) if stays else _AdapterPlan(folders, None)
