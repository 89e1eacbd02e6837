"""Numbers on a grid of few bits: blocks of a tensor, each between its smallest and its largest number.

The weights and the projections of Q-GaLore lie on such grids. Rounding is to the nearest point, or by chance so that
the mean is right: then updates far below a step still add up.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


BLOCK = 256
"""Numbers that share a grid."""


class Grid(NamedTuple):
    """A tensor in few bits."""

    codes: Tensor
    """Whole numbers [blocks, BLOCK] as bytes; with 4 bits two lie in a byte."""
    low: Tensor
    step: Tensor


def to_grid(tensor: Tensor, bits: int, generator: torch.Generator | None = None) -> Grid:
    """Round a tensor to 4 or 8 bits: to the nearest point, or with a generator by chance."""
    blocks = torch.nn.functional.pad(tensor.float().flatten(), (0, -tensor.numel() % BLOCK)).view(-1, BLOCK)
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    most = 2**bits - 1
    step = torch.where(high > low, (high - low) / most, 1.0)
    places = (blocks - low) / step
    if generator is None:
        codes = places.round()
    else:
        codes = (places + torch.rand(places.shape, generator=generator).to(places.device)).floor()
    codes = codes.clamp(0, most).to(torch.uint8)
    return Grid(codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4, low, step)


def grid_bytes(count: int, bits: int) -> int:
    """Return the bytes of so many numbers on a grid."""
    num_blocks = math.ceil(count / BLOCK)
    return num_blocks * (BLOCK * bits // 8 + 2 * torch.float32.itemsize)


def from_grid(grid: Grid, shape: torch.Size, bits: int) -> Tensor:
    """Return the numbers in float32."""
    codes = grid.codes if bits == 8 else torch.stack((grid.codes & 15, grid.codes >> 4), 2).flatten(1)
    return (codes * grid.step + grid.low).flatten()[: shape.numel()].view(shape)
