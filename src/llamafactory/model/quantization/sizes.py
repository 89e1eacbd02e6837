"""Counting weights that are packed: a byte may hold two of them."""

import math
from typing import Any, NamedTuple

import torch
from torch import nn


NUM_WEIGHTS = "num_weights"
"""Where a parameter that this package packed notes how many weights it holds."""
BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4 bits, or a scale and a zero in HQQ."""
HQQ_BITS = {3: 3.2, 5: 8, 6: 8}
"""What HQQ's bits take, where it is more: ten of 3 share 32, and a byte holds no more than one of 5 or 6."""
OUTER_BLOCK = 256
"""Scales that share one, where they are quantized too."""
GROUP = 32
"""Weights that share a scale in torchao's 4 bits, each of which takes a byte."""


class Packing(NamedTuple):
    """How a model will be quantized."""

    method: str
    bits: int
    is_double: bool = True


def num_weights(parameter: nn.Parameter) -> int:
    """Return how many weights a parameter stands for."""
    packed: Any = getattr(parameter, NUM_WEIGHTS, None)
    if packed is not None:
        return int(packed)
    state: Any = getattr(parameter, "quant_state", None)  # bitsandbytes, 4 bits
    return math.prod(state.shape) if state is not None else parameter.numel()


def packed_bytes(parameter: nn.Parameter) -> int:
    """Return the bytes of a parameter with its scales."""
    state: Any = getattr(parameter, "quant_state", None)
    size = parameter.numel() * parameter.element_size()
    if state is None:
        rows: Any = getattr(parameter, "SCB", None)  # bitsandbytes, 8 bits
        return size + (rows.numel() * rows.element_size() if rows is not None else 0)
    inner: Any = state.state2
    scales = [state.absmax] + ([inner.absmax] if inner is not None else [])
    return size + sum(tensor.numel() * tensor.element_size() for tensor in scales)


def weight_bytes(model: nn.Module, packing: Packing | None = None) -> int:
    """Return the bytes of all weights and buffers, shared ones once; with `packing`, as they will be."""
    packed = _packed_layers(model) if packing is not None else {}
    total = 0
    for weight in model.parameters():
        if packing is not None and id(weight) in packed:
            total += planned_bytes(weight.numel(), packed[id(weight)], packing)
        else:
            total += packed_bytes(weight)
    return total + sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())


def planned_bytes(count: int, num_rows: int, packing: Packing) -> int:
    """Return the bytes of a matrix with its scales."""
    if packing.method == "torchao" and packing.bits == 4:
        return count + count // GROUP * torch.bfloat16.itemsize
    if packing.method == "hqq":
        return int(count * HQQ_BITS.get(packing.bits, packing.bits) / 8) + count // BLOCK * 2 * torch.float32.itemsize
    if packing.method == "bnb" and packing.bits == 4:
        scales = count / BLOCK
        return int(count / 2 + (scales + 4 * scales / OUTER_BLOCK if packing.is_double else 4 * scales))
    return int(count * packing.bits / 8) + 4 * num_rows


def largest_packed(model: nn.Module, packing: Packing | None = None) -> int:
    """Return how many weights the largest packed matrix holds, which is unpacked as a whole for each product.

    With `packing`, of those that will be packed.
    """
    planned = _packed_layers(model) if packing is not None else {}
    sizes = [
        num_weights(weight)
        for weight in model.parameters()
        if id(weight) in planned or hasattr(weight, NUM_WEIGHTS) or hasattr(weight, "quant_state")
    ]
    return max(sizes, default=0)


def are_whole_copied(num_whole: int, num_packed: int) -> bool:
    """Whether weights that stay whole leave the mapped file, so that its pages can go; else the file stays mapped."""
    return num_whole < num_packed


def mapped_bytes(model: nn.Module, packing: Packing, dtype: torch.dtype) -> int:
    """Return what of the file stays with a process of a CPU although it was packed; `dtype` is the file's format."""
    planned = _packed_layers(model)
    num_packed = sum(weight.numel() for weight in model.parameters() if id(weight) in planned)
    num_whole = sum(weight.numel() for weight in model.parameters()) - num_packed
    return 0 if are_whole_copied(num_whole, num_packed) else num_packed * dtype.itemsize


def _packed_layers(model: nn.Module) -> dict[int, int]:
    """Return the weights that quantizers replace, with their rows: linear layers except the output and adapters."""
    outer: Any = model
    base = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    return {
        id(module.weight): module.out_features
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad
    }
