"""Merging an adapter into its base: float32 arithmetic, one layer at a time, cast once at the end.

Chat and export both come through here, so an exported model has bit for bit the weights that chat answers with.
"""

import warnings
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from ..extras.errors import UserError


@dataclass(frozen=True)
class Merged:
    """The merged model, and how many of the adapted layers differ from the base in the format they are kept in."""

    model: PreTrainedModel
    num_changed: int
    num_layers: int


def merge_adapter(model: PeftModel, dtype: torch.dtype, compare_in: torch.dtype | None = None) -> Merged:
    """Merge the active adapter; the adapted layers come out in `dtype`, the others as they were.

    A layer counts as changed when it differs from the base in the format `compare_in` (in `dtype` when not given).
    """
    rounding = compare_in or dtype
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    copies = [module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    changed = [_merge_layer(layer, dtype, rounding) for layer in layers]
    changed += [_differs(copy, rounding) for copy in copies]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")  # by us, just above
        merged = model.merge_and_unload()
    if not isinstance(merged, PreTrainedModel):
        raise TypeError(f"merging returned a {type(merged).__name__}")
    return Merged(merged, num_changed=sum(changed), num_layers=len(changed))


def _merge_layer(layer: BaseTunerLayer, dtype: torch.dtype, rounding: torch.dtype) -> bool:
    base = layer.get_base_layer()
    before = {name: weight.detach().to(rounding, copy=True) for name, weight in base.named_parameters(recurse=False)}
    for weight in base.parameters(recurse=False):
        weight.data = weight.data.float()
    layer.merge()
    is_changed = False
    for name, weight in base.named_parameters(recurse=False):
        if not torch.isfinite(weight).all():
            raise UserError("The adapter is broken: merging it gives weights that are not finite numbers.")
        is_changed |= not torch.equal(weight.data.to(rounding), before[name])
        weight.data = weight.data.to(dtype)
    return is_changed


def _differs(wrapper: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a module that was trained in full (additional_target) differs from the original."""
    original = getattr(wrapper, "original_module", None)
    if original is None:
        return True
    before = [weight.detach().to(dtype) for weight in original.parameters()]
    copies: nn.ModuleDict = getattr(wrapper, "modules_to_save", nn.ModuleDict())
    return any(
        not torch.equal(old, new.detach().to(dtype))
        for copy in copies.values()
        for old, new in zip(before, copy.parameters(), strict=True)
    )
