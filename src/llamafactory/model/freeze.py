"""Freeze tuning: a few whole layers learn, the rest of the model stays as it is."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..extras.registry import did_you_mean
from .modules import is_parameter_of


logger = get_logger(__name__)


def choose_trainable(
    model: PreTrainedModel,
    num_layers: int,
    modules: Sequence[str],
    extra_modules: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
) -> None:
    """Let the last n layers learn (the first n when negative), or only the named modules in them, and extra ones.

    `layers` names the layers by their numbers instead (LLaMA Pro's new blocks).
    """
    prefix, total = layer_stack(model)
    if abs(num_layers) > total:
        raise UserError(f"freeze_trainable_layers is {num_layers}, but this model has {total} layers.")
    last = range(total - num_layers, total) if num_layers > 0 else range(-num_layers)
    chosen = last if layers is None else layers
    inside, outside = _parts(model, prefix)
    if tuple(modules) != ("all",):
        _check("freeze_trainable_modules", modules, inside)
    _check("freeze_extra_modules", extra_modules, outside)

    names: list[str] = []
    for name, _ in model.named_parameters(remove_duplicate=False):  # a tied head has a name of its own
        rest = name.removeprefix(prefix)
        if rest != name:
            index, _, part = rest.partition(".")
            is_chosen = int(index) in chosen and (tuple(modules) == ("all",) or is_parameter_of(part, modules))
        else:
            is_chosen = is_parameter_of(name, extra_modules)
        if is_chosen:
            names.append(name)
    if not names:
        raise UserError("Freeze tuning chose no weights: set freeze_trainable_layers or freeze_extra_modules.")

    model.requires_grad_(False)
    for name in names:
        model.get_parameter(name).requires_grad_(True)
    logger.info(
        "Freeze tuning trains layers %s of %s and %s.", list(chosen), total, list(extra_modules) or "no others"
    )


def layer_stack(model: PreTrainedModel) -> tuple[str, int]:
    """The name before the layer numbers, `model.layers.`, and the number of layers."""
    total = model.config.get_text_config().num_hidden_layers
    last = f".{total - 1}"
    for name, _ in model.named_modules():
        if name.endswith(last) and f"{name[: -len(last)]}.{total}" not in dict(model.named_modules()):
            return name[: -len(last)] + ".", total
    raise UserError("Freeze tuning cannot find the layers of this model; use lora or full.")


def _parts(model: PreTrainedModel, prefix: str) -> tuple[set[str], set[str]]:
    """The names of modules inside the layers and outside of them, whole and by part."""
    inside: set[str] = set()
    outside: set[str] = set()
    for name, _ in model.named_parameters(remove_duplicate=False):
        rest = name.removeprefix(prefix)
        if rest != name:
            inside |= _sub_paths(rest.split(".")[1:-1])
        else:
            outside |= _sub_paths(name.split(".")[:-1])
    return inside, outside


def _sub_paths(parts: list[str]) -> set[str]:
    ends = range(1, len(parts) + 1)
    return {".".join(parts[start:end]) for end in ends for start in range(end)}


def _check(key: str, names: Sequence[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            choices = ", ".join(sorted(part for part in known if "." not in part))
            raise UserError(f"{key} {name!r} is not in this model.{did_you_mean(name, known)} There are: {choices}.")
