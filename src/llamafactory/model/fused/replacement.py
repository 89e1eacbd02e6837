"""What all replacements share: how they are put onto an instance, and how they go back to its own code."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class Replacement:
    """Stands as `forward` on one module instance; copies along with a deep copy of the module."""

    module: nn.Module

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the module computes."""
        return self.own(*args, **kwargs)

    def own(self, *args: Any, **kwargs: Any) -> Any:
        """Run the code of the module's class."""
        return type(self.module).forward(self.module, *args, **kwargs)


def put(replacement: Replacement) -> None:
    """Let a replacement answer for its module."""
    vars(replacement.module)["forward"] = replacement


def is_free(module: nn.Module) -> bool:
    """Whether the module runs its class's code: nobody else has put a forward onto the instance."""
    return "forward" not in vars(module)


def replacements(model: nn.Module) -> Iterator[Replacement]:
    """Walk over what was replaced in a model."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, Replacement):
            yield forward


def restore_modules(model: nn.Module) -> nn.Module:
    """Take all replacements away again."""
    for replacement in list(replacements(model)):
        del vars(replacement.module)["forward"]
    return model


def is_watched(module: nn.Module) -> bool:
    """Whether something hooks into the module's calls, as sharding and activation recorders do."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_plain_weight(weight: Any) -> bool:
    """Whether a weight is a whole, ordinary tensor: not quantized, not a shard."""
    return type(weight) in (nn.Parameter, torch.Tensor) and weight.is_floating_point() and weight.numel() > 0


def is_compiling() -> bool:
    """Whether torch.compile is reading the code: it fuses the module's own better than a function it cannot open."""
    return torch.compiler.is_compiling()
