"""Counting weights that are packed: a byte may hold two of them."""

import math
from typing import Any

from torch import nn


def num_weights(parameter: nn.Parameter) -> int:
    """Return how many weights a parameter stands for."""
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
