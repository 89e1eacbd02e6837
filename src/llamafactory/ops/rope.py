"""Rotary position embedding of queries and keys, one pass each.

Shapes: B rows of a batch, H heads, T tokens, E width of a head. Su et al., RoFormer, 2021, in the form with halves.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kernels import kernels_for


def rotate_pair(
    q: Tensor, k: Tensor, cos_BTE: Tensor, sin_BTE: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Return queries and keys turned by their tokens' angles; takes what transformers' own function takes.

    Heads come as [B, H, T, E], or as [B, T, H, E] with `unsqueeze_dim` 2. The results keep the formats of q and k, and
    lie in memory head by head.
    """
    if unsqueeze_dim == 2:
        q, k = rotate(q.transpose(1, 2), cos_BTE, sin_BTE), rotate(k.transpose(1, 2), cos_BTE, sin_BTE)
        return q.transpose(1, 2), k.transpose(1, 2)
    return rotate(q, cos_BTE, sin_BTE), rotate(k, cos_BTE, sin_BTE)


def rotate(x_BHTE: Tensor, cos_BTE: Tensor, sin_BTE: Tensor) -> Tensor:
    """Return (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 the halves of each head; the angles get no gradient."""
    return cast(Tensor, cast(Any, _Rotate).apply(x_BHTE, cos_BTE, sin_BTE))


def rotate_reference(x_BHTE: Tensor, cos_BTE: Tensor, sin_BTE: Tensor) -> Tensor:
    """Return what `rotate` returns, from plain operations."""
    first, second = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * cos_BTE.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin_BTE.unsqueeze(1)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BHTE: Tensor, cos_BTE: Tensor, sin_BTE: Tensor) -> Tensor:
        ctx.save_for_backward(cos_BTE, sin_BTE)
        return kernels_for(x_BHTE).rotate(x_BHTE, cos_BTE, sin_BTE, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BHTE: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos_BTE, sin_BTE = cast(tuple[Tensor, ...], ctx.saved_tensors)
        return kernels_for(dy_BHTE).rotate(dy_BHTE, cos_BTE, sin_BTE, True), None, None
