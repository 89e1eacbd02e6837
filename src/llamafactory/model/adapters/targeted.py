"""What targets come to in a model: the full names of the layers and parameters that they mean."""

import re
from collections.abc import Collection

from torch import nn

from ..modules import ADAPTABLE_TYPES, ends_with
from .targets import Targets


def full_names(model: nn.Module, targets: Targets) -> list[str]:
    """Return the full names of everything that gets an adapter."""
    return [*_layers(model, targets), *_parameters(model, targets)]


def within_layers(model: nn.Module, targets: Targets, layers: Collection[int]) -> Targets:
    """Keep the targets that lie in some layers, by their full names."""
    modules = [name for name in _layers(model, targets) if layer_of(name) in layers]
    parameters = [name for name in _parameters(model, targets) if layer_of(name) in layers]
    return Targets(modules, tuple(parameters))


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a name lies in: the first number in it."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _layers(model: nn.Module, targets: Targets) -> list[str]:
    names = [name for name, module in model.named_modules() if isinstance(module, ADAPTABLE_TYPES)]
    if isinstance(targets.modules, str):
        return [name for name in names if re.fullmatch(targets.modules, name)]
    return [name for name in names if any(ends_with(name, target) for target in targets.modules)]


def _parameters(model: nn.Module, targets: Targets) -> list[str]:
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if any(ends_with(name, target) for target in targets.parameters)]
