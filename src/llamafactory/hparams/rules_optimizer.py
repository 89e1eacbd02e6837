"""Rules about optimizers, read from their table."""

from collections.abc import Iterator

from .optimizers import OPTIMIZERS, OptimizerRow, family_of
from .view import View, Violation


def _one_optimizer(view: View) -> Iterator[Violation]:
    chosen = list(_chosen(view))
    for other in chosen[1:]:
        yield view.clash(chosen[0].switch, other.switch, "choose one optimizer")


def _fits_run(view: View) -> Iterator[Violation]:
    for row in _chosen(view):
        if row.methods and view.finetuning_type not in row.methods:
            methods = " or ".join(row.methods)
            yield view.clash(row.switch, "finetuning_type", f"{row.title} belongs to finetuning_type {methods}")
        if row.beside and view.optim not in row.beside:
            yield view.clash(row.switch, "optim", f"{row.title} takes {', '.join(row.beside)}")


def _layerwise(view: View) -> Iterator[Violation]:
    for row in _chosen(view):
        if row.layerwise is None or not getattr(view, row.layerwise):
            continue
        if view.gradient_accumulation_steps > 1:
            yield view.clash(row.layerwise, "gradient_accumulation_steps", "layer-wise updates cannot accumulate")
        if view.fp16:
            yield view.clash(row.layerwise, "fp16", "layer-wise updates cannot rescale gradients; use bf16")
        if view.env.is_distributed:
            message = f"{row.layerwise}: true runs on one device, not on {view.env.world_size}; turn it off"
            yield Violation((row.layerwise,), message)


def _devices(view: View) -> Iterator[Violation]:
    for row in _chosen(view):
        if not row.is_distributed and view.env.is_distributed:
            message = f"{view.pair(row.switch)} runs on one device, not on {view.env.world_size}; choose another"
            yield Violation((row.switch,), message)
        if not row.takes_shards:
            for name in ("deepspeed", "fsdp"):
                if getattr(view, name):
                    message = f"{view.pair(row.switch)} cannot go with {name}; remove one of them"
                    yield Violation((row.switch, name), message)


def _eight_bits(view: View) -> Iterator[Violation]:
    if view.galore_quantize and view.use_galore and view.env.is_distributed:
        message = f"galore_quantize: true runs on one device, not on {view.env.world_size}; turn it off"
        yield Violation(("galore_quantize",), message)


def _optim(view: View) -> Iterator[Violation]:
    family = family_of(view.optim)
    if family is not None and family.instead:
        yield Violation(("optim",), f"{view.pair('optim')} is not taken ({family.title}); use {family.instead}")


def _chosen(view: View) -> Iterator[OptimizerRow]:
    for row in OPTIMIZERS.values():
        if getattr(view, row.switch):
            yield row


RULES = (_one_optimizer, _fits_run, _layerwise, _devices, _eight_bits, _optim)
