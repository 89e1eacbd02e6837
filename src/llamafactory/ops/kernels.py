"""The element-wise pieces of a decoder layer, in the fastest form that a device has.

Shapes: N rows, D width, F feed-forward width, B rows of a batch, H heads, T tokens, E width of a head.

`EAGER` is the reference: plain PyTorch, any device, any format. On a CPU with a C++ compiler native.py takes its
place, on a GPU torch.compile of these same functions does. None of them records gradients: they are called inside the
autograd functions of norm.py, gated_mlp.py and rope.py.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from ..extras.packages import is_available
from .native import ACTIVATIONS, SUFFIXES, native_kernels, new_rotated


class Kernels(Protocol):
    """What a form offers; every tensor of a call has one format and lies on one device."""

    def rms_norm(self, x_ND: Tensor, weight_D: Tensor, eps: float, shift: float) -> tuple[Tensor, Tensor]:
        """Return x / rms(x) * (weight + shift) and 1 / rms of each row in float32."""
        ...

    def rms_norm_backward(
        self, dy_ND: Tensor, x_ND: Tensor, weight_D: Tensor, rstd_N: Tensor, shift: float, needs_dweight: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of x and, in float32, of the weight."""
        ...

    def gated(self, gate_NF: Tensor, up_NF: Tensor, activation: str) -> Tensor:
        """Return activation(gate) * up."""
        ...

    def gated_backward(
        self, gate_NF: Tensor, up_NF: Tensor, dout_NF: Tensor, activation: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output once more, and the gradients of gate and up."""
        ...

    def rotate(self, x_BHTE: Tensor, cos_BTE: Tensor, sin_BTE: Tensor, inverse: bool) -> Tensor:
        """Return the heads turned by their tokens' angles; the inverse gives the gradient of that."""
        ...


class EagerKernels(NamedTuple):
    """Plain PyTorch, or the same compiled."""

    rms_norm: Callable[..., Any]
    rms_norm_backward: Callable[..., Any]
    gated: Callable[..., Any]
    gated_backward: Callable[..., Any]
    rotate: Callable[..., Any]


def kernels_for(*tensors: Tensor, activation: str = "silu") -> Kernels:
    """Choose by device and format; tensors of different formats take the eager form, which promotes them."""
    first = tensors[0]
    is_uniform = all(tensor.dtype == first.dtype and tensor.device == first.device for tensor in tensors)
    if first.device.type == "cpu" and is_uniform and first.dtype in SUFFIXES and activation in ACTIVATIONS:
        return native_kernels() or EAGER
    if first.device.type == "cuda" and is_available("triton"):
        return compiled_kernels()
    return EAGER


@functools.cache
def compiled_kernels() -> Kernels:
    """Compile each piece on first use, for every length at once; a GPU's ranks share inductor's cache on disk."""
    compiler = cast(Callable[..., Any], torch.compile)  # pyright: ignore[reportUnknownMemberType]
    return cast(Kernels, EagerKernels(*(compiler(piece, dynamic=True, fullgraph=True) for piece in PIECES)))


def _rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float, shift: float) -> tuple[Tensor, Tensor]:
    wide_ND = x_ND.float()
    rstd_N = torch.rsqrt(wide_ND.pow(2).mean(dim=1) + eps)
    y_ND = wide_ND * rstd_N.unsqueeze(1) * (weight_D.float() + shift)
    return y_ND.to(x_ND.dtype), rstd_N


def _rms_norm_backward(
    dy_ND: Tensor, x_ND: Tensor, weight_D: Tensor, rstd_N: Tensor, shift: float, needs_dweight: bool
) -> tuple[Tensor, Tensor | None]:
    grad_ND = dy_ND.float()
    normed_ND = x_ND.float() * rstd_N.unsqueeze(1)
    dweight_D = (grad_ND * normed_ND).sum(dim=0) if needs_dweight else None
    grad_ND = grad_ND * (weight_D.float() + shift)
    dx_ND = (grad_ND - normed_ND * (grad_ND * normed_ND).mean(dim=1, keepdim=True)) * rstd_N.unsqueeze(1)
    return dx_ND.to(x_ND.dtype), dweight_D


def activate(gate_NF: Tensor, activation: str) -> Tensor:
    """Apply an activation by its name here."""
    if activation == "silu":
        return torch.nn.functional.silu(gate_NF)
    return torch.nn.functional.gelu(gate_NF, approximate="tanh" if activation == "gelu_tanh" else "none")


def _gated(gate_NF: Tensor, up_NF: Tensor, activation: str) -> Tensor:
    return activate(gate_NF, activation) * up_NF


def _gated_backward(gate_NF: Tensor, up_NF: Tensor, dout_NF: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    value_NF, dvalue_NF = activate(gate_NF, activation), dout_NF * up_NF
    if activation == "silu":
        dgate_NF = torch.ops.aten.silu_backward(dvalue_NF, gate_NF)
    else:
        approximate = "tanh" if activation == "gelu_tanh" else "none"
        dgate_NF = torch.ops.aten.gelu_backward(dvalue_NF, gate_NF, approximate=approximate)
    return value_NF * up_NF, dgate_NF, dout_NF * value_NF


def _rotate(x_BHTE: Tensor, cos_BTE: Tensor, sin_BTE: Tensor, inverse: bool) -> Tensor:
    cos_BHTE, sin_BHTE = cos_BTE.unsqueeze(1), sin_BTE.unsqueeze(1)
    if inverse:
        first, second = (x_BHTE * sin_BHTE).chunk(2, dim=-1)
        turned_BHTE = x_BHTE * cos_BHTE + torch.cat((second, -first), dim=-1)
    else:
        first, second = x_BHTE.chunk(2, dim=-1)
        turned_BHTE = x_BHTE * cos_BHTE + torch.cat((-second, first), dim=-1) * sin_BHTE
    return new_rotated(x_BHTE, inverse).copy_(turned_BHTE)


PIECES = EagerKernels(_rms_norm, _rms_norm_backward, _gated, _gated_backward, _rotate)
EAGER = cast(Kernels, PIECES)
"""The reference."""
