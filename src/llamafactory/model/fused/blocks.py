"""Attention blocks, gated feed-forward blocks and norms, by structure."""

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh, SiLUActivation

from ...ops.gated_mlp import GatedMlp, gated_mlp
from ...ops.norm import rms_norm
from ...ops.rope import rotate_pair
from .linear import Siblings, fits, projection_of
from .replacement import Replacement, is_compiling, is_plain_weight


ROTARY = "apply_rotary_pos_emb"
MLP_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")
SIBLING_NAMES = ("q_proj", "k_proj", "v_proj")


class FusedNorm(Replacement):
    """Stands for an RMS norm."""

    def __init__(self, module: nn.Module, eps: float, shift: float) -> None:
        super().__init__(module)
        self.eps, self.shift = eps, shift

    def __call__(self, hidden_states: Tensor) -> Tensor:
        weight: Any = self.module.weight
        if is_compiling() or not is_plain_weight(weight) or type(hidden_states) is not Tensor:
            return self.own(hidden_states)
        return rms_norm(hidden_states, weight, self.eps, shift=self.shift)


def norm_eps(module: nn.Module) -> float | None:
    """Return the epsilon of what looks like an RMS norm: one vector of weights, one number, one input."""
    if not type(module).__name__.endswith("RMSNorm"):
        return None
    parameters = dict(module.named_parameters())
    if set(parameters) != {"weight"} or list(module.buffers()):
        return None
    names = list(inspect.signature(type(module).forward).parameters)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if parameters["weight"].dim() != 1 or len(names) != 2 or not isinstance(eps, float):
        return None
    return eps


class FusedMlp(Replacement):
    """Stands for a gated feed-forward block."""

    def __init__(self, module: nn.Module, activation: str) -> None:
        super().__init__(module)
        self.activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        if is_compiling():
            return self.own(x)
        layers = [projection_of(getattr(self.module, name)) for name in MLP_PARTS[:3]]
        known = [layer for layer in layers if layer is not None and fits(x, layer)]
        if len(known) < len(layers):
            return self.own(x)
        return gated_mlp(x, GatedMlp(*known, activation=self.activation))


def mlp_activation(module: nn.Module) -> str | None:
    """Return the activation of what looks like a gated block, by the name that ops/ has for it."""
    if {name for name, _ in module.named_children()} != set(MLP_PARTS):
        return None
    if len(inspect.signature(type(module).forward).parameters) != 2:
        return None
    activation = module.act_fn
    if isinstance(activation, (nn.SiLU, SiLUActivation)):
        return "silu"
    if isinstance(activation, GELUTanh) or (isinstance(activation, nn.GELU) and activation.approximate == "tanh"):
        return "gelu_tanh"
    return "gelu" if isinstance(activation, nn.GELU) else None


class FusedAttention(Replacement):
    """Runs the attention's own code with another rotary function, and lets its projections share their input."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any], siblings: Siblings | None) -> None:
        super().__init__(module)
        self.forward, self.siblings = forward, siblings

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return self.own(*args, **kwargs)
        if self.siblings is None:
            return self.forward(self.module, *args, **kwargs)
        with self.siblings.shared():
            return self.forward(self.module, *args, **kwargs)


class Rotation:
    """Rotates queries and keys in one pass; what has another shape goes to the model's own function."""

    def __init__(self, own: Callable[..., Any]) -> None:
        self.own = own

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows, width = {1, q.shape[0]}, q.shape[-1]
        is_known = (
            q.dim() == k.dim() == 4
            and cos.dim() == 3
            and cos.shape == sin.shape
            and cos.shape[0] in rows
            and cos.shape[2] == width == k.shape[-1]
            and not (args or kwargs)
        )
        if not is_known:
            return self.own(q, k, cos, sin, *args, **kwargs)
        return rotate_pair(q, k, cos, sin)


def rotary_function(module: nn.Module) -> Callable[..., Any] | None:
    """Return the function that the module's forward rotates with, if it is a global name there."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or forward.__closure__ or hasattr(forward, "__wrapped__"):
        return None
    if ROTARY not in forward.__code__.co_names:
        return None
    return forward.__globals__.get(ROTARY)


def with_rotation(forward: Any, rotation: Rotation) -> Callable[..., Any]:
    """Return the same code with another meaning of one global name; the module it comes from is left alone."""
    names = {**forward.__globals__, ROTARY: rotation}
    twin = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__)
    twin.__kwdefaults__ = forward.__kwdefaults__
    return twin


def rotations_agree(own: Callable[..., Any], rotation: Callable[..., Any], width: int, limit: float) -> bool:
    """Whether both functions turn a small example alike, and its gradients.

    Some models (gpt-oss) give half of the angles only, and fail on whole ones: their rotation stays their own.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, dq, dk = (torch.randn(1, heads, 3, width, generator=generator) for heads in (4, 2, 4, 2))
    angles = torch.randn(1, 3, width // 2, generator=generator).repeat(1, 1, 2)
    results: list[tuple[Tensor, ...]] = []
    for function in (own, rotation):
        leaves = q.clone().requires_grad_(), k.clone().requires_grad_()
        try:
            with torch.enable_grad():
                turned = function(*leaves, angles.cos(), angles.sin())
        except RuntimeError:
            return False
        if len(turned) != 2 or any(some.shape != leaf.shape for some, leaf in zip(turned, leaves, strict=True)):
            return False
        results.append((*turned, *torch.autograd.grad(turned, leaves, (dq, dk))))
    return all(bool((some - other).abs().max() <= limit) for some, other in zip(*results, strict=True))
