"""Low-rank projections of a gradient [M, N]: onto its main directions (GaLore), or onto random ones (APOLLO)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor


Side = Literal["left", "right"]


NOISE = 1e-6
"""What rounding leaves of a number, as a share of the largest one in float32."""


class Projection(NamedTuple):
    """Directions that a gradient is measured along; None where a side stays whole."""

    left_MR: Tensor | None
    right_NR: Tensor | None

    def down(self, gradient_MN: Tensor) -> Tensor:
        """Return the gradient in the small space."""
        low = gradient_MN if self.left_MR is None else self.left_MR.T @ gradient_MN
        low = low if self.right_NR is None else low @ self.right_NR
        if self.left_MR is None or self.right_NR is None:
            return low
        # Along its own directions a gradient is diagonal. Adam would make whole steps of the rounding beside it.
        return low * (low.abs() > NOISE * low.abs().max())

    def up(self, low: Tensor) -> Tensor:
        """Return an update of the small space as one of the matrix."""
        high = low if self.left_MR is None else self.left_MR @ low
        return high if self.right_NR is None else high @ self.right_NR.T


def side_of(shape: torch.Size, kind: str) -> Side:
    """Return the side that is projected: `std` shortens the shorter one, which leaves the least to keep."""
    if kind in ("left", "right"):
        return kind  # pyright: ignore[reportReturnType]
    is_tall = shape[0] >= shape[1]
    return "right" if is_tall == (kind == "std") else "left"


def main_directions(gradient_MN: Tensor, rank: int, kind: str) -> Projection:
    """Return the singular vectors of the gradient with the largest singular values; `full` takes both sides."""
    if kind == "full":
        return Projection(_directions(gradient_MN, rank), _directions(gradient_MN.T, rank))
    if side_of(gradient_MN.shape, kind) == "left":
        return Projection(_directions(gradient_MN, rank), None)
    return Projection(None, _directions(gradient_MN.T, rank))


def random_directions(shape: torch.Size, rank: int, kind: str, seed: int) -> Projection:
    """Return directions with entries of variance 1 / rank, drawn from a seed; equal on every device."""
    side = side_of(shape, kind)
    length = shape[0] if side == "left" else shape[1]
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(length, rank, generator=generator) / rank**0.5
    return Projection(directions, None) if side == "left" else Projection(None, directions)


def _directions(matrix_MN: Tensor, rank: int) -> Tensor:
    """Left singular vectors [M, R], as eigenvectors of G G^T: many times faster than a decomposition of G.

    The sign of a singular vector is arbitrary. It is settled here (the largest entry is positive), because the
    averages of an optimizer outlive the directions that they were measured along.
    """
    if matrix_MN.shape[0] > matrix_MN.shape[1]:  # G G^T would be the larger product: go through G^T G
        values, right = torch.linalg.eigh(_gram(matrix_MN.T))
        top = right[:, -rank:].flip(1)
        scale = values[-rank:].flip(0).clamp_min(torch.finfo(values.dtype).tiny).sqrt()
        vectors = matrix_MN.to(top.dtype) @ top / scale
    else:
        vectors = torch.linalg.eigh(_gram(matrix_MN)).eigenvectors[:, -rank:].flip(1)
    peaks = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return (vectors * peaks.sign()).float()


def _gram(matrix_MN: Tensor) -> Tensor:
    """G G^T in float64, because it squares the singular values."""
    wide = matrix_MN.double()
    return wide @ wide.T
