"""One step of a decoder of the Llama kind on a CPU: the next token's scores of several answers, in one native call.

Eager PyTorch runs some 1400 operations for the 30 layers of a small model; between them the processor waits for the
interpreter, and its products read weights at half the speed of the memory. decoder.cpp reads them once per step at
nearly that speed. A row's scores do not depend on the other rows, bit for bit.

Shapes: M rows, D hidden, E width of a head, V vocabulary; the rest as in paged_attention.py.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .native import SUFFIXES, native_library
from .paged_attention import Pages


STEP = 32  # what widths have to be multiples of


class DecoderLayer(NamedTuple):
    """The weights of a layer, in the order in which decoder.cpp knows them."""

    norm1: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    q_bias: Tensor | None
    k_bias: Tensor | None
    v_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    norm2: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class DecoderWeights(NamedTuple):
    """A whole decoder: h += o(attention(norm1(h))), h += down(silu(gate(norm2(h))) * up(norm2(h))), head(norm(h))."""

    embeddings_VD: Tensor
    norm_D: Tensor
    head_VD: Tensor
    layers: Sequence[DecoderLayer]
    num_heads: int
    num_key_heads: int
    eps: float
    scale: float
    windows: Sequence[int]
    """How many positions each layer reads; 0 is all."""


class NativeDecoder:
    """The weights with the pages they are used with; everything stays where it is in memory."""

    def __init__(self, library: ctypes.CDLL, weights: DecoderWeights, pages: Sequence[Pages]) -> None:
        self.weights = weights
        self._kept = [*weights[:3], *weights.layers, *pages]  # the addresses below are theirs
        tensors: list[Tensor | None] = [*weights[:3]]
        for layer, page in zip(weights.layers, pages, strict=True):
            tensors += [*layer, page.keys_PKES, page.values_PKSF]
        self._tensors = (ctypes.c_void_p * len(tensors))(
            *(None if some is None else some.data_ptr() for some in tensors)
        )
        self._windows = (ctypes.c_int64 * len(weights.windows))(*weights.windows)
        self._function = library[f"decode_{SUFFIXES[weights.norm_D.dtype]}"]

    def step(self, tokens_M: Tensor, table_MN: Tensor, positions_M: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Read one token of each row and return the scores [M, V] in float32.

        Tokens are int64, the table of pages and the positions int32, the cosines and sines [M, E] float32.
        """
        weights = self.weights
        first = weights.layers[0]
        V, D = weights.head_VD.shape
        M, E = angles[0].shape
        logits_MV = torch.empty(M, V)
        sizes = (len(weights.layers), D, first.gate.shape[0], weights.num_heads, weights.num_key_heads, E, V, M)
        places = (tokens_M, table_MN, positions_M, *(some.contiguous() for some in angles), logits_MV)
        self._function(
            self._tensors,
            (ctypes.c_void_p * len(places))(*(some.data_ptr() for some in places)),
            (ctypes.c_int64 * (len(sizes) + 1))(*sizes, table_MN.shape[1]),
            self._windows,
            ctypes.c_float(weights.eps),
            ctypes.c_float(weights.scale),
        )
        return logits_MV


def native_decoder(weights: DecoderWeights, pages: Sequence[Pages]) -> NativeDecoder | None:
    """Return the native form; None without a compiler, or for weights that it does not read."""
    tensors = [
        some for some in (*weights[:3], *(some for layer in weights.layers for some in layer)) if some is not None
    ]
    dtype = weights.norm_D.dtype
    is_uniform = all(
        some.dtype == dtype and some.device.type == "cpu" and some.is_contiguous()
        for some in (*tensors, pages[0].keys_PKES)
    )
    widths = [size for some in tensors if some.dim() == 2 for size in some.shape[1:]]
    if dtype not in SUFFIXES or not is_uniform or any(width % STEP for width in widths):
        return None
    library = native_library("decoder")
    return None if library is None else NativeDecoder(library, weights, pages)
