"""The pass over a training model that replaces what it can and says what it did."""

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from ...extras.logging import get_logger
from ..model_utils.threads import few_threads
from ..request import LoadRequest
from .blocks import (
    SIBLING_NAMES,
    FusedAttention,
    FusedMlp,
    FusedNorm,
    Rotation,
    mlp_activation,
    norm_eps,
    rotary_function,
    rotations_agree,
    with_rotation,
)
from .linear import FusedLinear, Siblings, is_adapted, projection_of
from .parity import LIMIT, is_equal
from .replacement import Replacement, is_free, put, restore_modules


__all__ = ["fuse_modules", "fuse_parts", "restore_modules"]

logger = get_logger(__name__)

KINDS = {
    "adapters": "LoRA linear layers",
    "mlps": "gated MLPs",
    "norms": "RMS norms",
    "rotations": "rotary embeddings",
    "shared": "joint q/k/v projections",
}


@dataclass
class Tally:
    """What was replaced and what was not, by kind; and what was already found to be equal."""

    fused: Counter[str] = field(default_factory=Counter[str])
    kept: Counter[str] = field(default_factory=Counter[str])
    verdicts: dict[Hashable, bool] = field(default_factory=dict[Hashable, bool])

    def note(self, kind: str, is_fused: bool) -> None:
        """Count one module."""
        (self.fused if is_fused else self.kept)[kind] += 1

    def agrees(self, key: Hashable, check: Callable[[], bool]) -> bool:
        """Run a check once per kind of module."""
        if key not in self.verdicts:
            self.verdicts[key] = check()
        return self.verdicts[key]

    def __str__(self) -> str:
        fused = ", ".join(f"{self.fused[kind]} {name}" for kind, name in KINDS.items() if self.fused[kind])
        kept = ", ".join(f"{self.kept[kind]} {name}" for kind, name in KINDS.items() if self.kept[kind])
        return f"Fused: {fused or 'nothing'}" + (f"; left as they are: {kept}." if kept else ".")


def fuse_modules(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """Put faster forms onto a training model's modules, unless `fused_modules` is off or Unsloth has its own."""
    if not request.is_trainable or not request.model_args.fused_modules or request.is_by_unsloth:
        return model
    with few_threads(model):
        tally = fuse_parts(model)
    logger.info("%s", tally)
    return model


def fuse_parts(model: nn.Module) -> Tally:
    """Replace every part that can be; returns the counts."""
    tally = Tally()
    if any(parameter.is_meta for parameter in model.parameters()):
        return tally
    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer) and is_free(module)]:
        _fuse_adapter(layer, tally)
    for module in [module for module in model.modules() if is_free(module)]:
        if (eps := norm_eps(module)) is not None:
            _fuse_norm(module, eps, tally)
        elif (activation := mlp_activation(module)) is not None:
            _fuse_mlp(module, activation, tally)
        elif (rotary := rotary_function(module)) is not None:
            _fuse_attention(module, rotary, tally)
    return tally


def _fuse_adapter(module: nn.Module, tally: Tally) -> None:
    is_fused = False
    if is_adapted(module) and (layer := projection_of(module)) is not None:
        width = layer.weight_OD.shape[1]
        key = ("adapter", type(module.get_base_layer()), layer.bias_O is None)
        is_fused = tally.agrees(key, lambda: is_equal(module, FusedLinear, width))
    if is_fused:
        put(FusedLinear(module))
    tally.note("adapters", is_fused)


def _fuse_norm(module: nn.Module, eps: float, tally: Tally) -> None:
    width = module.get_parameter("weight").shape[0]
    for shift in (0.0, 1.0):
        if tally.agrees(
            (type(module), eps, shift), lambda shift=shift: is_equal(module, lambda m: FusedNorm(m, eps, shift), width)
        ):
            put(FusedNorm(module, eps, shift))
            tally.note("norms", True)
            return
    tally.note("norms", False)


def _fuse_mlp(module: nn.Module, activation: str, tally: Tally) -> None:
    gate: Any = module.gate_proj
    layers = tuple(type(part) for part in module.modules())
    is_fused = projection_of(gate) is not None and tally.agrees(
        (type(module), layers, activation),
        lambda: is_equal(module, lambda m: FusedMlp(m, activation), gate.in_features),
    )
    if is_fused:
        put(FusedMlp(module, activation))
    tally.note("mlps", is_fused)


def _fuse_attention(module: nn.Module, own: Callable[..., Any], tally: Tally) -> None:
    rotation = Rotation(own)
    width = getattr(module, "head_dim", None)
    is_turned = isinstance(width, int) and tally.agrees(
        (own, width), lambda: rotations_agree(own, rotation, width, LIMIT)
    )
    siblings = _siblings_of(module)
    forward = type(module).forward
    if is_turned or siblings:
        put(FusedAttention(module, with_rotation(forward, rotation) if is_turned else forward, siblings))
    tally.note("rotations", is_turned)
    if siblings is not None:
        tally.note("shared", True)


def _siblings_of(module: nn.Module) -> Siblings | None:
    """Let the linear layers of a block share their input where adapters make that worth it."""
    members: list[Any] = [getattr(module, name, None) for name in SIBLING_NAMES]
    layers: list[nn.Module] = [member for member in members if isinstance(member, nn.Module)]
    if len(layers) < len(members) or not any(map(is_adapted, layers)):
        return None
    if any(projection_of(layer) is None for layer in layers):
        return None
    siblings = Siblings(layers)
    for layer in layers:
        replacement: Replacement | None = vars(layer).get("forward")
        if replacement is None:
            replacement = FusedLinear(layer)
            put(replacement)
        if isinstance(replacement, FusedLinear):
            replacement.siblings = siblings
    return siblings
