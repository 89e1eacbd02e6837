"""Layers of a model compiled one by one: they share their code, so little is compiled, and once for all of them.

`torch.nn.Module.compile` is put onto the instances: names, weights and files stay as they are. Inside, our fused
modules go their own classes' way (fused/replacement.py), which the compiler fuses itself.
"""

import shutil
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ...extras.device import Kind
from ...extras.packages import is_available
from .wrapping import unwrapped


COMPILERS = ("c++", "g++", "clang++")
BACKEND = "inductor"
FASTEST = 4e14
"""Operations per second that a step reaches on the fastest device known (8B weights with LoRA, 12,500 tokens/s)."""
REPAYING_SECONDS = 600.0
"""Compiling takes a minute or two and saves an eighth of the run or more: a shorter one may lose."""


class Compilation(NamedTuple):
    """What was chosen, and why in a few words."""

    is_on: bool
    reason: str


def choose_compilation(
    model: nn.Module, asked: bool | None, kind: Kind, num_tokens: int, *, is_steady: bool
) -> Compilation:
    """Decide whether to compile: as asked, else on a GPU that will learn `num_tokens` for long enough.

    Not `is_steady`: the run also writes answers, each token of which would be another length to compile for.
    """
    if asked is False:
        return Compilation(False, "as asked")
    if asked is None:
        # A frozen weight takes 4 operations for each token, a trained one 6: runs are rather taken for shorter.
        seconds = 4 * sum(weight.numel() for weight in model.parameters()) * num_tokens / FASTEST
        if kind != "cuda" or not is_steady or seconds < REPAYING_SECONDS:
            return Compilation(False, "it would not repay")
    lacks = missing_compiler(kind)
    return Compilation(lacks is None, lacks or ("as asked" if asked else "the run is long enough to repay it"))


def compile_layers(model: nn.Module, backend: str = BACKEND) -> int:
    """Have every decoder layer compiled at its next call, and return their number.

    The second length that comes makes the compiled code one for all lengths.
    """
    layers = list(repeated_layers(model))
    for layer in layers:
        layer.compile(dynamic=None, backend=backend)
    return len(layers)


def repeated_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Walk over what transformers itself repeats, and may compute twice: the decoder layers."""
    for module in unwrapped(model).modules():
        if isinstance(module, GradientCheckpointingLayer):
            yield module


def missing_compiler(kind: Kind) -> str | None:
    """Say what torch.compile lacks on this device; None when it is ready."""
    if kind == "cuda":
        return None if is_available("triton") else "the package triton is not installed"
    if kind != "cpu":
        return f"it is not known to work on {kind}"
    return None if any(map(shutil.which, COMPILERS)) else f"no C++ compiler was found ({', '.join(COMPILERS)})"
