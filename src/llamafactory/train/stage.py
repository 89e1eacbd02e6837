"""What a stage is: one row. The workflow and the driver know nothing else about it.

A new stage is a new row: its data, its loss as a function of sums, the helper models it needs, and how its
predictions are made and measured. `register` adds one from outside the package.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..extras.registry import Registry
from ..hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments, TrainingArguments
from .layout import PADDED, Layout


if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerCallback

    from ..data.batch_plan import BatchSize
    from ..data.template import Template
    from ..model.request import Head
    from .objective import Batch, Objective, Predictor, Rollout, Survey, Weigh


Collator = Callable[[list[dict[str, Any]]], "Batch"]


class RunArguments(NamedTuple):
    """The five argument groups, in the order of `get_train_args`."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    finetuning: FinetuningArguments
    generating: GeneratingArguments


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What the factories of a stage may look at, once everything is loaded."""

    arguments: RunArguments
    tokenizer: Any
    """The tokenizer of transformers; its classes share no useful type."""
    processor: Any
    template: "Template"
    model: "nn.Module"
    layout: Layout = PADDED
    """How rows become batches; `collation.row_collator` makes them so."""


@dataclass(frozen=True, kw_only=True)
class StageParts:
    """A stage made ready for one run: what the driver calls."""

    collate: Collator
    objective: "Objective"
    weigh: "Weigh"
    helpers: "Mapping[str, nn.Module]" = field(default_factory=dict[str, Any])
    predictor: "Predictor | None" = None
    rollout: "Rollout | None" = None
    survey: "Survey | None" = None
    callbacks: "Sequence[TrainerCallback]" = ()
    derive: Callable[[Mapping[str, float]], dict[str, float]] | None = None
    batch_limit: "BatchSize | None" = None
    """How large training batches are; None takes per_device_train_batch_size rows."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One way of training."""

    name: str
    """What the key `stage` says."""
    title: str
    """A few words for people."""
    dataset: str
    """The kind of rows that `get_dataset` makes for it."""
    collator: Callable[[StageContext], Collator]
    """Makes the function that turns rows into a training batch."""
    objective: Callable[[StageContext], "Objective"]
    """Makes the loss."""
    weigh: "Weigh"
    """Counts the units that the loss of a batch sums over, before the forward pass."""
    helpers: "Callable[[StageContext], Mapping[str, nn.Module]] | None" = None
    """Makes frozen models that the objective needs, such as a reference."""
    predictor: "Callable[[StageContext], Predictor | None] | None" = None
    """Makes what `do_predict` runs; without one, prediction measures the loss."""
    rollout: "Callable[[StageContext], Rollout] | None" = None
    """Makes what turns prompts into training batches, for stages that learn from their own answers."""
    survey: "Callable[[StageContext], Survey | None] | None" = None
    """Makes what looks at all batches of a step, or of an evaluation, before the first of them counts."""
    callbacks: "Callable[[Objective], Sequence[TrainerCallback]] | None" = None
    """Makes callbacks around the loss, such as one that keeps its running numbers in checkpoints."""
    annotate: Callable[[StageContext, Any], Any] | None = None
    """Adds columns to the rows (a dataset, or several by name) that only the starting model can tell."""
    derive: Callable[[Mapping[str, float]], dict[str, float]] | None = None
    """Further metrics of an evaluation, computed from its means (perplexity from the loss, say)."""
    check: Callable[[RunArguments], None] | None = None
    """Refuses what cannot work before anything is loaded."""
    card_keys: tuple[str, ...] = ()
    """Arguments of the method that the model card tells."""
    plots: tuple[str, ...] = ("loss", "eval_loss")
    """Logged values that are drawn after the run."""
    joins_rows: bool = True
    """Batches may hold several documents in one row (its collator is built on `collation.row_collator`)."""
    loss_may_be_zero: bool = False
    """A loss of exactly 0 is no sign of broken weights."""
    head: "Head" = "words"
    """What the model is loaded with: words, one score per sequence, or words and a value for every token."""

    def build(self, context: StageContext) -> StageParts:
        """Make the parts for one run."""
        objective = self.objective(context)
        return StageParts(
            collate=self.collator(context),
            objective=objective,
            weigh=self.weigh,
            helpers=self.helpers(context) if self.helpers else {},
            predictor=self.predictor(context) if self.predictor else None,
            rollout=self.rollout(context) if self.rollout else None,
            survey=self.survey(context) if self.survey else None,
            callbacks=self.callbacks(objective) if self.callbacks else (),
            derive=self.derive,
        )


STAGES: Registry[Stage] = Registry(
    "stage",
    {
        "pt": "llamafactory.train.pt.workflow:STAGE",
        "sft": "llamafactory.train.sft.workflow:STAGE",
        "rm": "llamafactory.train.rm.workflow:STAGE",
        "dpo": "llamafactory.train.dpo.workflow:STAGE",
        "kto": "llamafactory.train.kto.workflow:STAGE",
        "ppo": "llamafactory.train.ppo.workflow:STAGE",
        "grpo": "llamafactory.train.grpo.workflow:STAGE",
    },
)
