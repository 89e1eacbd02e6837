"""get_dataset: what the user named becomes rows of ids and labels: read, encoded, kept on disk, mixed and split."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, Unpack

from ..extras.constants import IGNORE_INDEX
from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..extras.registry import Registry
from .fingerprint import digest
from .mixing import Part, end_to_end, hold_out, mix, select_rows, split_dataset
from .preparation import RowMaker
from .processor import (
    DatasetProcessor,
    FeedbackDatasetProcessor,
    PairwiseDatasetProcessor,
    PretrainDatasetProcessor,
    SupervisedDatasetProcessor,
    UnsupervisedDatasetProcessor,
)
from .rendering import Template
from .report import PreparationReport
from .store import HASH
from .stream_opening import first_row, open_stream
from .streaming import StreamRows
from .tokenized import load_tokenized, save_tokenized


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..hparams import DataArguments, ModelArguments, TrainingArguments

__all__ = ["PROCESSORS", "DatasetModule", "get_dataset", "split_dataset"]

logger = get_logger(__name__)

PROCESSORS: Registry[type[DatasetProcessor]] = Registry(
    "stage",
    {
        "pt": PretrainDatasetProcessor,
        "sft": SupervisedDatasetProcessor,
        "rm": PairwiseDatasetProcessor,
        "dpo": PairwiseDatasetProcessor,
        "kto": FeedbackDatasetProcessor,
        "ppo": UnsupervisedDatasetProcessor,
    },
)
SHOWN_CHARACTERS = 600


class TokenizerModule(TypedDict):
    """What load_tokenizer gives."""

    tokenizer: "PreTrainedTokenizerBase"
    processor: NotRequired[Any]


class DatasetModule(TypedDict):
    """What a run learns and what it is measured on."""

    train_dataset: "Dataset | StreamRows | None"
    eval_dataset: "Dataset | dict[str, Dataset] | None"
    reports: NotRequired[list[PreparationReport]]
    """What became of the rows of each dataset, those to learn first; missing when rows came from tokenized_path."""


def get_dataset(
    template: Template,
    model_args: "ModelArguments",
    data_args: "DataArguments",
    training_args: "TrainingArguments",
    stage: str,
    **tokenizer_module: Unpack[TokenizerModule],
) -> DatasetModule:
    """Return the rows of a run; with predict_with_generate, eval_dataset holds prompts, and answers as labels."""
    tokenizer = tokenizer_module["tokenizer"]
    maker = RowMaker(template, tokenizer, model_args, data_args)
    setting = maker.setting | {"stage": stage, "predict_with_generate": training_args.predict_with_generate}
    setting["mixing"] = digest([data_args.mix_strategy, data_args.interleave_probs])
    stored = load_tokenized(data_args.tokenized_path, setting)
    if stored is not None:
        return DatasetModule(train_dataset=stored.get("train"), eval_dataset=stored.get("eval"))

    learn = PROCESSORS.get(stage)
    measure = UnsupervisedDatasetProcessor if training_args.predict_with_generate else learn
    if data_args.streaming and data_args.dataset:
        return get_stream(maker, learn, measure, training_args)
    seed = training_args.seed
    parts = maker.make_all(data_args.dataset, learn)
    evals = maker.make_all(data_args.eval_dataset, measure)
    if parts and data_args.val_size > 0 and not evals:
        parts, held_out = hold_out(parts, data_args.val_size)
        if measure is not learn:
            prompts = end_to_end(maker.make_all(data_args.dataset, measure, num_samples=False), seed)
            held_out = held_out if prompts is None else select_rows(prompts, held_out, are_in=True)
        evals = [Part("validation", held_out)]

    train = strip(mix(parts, data_args.mix_strategy, data_args.interleave_probs, seed))
    evaluation = join_evals(evals, data_args, seed)
    save_tokenized(data_args.tokenized_path, setting, {"train": train, "eval": evaluation})
    if train is not None:
        logger.info(f"First row: {show_row(tokenizer, train[0])}")
    return DatasetModule(train_dataset=train, eval_dataset=evaluation, reports=maker.reports)


def get_stream(
    maker: RowMaker,
    learn: type[DatasetProcessor],
    measure: type[DatasetProcessor],
    training_args: "TrainingArguments",
) -> DatasetModule:
    """Return rows to learn that are read while the run trains; those to measure on come again, and are prepared."""
    data_args = maker.data_args
    if data_args.tokenized_path is not None:
        raise UserError(
            f"tokenized_path {data_args.tokenized_path!r} keeps prepared rows, but streaming: true prepares none; "
            "remove one of them."
        )
    stream = open_stream(
        maker,
        learn,
        measure,
        seed=training_args.seed,
        can_be_endless=training_args.max_steps > 0,
        holds_out=data_args.val_size > 0 and not data_args.eval_dataset,
    )
    held = end_to_end(stream.held, training_args.seed)
    evals = [Part("validation", held)] if held is not None else maker.make_all(data_args.eval_dataset, measure)
    shown = first_row(stream.rows)
    if shown is not None:
        logger.info(f"First row: {show_row(maker.tokenizer, shown)}")
    evaluation = join_evals(evals, data_args, training_args.seed)
    reports = [*stream.reports, *maker.reports]
    return DatasetModule(train_dataset=stream.rows, eval_dataset=evaluation, reports=reports)


def join_evals(evals: Sequence[Part], data_args: "DataArguments", seed: int) -> Any:
    """Return the rows to measure on: of each dataset on its own, or of all together; None without any."""
    if data_args.eval_on_each_dataset and data_args.eval_dataset:
        return {part.name: strip(end_to_end([part], seed)) for part in evals}
    return strip(end_to_end(evals, seed))


def strip(dataset: Any) -> Any:
    """Take the hash column off a dataset (None stays None)."""
    return None if dataset is None else dataset.remove_columns(HASH)


def show_row(tokenizer: "PreTrainedTokenizerBase", row: Mapping[str, Any]) -> str:
    """Show a row as text with the learned stretches in [[ ]]."""
    stretches: list[tuple[bool, list[int]]] = []
    prefix = "chosen_" if "chosen_input_ids" in row else ""
    ids, labels = row[f"{prefix}input_ids"], row[f"{prefix}labels"]
    if len(ids) != len(labels):
        labels = [IGNORE_INDEX] * len(ids)  # a prompt, with its answer aside
    for number, label in zip(ids, labels, strict=True):
        is_learned = label != IGNORE_INDEX
        if not stretches or stretches[-1][0] != is_learned:
            stretches.append((is_learned, []))
        stretches[-1][1].append(number)
    texts = [(is_learned, str(tokenizer.decode(ids))) for is_learned, ids in stretches]
    text = "".join(f"[[{part}]]" if is_learned else part for is_learned, part in texts).replace("\n", "\\n")
    num_learned = sum(label != IGNORE_INDEX for label in labels)
    cut = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
    return f"{len(ids)} tokens, {num_learned} learned (in [[ ]]): {cut}"
