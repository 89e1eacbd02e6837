"""get_dataset: what the user named becomes rows of ids and labels: read, encoded, kept on disk, mixed and split."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, Unpack

from ..extras.constants import IGNORE_INDEX
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

    train_dataset: "Dataset | None"
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
    if data_args.eval_on_each_dataset and data_args.eval_dataset:
        evaluation = {part.name: strip(end_to_end([part], seed)) for part in evals}
    else:
        evaluation = strip(end_to_end(evals, seed))
    save_tokenized(data_args.tokenized_path, setting, {"train": train, "eval": evaluation})
    if train is not None:
        logger.info(f"First row: {show_row(tokenizer, train[0])}")
    return DatasetModule(train_dataset=train, eval_dataset=evaluation, reports=maker.reports)


def strip(dataset: Any) -> Any:
    """Take the hash column off a dataset (None stays None)."""
    return None if dataset is None else dataset.remove_columns(HASH)


def show_row(tokenizer: "PreTrainedTokenizerBase", row: Mapping[str, Sequence[int]]) -> str:
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
