"""The output head as plain numbers, so that losses can be computed inside of it, a few positions at a time.

Shapes: K positions, C positions of one chunk, D hidden, V vocabulary.

    logits = cap(scale * (hidden W^T + b)),   cap(x) = softcap * tanh(x / softcap) where there is a softcap

Matrices are multiplied in the compute format (autocast's, else the weight's); everything behind them is float32.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """How much of [K, V] exists at once, in bytes."""

    chunk: int
    """Products of one chunk, in the compute format."""
    block: int
    """Logits of one block of a chunk, in float32."""
    kept: int = 512 * 2**20
    """Products that are kept for a backward pass of their own; more than that is computed twice."""


# A block stays in the cache of a CPU from one operation to the next: with 49152 words, loss and gradients cost 1.10
# times the matrix products alone, against 1.37 times with blocks of 32 MB and 1.8 times in plain PyTorch.
CPU_MEMORY = Memory(chunk=128 * 2**20, block=2 * 2**20)
DEVICE_MEMORY = Memory(chunk=512 * 2**20, block=256 * 2**20)  # a call costs more than a trip to memory


class OutputHead(NamedTuple):
    """What turns hidden states into logits. Without a weight, `project` makes the products, or they are given."""

    weight_VD: Tensor | None
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    project: Callable[[Tensor], Tensor] | None = None
    """Stands for weight and bias where the head is no plain matrix (an adapter on it, quantised weights)."""


@dataclass(frozen=True)
class Projection:
    """A head made ready for one call: weights in the compute format, once for all chunks."""

    weight_VD: Tensor | None
    bias_V: Tensor | None
    scale: float
    softcap: float | None
    num_words: int

    def products(self, hidden_CD: Tensor) -> Tensor:
        """Return what the matrix makes of hidden states, in the compute format: [C, V]."""
        if self.weight_VD is None:
            return hidden_CD
        return torch.nn.functional.linear(hidden_CD.to(self.weight_VD.dtype), self.weight_VD, self.bias_V)

    def logits(self, products_CV: Tensor) -> Tensor:
        """Return the logits of products in float32; a new tensor."""
        logits_CV = products_CV.to(torch.float32, copy=True)
        if self.softcap is not None:
            return logits_CV.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap)
        return logits_CV if self.scale == 1.0 else logits_CV.mul_(self.scale)

    def pull_back(self, grad_CV: Tensor, logits_CV: Tensor | None) -> Tensor:
        """Turn the gradient of logits into the gradient of products, in place; a softcap needs the logits."""
        if self.softcap is not None and logits_CV is not None:
            grad_CV.mul_(logits_CV.div(self.softcap).square_().neg_().add_(1.0))
        return grad_CV if self.scale == 1.0 else grad_CV.mul_(self.scale)

    def hidden_gradient(self, grad_CV: Tensor) -> Tensor:
        """Turn the gradient of products, in the compute format, into the gradient of hidden states."""
        return grad_CV if self.weight_VD is None else grad_CV @ self.weight_VD

    @property
    def row_bytes(self) -> int:
        """The products of one position, in the compute format."""
        return self.num_words * (4 if self.weight_VD is None else self.weight_VD.element_size())

    def chunks(self, num_positions: int, memory: Memory) -> Iterator[slice]:
        """Cut positions into chunks."""
        step = max(1, memory.chunk // self.row_bytes)
        return (slice(start, min(start + step, num_positions)) for start in range(0, num_positions, step))

    def blocks(self, part: slice, memory: Memory) -> Iterator[tuple[slice, slice]]:
        """Cut a chunk into blocks for the work in float32: places in the chunk, and in all positions."""
        step = max(1, memory.block // (self.num_words * 4))
        for start in range(part.start, part.stop, step):
            stop = min(start + step, part.stop)
            yield slice(start - part.start, stop - part.start), slice(start, stop)


class GradientSum:
    """Adds up the gradients of weight and bias over chunks, in float32 as soon as there are two."""

    def __init__(self, weight_VD: Tensor | None, bias_V: Tensor | None) -> None:
        self._weight_VD, self._bias_V = weight_VD, bias_V
        self._sum_VD: Tensor | None = None
        self._sum_V: Tensor | None = None

    def add(self, grad_CV: Tensor, hidden_CD: Tensor) -> None:
        """Add the share of one chunk, whose gradient is in the compute format."""
        if self._weight_VD is not None:
            share_VD = grad_CV.t() @ hidden_CD.to(grad_CV.dtype)
            self._sum_VD = share_VD if self._sum_VD is None else self._sum_VD.float().add_(share_VD)
        if self._bias_V is not None:
            share_V = grad_CV.sum(dim=0, dtype=torch.float32)
            self._sum_V = share_V if self._sum_V is None else self._sum_V.add_(share_V)

    def read(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of those that learn, in their formats; zeros where there was no position."""
        return _settled(self._sum_VD, self._weight_VD), _settled(self._sum_V, self._bias_V)


def _settled(total: Tensor | None, like: Tensor | None) -> Tensor | None:
    if like is None:
        return None
    return torch.zeros_like(like) if total is None else total.to(like.dtype)


def eager_logits(hidden_KD: Tensor, head: OutputHead) -> Tensor:
    """Return all logits in float32 by PyTorch's own functions: what the fast paths are held against."""
    if head.weight_VD is not None:
        products_KV = torch.nn.functional.linear(hidden_KD.to(head.weight_VD.dtype), head.weight_VD, head.bias_V)
    else:
        products_KV = hidden_KD if head.project is None else head.project(hidden_KD)
    logits_KV = products_KV.float() * head.scale
    return logits_KV if head.softcap is None else head.softcap * torch.tanh(logits_KV / head.softcap)


def prepare(head: OutputHead, hidden_KD: Tensor) -> tuple[Projection, Tensor]:
    """Return the head ready to multiply, and the hidden states, or their products where the head is no matrix."""
    weight_VD, bias_V = head.weight_VD, head.bias_V
    if weight_VD is None:
        products_KV = hidden_KD if head.project is None else head.project(hidden_KD)
        return Projection(None, None, head.scale, head.softcap, products_KV.shape[-1]), products_KV
    dtype = compute_dtype(weight_VD)
    bias_V = None if bias_V is None else bias_V.detach().to(dtype)
    ready_VD = weight_VD.detach().to(dtype)
    return Projection(ready_VD, bias_V, head.scale, head.softcap, weight_VD.shape[0]), hidden_KD


def memory_for(device: torch.device) -> Memory:
    """Return what was found to be good for a kind of device."""
    return CPU_MEMORY if device.type == "cpu" else DEVICE_MEMORY


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the format that a matrix product with this weight is computed in."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast out: formats are chosen here."""
    return torch.autocast(device.type, enabled=False)
