"""Attention on a CPU, with a backward pass made of large matrix products.

SDPA's own backward pass takes up to three times as long there, most of all in bfloat16. Here the query heads that
share keys are folded into the rows of one product, so keys and values are never repeated; a block of queries is
multiplied with the keys up to its own end only; the weights are computed again instead of being kept. Scores and
weights are float32; what is multiplied with values and gradients is in the format of the model.

Shapes as in attention.py; also M = T * R rows, the R heads of a token beside each other, Q rows of a block, and K
keys that some row of the block sees.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .attention_case import Scores


BLOCK_BYTES = 256  # 128 tokens in bfloat16, 64 in float32: scores stay in the cache, little of the triangle is wasted


class Block(NamedTuple):
    """Queries of one document, and the keys that some of them see."""

    start: int
    end: int
    first_key: int


class Blocks:
    """The heads laid out for products, and the products."""

    def __init__(
        self, query_HTD: Tensor, key_GTD: Tensor, value_GTE: Tensor, bounds: list[int], scores: Scores
    ) -> None:
        self.bounds, self.scores = bounds, scores
        self.num_groups, self.num_shared = key_GTD.shape[0], query_HTD.shape[0] // key_GTD.shape[0]
        self.query_GMD = self._fold(query_HTD.transpose(0, 1))
        self.key_GTD, self.value_GTE = key_GTD.contiguous(), value_GTE.contiguous()
        self.wide_query_GMD = self.query_GMD.float()
        self.wide_key_GDT = (self.key_GTD.float() * scores.scale).transpose(1, 2)
        longest = max(end - start for start, end in pairwise(bounds))
        self.block_len = BLOCK_BYTES // query_HTD.element_size()
        size = query_HTD.shape[0] * min(self.block_len, longest) * longest
        self._wide = torch.empty((2, size), dtype=torch.float32)
        self._narrow = torch.empty(size, dtype=self.query_GMD.dtype)
        self._masks: dict[int, Tensor] = {}

    def read(self) -> Tensor:
        """Return what each token reads, [T, H, E]."""
        read_GME = self.query_GMD.new_empty(*self.query_GMD.shape[:2], self.value_GTE.shape[2])
        for block in self._blocks():
            weights_GQK, _ = self._weights(block)
            read_GME[:, self._rows(block)] = torch.bmm(weights_GQK, self.value_GTE[:, self._keys(block)].float())
        return self._unfold(read_GME)

    def gradients(self, grad_THE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query [H, T, D], key [G, T, D] and value [G, T, E], given that of `read`."""
        grad_GME, dtype = self._fold(grad_THE), self.query_GMD.dtype
        query_GMD = torch.empty_like(self.query_GMD)
        key_GTD = torch.zeros(self.key_GTD.shape, dtype=torch.float32)
        value_GTE = torch.zeros(self.value_GTE.shape, dtype=torch.float32)
        value_GET = self.value_GTE.transpose(1, 2)
        softmax_backward: Any = torch.ops.aten._softmax_backward_data.out
        for block in self._blocks():
            rows, keys = self._rows(block), self._keys(block)
            weights_GQK, slope_GQK = self._weights(block)
            narrow_GQK = self._narrow[: weights_GQK.numel()].view_as(weights_GQK).copy_(weights_GQK)
            value_GTE[:, keys] += torch.bmm(narrow_GQK.transpose(1, 2), grad_GME[:, rows])
            torch.bmm(grad_GME[:, rows], value_GET[:, :, keys], out=narrow_GQK)
            wide_GQK = self._wide[1, : weights_GQK.numel()].view_as(weights_GQK).copy_(narrow_GQK)
            softmax_backward(wide_GQK, weights_GQK, -1, torch.float32, grad_input=weights_GQK)
            if slope_GQK is not None:
                weights_GQK.mul_(slope_GQK)
            narrow_GQK.copy_(weights_GQK)
            query_GMD[:, rows] = torch.bmm(narrow_GQK, self.key_GTD[:, keys])
            key_GTD[:, keys] += torch.bmm(narrow_GQK.transpose(1, 2), self.query_GMD[:, rows])
        scale = self.scores.scale
        return (
            self._unfold(query_GMD.mul_(scale)).transpose(0, 1),
            key_GTD.mul_(scale).to(dtype),
            value_GTE.to(dtype),
        )

    def _weights(self, block: Block) -> tuple[Tensor, Tensor | None]:
        """Return the softmax of the scores, and how steep the soft cap is where they are; in memory used again."""
        rows, keys = self._rows(block), self._keys(block)
        num_rows, num_keys = rows.stop - rows.start, keys.stop - keys.start
        flat = self._wide[0, : self.num_groups * num_rows * num_keys]
        scores_GQK = flat.view(self.num_groups, num_rows, num_keys)
        torch.bmm(self.wide_query_GMD[:, rows], self.wide_key_GDT[:, :, keys], out=scores_GQK)
        slope_GQK: Tensor | None = None
        if self.scores.softcap is not None:
            bent_GQK = torch.tanh(scores_GQK.div_(self.scores.softcap))
            slope_GQK = 1 - bent_GQK.square()
            torch.mul(bent_GQK, self.scores.softcap, out=scores_GQK)
        self._hide(scores_GQK, block)
        torch.softmax(scores_GQK, dim=-1, out=scores_GQK)
        return scores_GQK, slope_GQK

    def _hide(self, scores_GQK: Tensor, block: Block) -> None:
        """Put -inf where a key is ahead of the query, or out of its window."""
        num_tokens, window = block.end - block.start, self.scores.window
        if num_tokens not in self._masks:
            square = torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1)
            self._masks[num_tokens] = square.repeat_interleave(self.num_shared, dim=0)
        scores_GQK[:, :, -num_tokens:].masked_fill_(self._masks[num_tokens], -torch.inf)
        if window is not None and block.end - block.first_key > window:
            positions = torch.arange(block.start, block.end).repeat_interleave(self.num_shared)
            first_seen = positions.unsqueeze(1) - window + 1
            scores_GQK.masked_fill_(torch.arange(block.first_key, block.end) < first_seen, -torch.inf)

    def _blocks(self) -> Iterator[Block]:
        for start, end in pairwise(self.bounds):
            for first in range(start, end, self.block_len):
                reach = start if self.scores.window is None else max(start, first - self.scores.window + 1)
                yield Block(first, min(first + self.block_len, end), reach)

    def _rows(self, block: Block) -> slice:
        return slice(block.start * self.num_shared, block.end * self.num_shared)

    def _keys(self, block: Block) -> slice:
        return slice(block.first_key, block.end)

    def _fold(self, heads_THX: Tensor) -> Tensor:
        """[T, H, X] -> [G, T * R, X]."""
        num_tokens, _, size = heads_THX.shape
        grouped = heads_THX.reshape(num_tokens, self.num_groups, self.num_shared, size).transpose(0, 1)
        return grouped.reshape(self.num_groups, num_tokens * self.num_shared, size)

    def _unfold(self, rows_GMX: Tensor) -> Tensor:
        """[G, T * R, X] -> [T, H, X]."""
        grouped = rows_GMX.view(self.num_groups, -1, self.num_shared, rows_GMX.shape[2]).transpose(0, 1)
        return grouped.reshape(grouped.shape[0], -1, rows_GMX.shape[2])
