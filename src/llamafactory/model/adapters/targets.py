"""Which parts of a model get an adapter: linear layers, the experts of a mixture, its routers.

Mixtures keep all experts of a layer in one parameter of three dimensions, which has no layer of its own that a name
could mean. The names that people know (`gate_proj`, `up_proj`, `down_proj`, `w1`) reach it all the same, and `all`
does. How many experts were adapted is said, because two thirds of a model may lie in them.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel

from ...extras.errors import UserError
from ..modules import (
    ADAPTABLE_TYPES,
    LINEAR_TYPES,
    ends_with,
    expand_regex,
    find_all_linear_modules,
    is_linear,
    is_regex,
    no_match,
)


FUSED_NAMES = {
    "gate_up_proj": ("gate_proj", "up_proj", "w1", "w3"),
    "gate_proj": ("w1",),
    "up_proj": ("w3",),
    "down_proj": ("w2",),
}
"""The names that the matrices in a fused parameter have elsewhere."""


@dataclass(frozen=True)
class Mixture:
    """One layer of experts."""

    name: str
    """Full name of the module that holds the experts."""
    num_experts: int
    fused: tuple[str, ...]
    """Parameters that hold one matrix of every expert; none where each expert is a module of its own."""
    routers: tuple[str, ...]
    """Full names of the modules that choose among the experts."""


@dataclass(frozen=True)
class Targets:
    """What PEFT is told."""

    modules: list[str] | str
    """Names or name endings of layers; a single regular expression stays one."""
    parameters: tuple[str, ...] = ()
    """Name endings of parameters without a layer of their own."""

    def __str__(self) -> str:
        modules = self.modules if isinstance(self.modules, str) else ", ".join(self.modules)
        return ", ".join(part for part in (modules, *self.parameters) if part)


def find_targets(
    model: PreTrainedModel,
    wanted: Sequence[str],
    key: str,
    *,
    excluded: Collection[str] = (),
    with_vision: bool = False,
    with_routers: bool = False,
) -> Targets:
    """Find everything that the words of a user mean; a word that means nothing in this model is a UserError.

    `excluded` are full names of layers that `all` leaves out, such as the score layer of a reward model.
    """
    mixtures = list(find_mixtures(model))
    routers = {router for mixture in mixtures for router in mixture.routers}
    if tuple(wanted) != ("all",):
        return _named(model, wanted, key, mixtures)
    kept_out = set(excluded) if with_routers else {*excluded, *routers}
    modules = find_all_linear_modules(model, not with_vision, kept_out)
    fused = _endings(f"{mixture.name}.{name}" for mixture in mixtures for name in mixture.fused)
    unlayered = [router for router in routers if with_routers and not _is_linear(model, router)]
    return Targets(modules, (*fused, *_endings(f"{router}.weight" for router in sorted(unlayered))))


def find_mixtures(model: nn.Module) -> Iterator[Mixture]:
    """Walk over the layers of experts, fused or one module each."""
    for name, module in model.named_modules():
        fused = [part for part, weight in module.named_parameters(recurse=False) if _is_stack(module, weight)]
        is_list = isinstance(module, nn.ModuleList) and name.endswith("experts") and len(module) > 1
        if not fused and not is_list:
            continue
        count = len(module) if isinstance(module, nn.ModuleList) else module.get_parameter(fused[0]).shape[0]
        parent = name.rpartition(".")[0]
        yield Mixture(name, count, tuple(fused), tuple(_routers(model.get_submodule(parent), parent, count)))


def describe_mixtures(model: nn.Module, adapted: Iterable[str], mixtures: Sequence[Mixture]) -> str:
    """Say how many experts and routers carry an adapter; `adapted` are full names of layers and parameters."""
    names = set(adapted)
    experts = routers = 0
    for mixture in mixtures:
        if mixture.fused:
            hits = [part for part in mixture.fused if f"{mixture.name}.{part}" in names]
            experts += mixture.num_experts if hits else 0
        else:
            prefix = f"{mixture.name}."
            experts += len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})
        routers += sum(router in names or f"{router}.weight" in names for router in mixture.routers)
    total = sum(mixture.num_experts for mixture in mixtures)
    all_routers = sum(len(mixture.routers) for mixture in mixtures)
    return (
        f"Mixture of experts: {experts} of {total} experts in {len(mixtures)} layers adapted; "
        f"{routers or 'none'} of {all_routers} routers."
    )


def _named(model: PreTrainedModel, wanted: Sequence[str], key: str, mixtures: Sequence[Mixture]) -> Targets:
    layers = [
        name for name, module in model.named_modules() if isinstance(module, ADAPTABLE_TYPES) or is_linear(module)
    ]
    parameters = {
        f"{mixture.name}.{part}": FUSED_NAMES.get(part, ()) for mixture in mixtures for part in mixture.fused
    }
    parameters |= {
        f"{router}.weight": (router.rpartition(".")[2],)
        for mixture in mixtures
        for router in mixture.routers
        if not _is_linear(model, router)
    }
    if len(wanted) == 1 and is_regex(wanted[0]):
        found = _hits(wanted[0], parameters)
        if not found or any(re.fullmatch(wanted[0], name) for name in layers):
            expand_regex(wanted[0], layers, key)
            return Targets(wanted[0], tuple(found))
        return Targets([], tuple(found))
    modules: list[str] = []
    stacked: list[str] = []
    for word in wanted:
        found = _hits(word, parameters)
        if is_regex(word):
            modules += expand_regex(word, layers, key) if not found else [n for n in layers if re.fullmatch(word, n)]
        elif any(ends_with(name, word) for name in layers):
            modules.append(word)
        elif not found:
            known = [*layers, *parameters, *(other for others in parameters.values() for other in others)]
            raise UserError(no_match(key, word, known))
        stacked += found
    return Targets(list(dict.fromkeys(modules)), tuple(dict.fromkeys(stacked)))


def _hits(word: str, parameters: dict[str, tuple[str, ...]]) -> list[str]:
    """Return the parameters that a word means: by its own name, its holder's, an older name or a pattern."""
    if is_regex(word):
        try:
            pattern = re.compile(word)
        except re.error as error:
            raise UserError(f"{word!r} is not a valid regular expression: {error}.") from error
        return [name for name in parameters if pattern.fullmatch(name)]
    found = [
        name
        for name, others in parameters.items()
        if ends_with(name, word) or ends_with(name.rpartition(".")[0], word) or word in others
    ]
    return _endings(found)


def _endings(names: Iterable[str]) -> list[str]:
    """Shorten full names to what they share over all layers: `mlp.experts.down_proj`."""
    return list(dict.fromkeys(".".join(_after_number(name.split("."))) for name in names))


def _after_number(parts: list[str]) -> list[str]:
    last = max((index for index, part in enumerate(parts) if part.isdigit()), default=-1)
    return parts[last + 1 :]


def _is_stack(module: nn.Module, weight: Tensor) -> bool:
    return weight.dim() == 3 and weight.shape[0] > 1 and not isinstance(module, _ConvNd)


def _is_linear(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), LINEAR_TYPES)


def _routers(parent: nn.Module, prefix: str, num_experts: int) -> Iterator[str]:
    """A router stands beside its experts and gives each token one number an expert."""
    for name, child in parent.named_children():
        weight = getattr(child, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[0] == num_experts:
            yield f"{prefix}.{name}" if prefix else name
