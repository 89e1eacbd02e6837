"""RMS norm as one function: one pass forward, one back, and two numbers of each row kept instead of its copies.

Shapes: N rows, D width. Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kernels import kernels_for


def rms_norm(hidden: Tensor, weight_D: Tensor, eps: float, *, shift: float = 0.0) -> Tensor:
    """Return hidden / sqrt(mean(hidden^2) + eps) * (weight + shift) over the last axis; Gemma's weights shift by 1.

    The result has the format of `hidden`; inside everything is float32.
    """
    return cast(Tensor, cast(Any, _RmsNorm).apply(hidden, weight_D, eps, shift))


def rms_norm_reference(hidden: Tensor, weight_D: Tensor, eps: float, *, shift: float = 0.0) -> Tensor:
    """Return what `rms_norm` returns, from plain operations."""
    wide = hidden.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)
    return (normed * (weight_D.float() + shift)).to(hidden.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight_D: Tensor, eps: float, shift: float) -> Tensor:
        hidden_ND = hidden.reshape(-1, hidden.shape[-1]).contiguous()
        y_ND, rstd_N = kernels_for(hidden_ND, weight_D).rms_norm(hidden_ND, weight_D, eps, shift)
        ctx.save_for_backward(hidden_ND, weight_D, rstd_N)
        ctx.shift = shift
        return y_ND.view(hidden.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_ND, weight_D, rstd_N = cast(tuple[Tensor, ...], ctx.saved_tensors)
        dy_ND = dy.reshape(hidden_ND.shape)
        kernels = kernels_for(dy_ND, hidden_ND, weight_D)
        needs_dweight = bool(ctx.needs_input_grad[1])
        dx_ND, dweight_D = kernels.rms_norm_backward(dy_ND, hidden_ND, weight_D, rstd_N, ctx.shift, needs_dweight)
        return dx_ND.view(dy.shape), None if dweight_D is None else dweight_D.to(weight_D.dtype), None, None
