"""Products with a frozen weight in 8-bit floats: y = x W^T and, backwards, dx = dy W. Shapes: N tokens, D in, O out.

The weight is rounded once, to float8_e4m3 with one scale a row of W. On devices that multiply in 8 bits (NVIDIA from
compute capability 8.9 on) tokens are rounded row by row and both sides meet in one 8-bit product. Backwards the sum
runs over the rows of W, so their scales go into dy before it is rounded. Elsewhere W is unpacked for each product and
nothing else is rounded. The weight's own gradient is never made: it does not learn.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
MULTIPLE = 16
"""The widths of an 8-bit product are multiples of it."""
CAPABILITY = (8, 9)
"""The first NVIDIA cards with 8-bit products (Ada, then Hopper)."""


class Float8Weight(NamedTuple):
    """A weight [O, D] in 8 bits: its codes as bytes, and the scale of each row."""

    codes_OD: Tensor
    scale_O: Tensor


def to_float8(weight_OD: Tensor) -> Float8Weight:
    """Round a weight; the largest number of each row becomes the largest of the format."""
    codes_OD, scale_O1 = _round_rows(weight_OD)
    return Float8Weight(codes_OD.view(torch.uint8), scale_O1.squeeze(1))


def from_float8(weight: Float8Weight, dtype: torch.dtype) -> Tensor:
    """Return the rounded weight as numbers [O, D]."""
    return (weight.codes_OD.view(FLOAT8).float() * weight.scale_O[:, None]).to(dtype)


def float8_linear(x: Tensor, weight: Float8Weight, bias_O: Tensor | None, *, in_float8: bool) -> Tensor:
    """Return x W^T + bias; `in_float8` also rounds x, and its gradient on the way back."""
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    x_ND = x.reshape(-1, x.shape[-1]).to(dtype)
    y_NO = cast(Tensor, cast(Any, _FrozenProduct).apply(x_ND, *weight, in_float8))
    y_NO = y_NO if bias_O is None else y_NO + bias_O.to(y_NO.dtype)
    return y_NO.view(*x.shape[:-1], y_NO.shape[1])


def multiplies_float8(device: torch.device) -> bool:
    """Whether a device has 8-bit products of its own."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY


def _round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes of a matrix and the scale of each row [rows, 1]; a row of zeros has the scale 1."""
    wide = rows.float()
    peaks = wide.abs().amax(dim=1, keepdim=True)
    scale = torch.where(peaks > 0, peaks / LARGEST, 1.0)
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FLOAT8), scale


def _product(left: Tensor, right_t: Tensor, scale_t: Tensor) -> Tensor:
    """Return left times the transpose of `right_t`, whose rows have scales; left is rounded here."""
    codes, scale = _round_rows(left)
    product: Any = vars(torch)["_scaled_mm"]  # it has no public name
    out: Tensor = product(codes, right_t.t(), scale_a=scale, scale_b=scale_t[None], out_dtype=torch.bfloat16)
    return out.to(left.dtype)  # with a scale for each row, torch makes bfloat16 only


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, codes_OD: Tensor, scale_O: Tensor, in_float8: bool) -> Tensor:
        ctx.save_for_backward(codes_OD, scale_O)
        ctx.in_float8 = in_float8
        weight = Float8Weight(codes_OD, scale_O)
        if in_float8:
            return _product(x_ND, codes_OD.view(FLOAT8), scale_O)
        return x_ND @ from_float8(weight, x_ND.dtype).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NO: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight = Float8Weight(*cast(tuple[Tensor, ...], ctx.saved_tensors))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        if ctx.in_float8:
            turned_DO = weight.codes_OD.view(FLOAT8).t().contiguous()  # both sides are read along the sum
            ones_D = torch.ones(turned_DO.shape[0], device=dy_NO.device)
            return _product(dy_NO * weight.scale_O.to(dy_NO.dtype), turned_DO, ones_D), None, None, None
        return dy_NO @ from_float8(weight, dy_NO.dtype), None, None, None
