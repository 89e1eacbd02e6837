"""What a stage is: one row. The workflow and the driver know nothing else about it.

A new stage is a new row: its data, its loss as a function of sums, the helper models it needs, and how its
predictions are made and measured. `register` adds one from outside the package.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..extras.registry import Registry
from ..hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments, TrainingArguments


if TYPE_CHECKING:
    from torch import nn

    from ..data.template import Template
    from .objective import Batch, Objective, Predictor, Rollout, Weigh


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


@dataclass(frozen=True, kw_only=True)
class StageParts:
    """A stage made ready for one run: what the driver calls."""

    collate: Collator
    objective: "Objective"
    weigh: "Weigh"
    helpers: "Mapping[str, nn.Module]" = field(default_factory=dict[str, Any])
    predictor: "Predictor | None" = None
    rollout: "Rollout | None" = None
    derive: Callable[[Mapping[str, float]], dict[str, float]] | None = None


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
    derive: Callable[[Mapping[str, float]], dict[str, float]] | None = None
    """Further metrics of an evaluation, computed from its means (perplexity from the loss, say)."""
    check: Callable[[RunArguments], None] | None = None
    """Refuses what cannot work before anything is loaded."""
    plots: tuple[str, ...] = ("loss", "eval_loss")
    """Logged values that are drawn after the run."""
    joins_rows: Callable[[DataArguments], bool] = lambda data: data.padding_free
    """Whether batches put documents into one row, which the model is then asked to keep apart."""
    has_value_head: bool = False
    """The model gets a head with one number per token."""

    def build(self, context: StageContext) -> StageParts:
        """Make the parts for one run."""
        return StageParts(
            collate=self.collator(context),
            objective=self.objective(context),
            weigh=self.weigh,
            helpers=self.helpers(context) if self.helpers else {},
            predictor=self.predictor(context) if self.predictor else None,
            rollout=self.rollout(context) if self.rollout else None,
            derive=self.derive,
        )


STAGES: Registry[Stage] = Registry("stage", {"sft": "llamafactory.train.sft.workflow:STAGE"})
