"""Adapters on disk: put on a model, checked, and merged into it."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import (
    PeftConfig,
    PeftModel,
    PromptLearningConfig,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ...hparams.methods import Method, method_of_adapter
from ..merge import merge_adapter
from .carried import CARRIED_FILE
from .ready import make_ready


logger = get_logger(__name__)


def load_adapter(model: PreTrainedModel, folder: Path, *, is_trainable: bool = False) -> PeftModel:
    """Put a saved adapter on the model; one that was made for another model is a UserError."""
    try:
        with without_noise():
            config = PeftConfig.from_pretrained(str(folder))
            if config.task_type == TaskType.CAUSAL_LM and not model.can_generate():
                config.task_type = None  # an adapter of the established tool, whose score lies in a file of its own
            if is_trainable and isinstance(config, PromptLearningConfig):
                return _continued_prompt(model, folder, config)
            loaded = PeftModel.from_pretrained(
                model, str(folder), is_trainable=is_trainable, config=config, low_cpu_mem_usage=True
            )
    except (ValueError, RuntimeError) as error:
        if "size mismatch" in str(error) or "not found in the base model" in str(error):
            raise UserError(f"The adapter {folder} was made for another model than {model.name_or_path}.") from error
        raise
    if not isinstance(config, PromptLearningConfig):
        restore_adapter(loaded, folder)
    make_ready(loaded, None)
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


def method_of(folder: Path) -> Method | None:
    """Return the method that an adapter was trained with; None for one that this package does not train."""
    config: Any = PeftConfig.from_pretrained(str(folder))
    return method_of_adapter(str(config.peft_type.value))


def refuse_merge(folders: Sequence[Path]) -> None:
    """Refuse adapters that can never become plain weights, with the reason."""
    for folder in folders:
        method = method_of(folder)
        if method is not None and not method.merges:
            raise UserError(
                f"The adapter {folder} ({method.title}) cannot be merged: {method.unmerged}. Use it as it is, with "
                "adapter_name_or_path."
            )


def merge_adapters(model: PreTrainedModel, folders: Sequence[Path], dtype: torch.dtype) -> PreTrainedModel:
    """Merge saved adapters into the model, one after another; the adapted layers are cast to `dtype` at the end."""
    refuse_merge(folders)
    for folder in folders:
        merged = merge_adapter(load_adapter(model, folder), dtype if folder == folders[-1] else torch.float32)
        logger.info("Merged the adapter %s into %s layers.", folder, merged.num_layers)
        model = merged.model
    return model


def _continued_prompt(model: PreTrainedModel, folder: Path, config: PromptLearningConfig) -> PeftModel:
    """Put virtual tokens on the model as if they were new, and read the saved ones into them.

    PEFT loads finished vectors only, which is all there is to answer with; the network behind them is in our file.
    """
    config.inference_mode = False
    adapted = get_peft_model(model, config)
    if not isinstance(adapted, PeftModel):
        raise TypeError(f"an adapter made a {type(adapted).__name__}")
    carried = make_ready(adapted, None)
    if carried is not None and carried.is_whole and not (folder / CARRIED_FILE).is_file():
        raise UserError(
            f"The adapter {folder} holds the finished vectors only, without the network that made them, so training "
            "cannot go on with it; start a new one."
        )
    adapted.load_adapter(str(folder), str(adapted.active_adapter), is_trainable=True)
    return adapted


@contextmanager
def without_noise() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5.23 a question under its old name, which warns in every run.

    It also warns that nothing can be merged into torchao's weights, into which nothing ever is.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated")
        yield
