"""LoftQ (arXiv 2310.08659): the weight in few bits and the adapter on it are found together, and PiSSA's split.

    Q = quantized(W - s B A)        then  s B A = the R main directions of W - Q,        several times over

so that Q + s B A, which training starts from, lies nearer to W than quantized(W) does. Shapes: O out, D in, R rank.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...extras.errors import UserError
from ...extras.packages import require


RoundTrip = Callable[[Tensor], Tensor]
"""Quantizes a weight and returns what it is then multiplied as, in float32."""


class Split(NamedTuple):
    """A weight as W = base + s B A, as nearly as it goes."""

    base_OD: Tensor
    a_RD: Tensor
    b_OR: Tensor


def split_loftq(weight_OD: Tensor, round_trip: RoundTrip, rank: int, scale: float, iterations: int) -> Split:
    """Return a base that survives the round trip, and the matrices that make up for what it lost."""
    wide = weight_OD.float()
    base, update = wide, torch.zeros_like(wide)
    a_RD, b_OR = wide.new_zeros(rank, wide.shape[1]), wide.new_zeros(wide.shape[0], rank)
    for _ in range(iterations):
        base = round_trip(wide - update).to(weight_OD.dtype)  # as it will be stored
        a_RD, b_OR = main_matrices(wide - round_trip(base.float()), rank, scale)
        update = scale * b_OR @ a_RD
    return Split(base, a_RD, b_OR)


def split_pissa(weight_OD: Tensor, rank: int, scale: float, iterations: int) -> Split:
    """Put the main directions of a weight into the adapter (arXiv 2404.02948); -1 iterations are exact and slow."""
    wide = weight_OD.float()
    a_RD, b_OR = main_matrices(wide, rank, scale, iterations)
    return Split((wide - scale * b_OR @ a_RD).to(weight_OD.dtype), a_RD, b_OR)


def main_matrices(matrix_OD: Tensor, rank: int, scale: float, iterations: int = -1) -> tuple[Tensor, Tensor]:
    """Return A and B of the best approximation s B A, each with one root of the singular values."""
    if rank > min(matrix_OD.shape):
        raise UserError(f"lora_rank {rank} is larger than a weight of {tuple(matrix_OD.shape)} has directions.")
    if iterations < 0:
        u, s, vh = torch.linalg.svd(matrix_OD, full_matrices=False)
    else:
        u, s, v = torch.svd_lowrank(matrix_OD, q=rank, niter=iterations)
        vh = v.T
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def round_trip_of(method: str, bits: int, kind: str = "nf4", *, is_double: bool = True) -> RoundTrip:
    """Return what loading with these values of quantization_* does to a weight."""
    if method == "hqq":
        from .hqq import HqqLinear

        return lambda weight: HqqLinear(_layer_of(weight), bits).unpack(torch.float32)
    if method != "bnb" or bits not in (4, 8):
        raise UserError(f"LoftQ knows bnb with 4 or 8 bits and hqq with 1 to 8 bits, not {method} with {bits} bits.")
    functional: Any = require("bitsandbytes", "bnb", "LoftQ").functional
    if bits == 8:
        return lambda weight: functional.int8_vectorwise_dequant(*functional.int8_vectorwise_quant(weight.half())[:2])

    def through_four_bits(weight: Tensor) -> Tensor:
        codes, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=is_double)
        return functional.dequantize_4bit(codes, state).float()

    return through_four_bits


def _layer_of(weight_OD: Tensor) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    layer.in_features, layer.out_features = weight_OD.shape[1], weight_OD.shape[0]
    layer.weight = nn.Parameter(weight_OD, requires_grad=False)
    return layer
