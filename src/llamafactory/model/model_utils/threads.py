"""As many threads for checks of a few tokens as have something to do.

A few tokens are multiplied as fast as weights come from memory. A thread that waits for the others does so at full
load, so on a small model a second one costs twice the processor time and ends no earlier.
"""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn


BYTES_PER_THREAD = 1 << 29
"""What one thread reads in about a twentieth of a second."""


@contextmanager
def few_threads(model: nn.Module) -> Generator[None]:
    """Let torch compute on a thread for each half gibibyte of weights in the body, never on more than it had."""
    before = torch.get_num_threads()
    size = sum(parameter.nbytes for parameter in model.parameters())
    torch.set_num_threads(max(min(before, size // BYTES_PER_THREAD), 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)
