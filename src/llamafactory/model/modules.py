"""Finding modules by the names that users write: `q_proj`, `self_attn.q_proj`, a regular expression, `all`."""

import re
from collections.abc import Collection, Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..extras.errors import UserError
from ..extras.registry import did_you_mean


LINEAR_TYPES = (nn.Linear, Conv1D)
ADAPTABLE_TYPES = (*LINEAR_TYPES, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
VISION_PARTS = frozenset({"vision_tower", "vision_model", "visual", "audio_tower", "multi_modal_projector"})
REGEX_SIGNS = frozenset("*+?[](){}|^$\\")


def find_all_linear_modules(
    model: PreTrainedModel, freeze_vision_tower: bool, excluded: Collection[str] = ()
) -> list[str]:
    """Return the leaf names of all linear layers except the output layer: what `lora_target: all` means.

    `excluded` are full names of further layers that get no adapter, such as the score layer of a reward model.
    """
    heads = {output_layer_name(model), *excluded}
    names: set[str] = set()
    for name, module in model.named_modules():
        is_frozen = freeze_vision_tower and not VISION_PARTS.isdisjoint(name.split("."))
        if is_linear(module) and name not in heads and not is_frozen:
            names.add(name.rpartition(".")[2])
    if not names:
        raise UserError("lora_target all found no linear layer in this model; name the layers to adapt.")
    return sorted(names)


def is_linear(module: nn.Module) -> bool:
    """Tell a linear layer, also one of a quantizer that has a class of its own (GPTQ, AWQ, AQLM)."""
    widths = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return isinstance(module, LINEAR_TYPES) or all(isinstance(width, int) for width in widths)


def output_layer_name(model: PreTrainedModel) -> str | None:
    """Return the full name of the layer that makes the logits."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if head is not None and module is head), None)


def match_modules(model: PreTrainedModel, targets: Iterable[str], key: str) -> list[str]:
    """Check that every target is the name, or the end of the name, of some module with weights."""
    known = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    for target in targets:
        if not any(ends_with(name, target) for name in known):
            raise UserError(no_match(key, target, known))
    return list(targets)


def is_regex(target: str) -> bool:
    """Tell a regular expression from a plain name, which may hold dots."""
    return not REGEX_SIGNS.isdisjoint(target)


def leaf_names(names: Iterable[str]) -> list[str]:
    """Return the last parts of dotted names, sorted, without the numbers of layers."""
    return sorted({leaf for leaf in (name.rpartition(".")[2] for name in names) if not leaf.isdigit()})


def is_parameter_of(name: str, parts: Iterable[str]) -> bool:
    """Tell whether a parameter lies in one of the modules: `self_attn.q_proj` is in `...self_attn.q_proj.weight`."""
    return any(f".{part}." in f".{name}." for part in parts)


def expand_regex(target: str, names: list[str], key: str) -> list[str]:
    """Return the names that a regular expression matches whole; none, or a broken expression, is a UserError."""
    try:
        pattern = re.compile(target)
    except re.error as error:
        raise UserError(f"{key} {target!r} is not a valid regular expression: {error}.") from error
    hits = [name for name in names if pattern.fullmatch(name)]
    if not hits:
        raise UserError(no_match(key, target, names))
    return hits


def ends_with(name: str, target: str) -> bool:
    """Tell whether a dotted name is the target or ends in it."""
    return name == target or name.endswith(f".{target}")


def no_match(key: str, target: str, names: Sequence[str]) -> str:
    """Say that a target is not there, with the near ones."""
    leaves = leaf_names(names)
    known = ", ".join(leaves)
    return f"{key} {target!r} matches no layer of this model.{did_you_mean(target, leaves)} There are: {known}."
