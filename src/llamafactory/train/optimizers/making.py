"""Picks the optimizer of a run: a row of the table whose switch is on, or what `optim` names."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

from ...extras.errors import UserError
from ...extras.logging import get_logger
from ...extras.packages import require
from ...extras.registry import load_attribute
from ...hparams.optimizers import OPTIMIZERS, OptimizerRow, family_of
from .recipe import Recipe, weights_of


if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ...hparams import FinetuningArguments


logger = get_logger(__name__)

MakeOptimizer = Callable[[nn.Module, "TrainingArguments", Collection[str]], Optimizer]
"""Makes an optimizer for a model, whose weights of these names decay."""


def chosen_row(finetuning: "FinetuningArguments") -> OptimizerRow | None:
    """Return the row whose switch is on; rules saw to it that there is one at most."""
    return next((row for row in OPTIMIZERS.values() if getattr(finetuning, row.switch)), None)


def check_optimizer(optim: str, finetuning: "FinetuningArguments") -> None:
    """Refuse an optimizer whose package is not there, before anything is loaded."""
    family = family_of(optim)
    if family is not None and family.package is not None:
        require(family.package, family.needs, f"optim: {optim}")
    row = chosen_row(finetuning)
    if row is not None and row.package is not None:
        require(row.package, row.needs, row.title)


def optimizer_maker(finetuning: "FinetuningArguments") -> MakeOptimizer | None:
    """Return what makes the run's optimizer; None where the Trainer makes the one that `optim` names."""
    row = chosen_row(finetuning)
    if row is None:
        return None

    def make(model: nn.Module, hf: "TrainingArguments", decayed: Collection[str]) -> Optimizer:
        weights = weights_of(model, hf.weight_decay, decayed)
        if not weights:
            raise UserError(f"{row.title} has no weights to train.")
        build: Callable[[Recipe], Optimizer] = load_attribute(row.build)
        optimizer = build(Recipe(model=model, weights=weights, hf=hf, finetuning=finetuning))
        if row.layerwise is not None and getattr(finetuning, row.layerwise):
            logger.info("%s updates each weight as its gradient comes: gradients are not clipped.", row.title)
        return optimizer

    return make
