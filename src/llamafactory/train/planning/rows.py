"""The rows of a run as a plan sees them: how long they are, and what batches and steps they make."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ...data.arrangement import arrange_rows
from ...data.batch_plan import BatchSize
from ...data.inspection.figures import run_figures
from ...data.lengths import SequenceLengths, sequence_lengths
from ...data.loader import get_dataset
from ...data.streaming import StreamRows
from ...data.template import get_template_and_fix_tokenizer
from ...model.loader import load_tokenizer
from ...model.sources import resolve_model
from ..choices import largest_batch, num_written
from ..stage import RunArguments, Stage
from .figures import DataFigures


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Rows:
    """What is known of the rows; nothing where there is no tokenizer to count with."""

    tokenizer: Any = None
    template: Any = None
    dataset: Any = None
    """As get_dataset returned it."""
    arranged: Any = None
    """What batches are drawn from."""
    note: str = ""
    """Why nothing is known."""

    @property
    def num_tokens(self) -> int | None:
        """How many tokens the tokenizer knows."""
        return None if self.tokenizer is None else len(self.tokenizer)

    @property
    def is_known(self) -> bool:
        """Whether the lengths are known."""
        return self.arranged is not None and not isinstance(self.arranged, StreamRows) and len(self.arranged) > 0


def load_rows(stage: Stage, arguments: RunArguments) -> Rows:
    """Read and encode the rows of a run, as the run will; they stay in its store, so that it finds them there."""
    source = resolve_model(arguments.model.model_name_or_path, arguments.model, needs_weights=False)
    if isinstance(source, Path) and not any((source / name).is_file() for name in TOKENIZER_FILES):
        return Rows(note=f"{source} has no tokenizer, so the rows could not be counted: full ones are assumed.")
    loaded = load_tokenizer(arguments.model, needs_weights=False)
    template = get_template_and_fix_tokenizer(loaded["tokenizer"], arguments.data)
    if not arguments.data.dataset and not arguments.data.tokenized_path:
        return Rows(loaded["tokenizer"], template, note="No dataset is named: full rows are assumed.")
    data = replace(arguments.data, eval_dataset=None)
    module = get_dataset(template, arguments.model, data, arguments.training, stage.dataset, **loaded)
    dataset = module["train_dataset"]
    if isinstance(dataset, StreamRows):
        return Rows(loaded["tokenizer"], template, dataset, note="The rows are streamed: full ones are assumed.")
    arranged = arrange_rows(dataset, stage.dataset, data, arguments.training.seed)
    return Rows(loaded["tokenizer"], template, dataset, arranged)


def largest(rows: Rows, arguments: RunArguments, size: BatchSize) -> tuple[int, int]:
    """Return the tokens of the largest batch, and of one of its rows; rows are cut where cutoff_len is lower now."""
    written = num_written(arguments)
    if not rows.is_known:
        longest = arguments.data.cutoff_len + written
        return max(size.max_tokens or 0, size.num_rows * longest * sequences_a_row(arguments)), longest
    lengths = cut(sequence_lengths(rows.arranged), arguments.data.cutoff_len)
    total = largest_batch(lengths, size, written)
    return total, total // (1 if size.max_tokens else size.num_rows)


def cut(lengths: SequenceLengths, cutoff_len: int) -> SequenceLengths:
    """Return the lengths that rows have when none may be longer."""
    import numpy as np

    return SequenceLengths({name: np.minimum(values, cutoff_len) for name, values in lengths.by_prefix.items()})


def sequences_a_row(arguments: RunArguments) -> int:
    """Return how many sequences a row has: two in pairs and in KTO, whose rows bring a mismatched answer."""
    return 2 if arguments.finetuning.stage in ("rm", "dpo", "kto") else 1


def data_figures(stage: Stage, rows: Rows, arguments: RunArguments, size: BatchSize, num_devices: int) -> DataFigures:
    """Return what the plan says about the rows."""
    training = arguments.training
    most, _ = largest(rows, arguments, size)
    common: Mapping[str, Any] = {
        "largest_batch_tokens": most,
        "batch_size": size.num_rows,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "num_devices": num_devices,
        "writes_answers": num_written(arguments) > 0,
    }
    if not rows.is_known:
        return DataFigures(
            is_assumed=True,
            num_rows=None,
            tokens_per_epoch=None,
            mean_batch_tokens=float(most),
            steps_per_epoch=None,
            num_epochs=None,
            num_steps=training.max_steps if training.max_steps > 0 else None,
            **common,
        )
    found = run_figures(cast(Any, rows.dataset), arguments.data, training, num_devices, stage.dataset, size)
    written = found.num_rows * num_written(arguments)
    batches = max(found.num_rows / max(found.rows_per_batch, 1e-9), 1.0)
    if found.packing and found.num_packed_rows:
        batches = max(found.num_packed_rows / max(found.rows_per_batch, 1e-9), 1.0)
    places = found.num_tokens / max(1 - found.padding_share, 1e-9) + written
    return DataFigures(
        is_assumed=False,
        num_rows=found.num_rows,
        tokens_per_epoch=found.num_tokens,
        mean_batch_tokens=round(places / batches, 1),
        steps_per_epoch=found.steps_per_epoch,
        num_epochs=found.num_epochs,
        num_steps=found.num_steps,
        **common,
    )
