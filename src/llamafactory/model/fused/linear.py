"""Linear layers with LoRA: PEFT's module stays, its arithmetic becomes one function.

Projections that read the same tensor (queries, keys and values) are computed together: the first one that is called
computes all and keeps the others' results until they are asked for, at the latest until the block's forward ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from peft.tuners import lora
from torch import Tensor, nn

from ...ops.lora import Projection, compute_dtype, lora_linear, lora_linears
from .packed import packed_weight
from .replacement import Replacement, is_compiling, is_free, is_plain_weight, is_watched


FEW_TOKENS = 32
"""Below it a package's own product with a packed weight is faster than unpacking: an answer is being written."""


def projection_of(module: nn.Module) -> Projection | None:
    """Return what a linear layer computes at this moment; None when it is more than ops/lora.py knows."""
    if not (is_free(module) or isinstance(vars(module)["forward"], FusedLinear)):
        return None
    if not is_adapted(module):
        return _plain(module)
    if is_watched(module):
        return None
    plain = _plain(module.get_base_layer())
    if plain is None or module.fan_in_fan_out:
        return None
    if module.disable_adapters:  # a merged layer takes its update out again first
        return None if module.merged else plain
    return plain if module.merged else _with_update(module, plain)


def is_adapted(module: nn.Module) -> TypeGuard[lora.Linear]:
    """Whether this is a linear layer with LoRA: PEFT has one kind for plain weights, and one for 4 bits."""
    return type(module) is lora.Linear or (
        isinstance(module, lora.LoraLayer) and type(module).__name__ == "Linear4bit"
    )


def _plain(layer: nn.Module) -> Projection | None:
    bias: Any = getattr(layer, "bias", None)
    if is_watched(layer) or not (bias is None or is_plain_weight(bias)):
        return None
    if type(layer) is nn.Linear:
        return Projection(layer.weight, bias) if is_plain_weight(layer.weight) else None
    packed = packed_weight(layer)
    return None if packed is None else Projection(packed, bias)


def _with_update(module: lora.Linear, plain: Projection) -> Projection | None:
    active = [name for name in module.active_adapters if name in module.lora_A]
    if len(active) != 1 or active[0] in module.lora_variant or module.lora_bias[active[0]]:
        return None
    name = active[0]
    dropout, a, b = module.lora_dropout[name], module.lora_A[name], module.lora_B[name]
    if not isinstance(dropout, nn.Identity) and dropout.training and getattr(dropout, "p", 1.0) > 0:
        return None
    if type(a) is not nn.Linear or type(b) is not nn.Linear or is_watched(a) or is_watched(b):
        return None
    if not is_plain_weight(a.weight) or not is_plain_weight(b.weight):
        return None
    return plain._replace(a_RD=a.weight, b_OR=b.weight, scale=module.scaling[name])


def fits(x: Tensor, projection: Projection) -> bool:
    """Whether the function may multiply x by the weights as they are: PyTorch converts only under autocast."""
    weight = projection.weight_OD
    if x.device != weight.device or not x.is_floating_point() or type(x) not in (Tensor, nn.Parameter):
        return False
    if isinstance(weight, Tensor):
        return x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type)
    is_many = torch.is_grad_enabled() or x.numel() >= FEW_TOKENS * x.shape[-1]
    return is_many and weight.takes(compute_dtype(x))


class FusedLinear(Replacement):
    """Stands for a PEFT linear layer, or for a plain one among siblings that have adapters."""

    siblings: "Siblings | None" = None

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or is_compiling():
            return self.own(x, *args, **kwargs)
        if self.siblings is not None and self.siblings.is_open:
            shared = self.siblings.take(self.module, x)
            if shared is not None:
                return shared
        projection = projection_of(self.module)
        if projection is None or not fits(x, projection):
            return self.own(x)
        return lora_linear(x, projection)


class Siblings:
    """Projections of one block that receive the same tensor.

    Results are only kept while the block's forward runs, so neither an exception nor a recomputation that stops early
    leaves anything behind; and only for the very tensor that they were computed from.
    """

    def __init__(self, members: list[nn.Module]) -> None:
        self.members = members
        self.is_open = False
        self.is_useful = True
        self._source: Tensor | None = None
        self._results: dict[nn.Module, Tensor] = {}

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep results for the siblings inside; nothing outlives it."""
        self.is_open = self.is_useful
        try:
            yield
        finally:
            self.is_open = False
            self._forget()

    def take(self, member: nn.Module, x: Tensor) -> Tensor | None:
        """Return a member's projection of x, and compute the others' with it; None when it must go alone."""
        if self._source is x and member in self._results:
            return self._results.pop(member)
        if self._results:  # they are asked about different tensors: this block does not share its input
            self.is_useful = self.is_open = False
            self._forget()
            return None
        layers = [projection_of(module) for module in self.members]
        projections = [layer for layer in layers if layer is not None and fits(x, layer)]
        if len(projections) < len(self.members):
            return None
        self._source = x
        self._results = dict(zip(self.members, lora_linears(x, projections), strict=True))
        return self._results.pop(member)

    def _forget(self) -> None:
        self._source = None
        self._results = {}
