"""The check before a replacement: the same values and gradients as the module's own code, in float32.

One instance of each kind is copied, its weights are drawn anew (a fresh adapter is zero and would hide an error) and
both forms run on four tokens. Costs a few matrix products per kind, once per run.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .packed import compute_in
from .replacement import Replacement, is_free, is_plain_weight, restore_modules


LIMIT = 1e-4
"""Of the largest value of each tensor; float32 rounding makes about 1e-6."""
NUM_TOKENS = 4


def is_equal(module: nn.Module, make: Callable[[nn.Module], Replacement], width: int) -> bool:
    """Whether the replacement that `make` returns for a copy of the module agrees with the module's own code."""
    trial = copy_for_trial(module)
    if not is_free(trial):
        return False
    generator = torch.Generator().manual_seed(1)
    device = next(trial.parameters()).device
    x = torch.randn(1, NUM_TOKENS, width, generator=generator).to(device)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        plain = run(trial, x, trial)
        fused = run(make(trial), x, trial)
    return plain is not None and fused is not None and all(map(is_near, fused, plain))


def copy_for_trial(module: nn.Module) -> nn.Module:
    """Copy a module in float32, without dropout and with weights that are nowhere zero; packed ones stay."""
    trial = restore_modules(copy.deepcopy(module)).eval()
    compute_in(trial, torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in filter(is_plain_weight, trial.parameters()):
        drawn = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
        parameter.data = drawn.to(parameter.device)
    for buffer in trial.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()
    return trial


def run(function: Callable[..., Any], x: Tensor, module: nn.Module) -> list[Tensor] | None:
    """Return the output and all gradients of one form."""
    x = x.clone().requires_grad_()
    leaves = [x, *(parameter for parameter in module.parameters() if parameter.requires_grad)]
    y = function(x)
    if not isinstance(y, Tensor):
        return None
    weights = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape)
    grads = torch.autograd.grad((y * weights).sum(), leaves, allow_unused=True)
    return [y, *(torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(grads, leaves, strict=True))]


def is_near(some: Tensor, other: Tensor) -> bool:
    """Compare on the scale of the whole tensor."""
    if some.shape != other.shape:
        return False
    return bool((some - other).abs().max() <= LIMIT * other.abs().max().clamp_min(1e-3))
