"""get_dataset: what the user named becomes rows of ids and labels: read, encoded, kept on disk, mixed and split."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, Unpack

from ..extras.constants import IGNORE_INDEX
from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..extras.registry import Registry
from .preparation import RowMaker
from .processor import DatasetProcessor, SupervisedDatasetProcessor, UnsupervisedDatasetProcessor
from .rendering import Template
from .store import HASH
from .tokenized import load_tokenized, save_tokenized


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..hparams import DataArguments, ModelArguments, TrainingArguments

logger = get_logger(__name__)

PROCESSORS: Registry[type[DatasetProcessor]] = Registry("stage", {"sft": SupervisedDatasetProcessor})
SHOWN_CHARACTERS = 600


class TokenizerModule(TypedDict):
    """What load_tokenizer gives."""

    tokenizer: "PreTrainedTokenizerBase"
    processor: NotRequired[Any]


class DatasetModule(TypedDict):
    """What a run learns and what it is measured on."""

    train_dataset: "Dataset | None"
    eval_dataset: "Dataset | dict[str, Dataset] | None"


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
    maker = RowMaker(template, tokenizer, model_args, data_args, training_args.seed)
    setting = maker.setting | {"stage": stage, "predict_with_generate": training_args.predict_with_generate}
    stored = load_tokenized(data_args.tokenized_path, setting)
    if stored is not None:
        return DatasetModule(train_dataset=stored.get("train"), eval_dataset=stored.get("eval"))

    learn = PROCESSORS.get(stage)
    measure = UnsupervisedDatasetProcessor if training_args.predict_with_generate else learn
    train = concatenate(maker.make_all(data_args.dataset, learn))
    evals = maker.make_all(data_args.eval_dataset, measure)
    if train is not None and data_args.val_size > 0 and not evals:
        train, held_out = split_dataset(train, data_args.val_size)
        if measure is not learn:
            prompts = concatenate(maker.make_all(data_args.dataset, measure))
            held_out = same_rows(prompts, held_out) if prompts is not None else held_out
        evals = {"validation": held_out}

    train = strip(train)
    if data_args.eval_on_each_dataset and data_args.eval_dataset:
        evaluation = {name: strip(rows) for name, rows in evals.items()}
    else:
        evaluation = strip(concatenate(evals))
    save_tokenized(data_args.tokenized_path, setting, {"train": train, "eval": evaluation})
    if train is not None:
        logger.info(f"First row: {show_row(tokenizer, train[0])}")
    return DatasetModule(train_dataset=train, eval_dataset=evaluation)


def split_dataset(dataset: "Dataset", val_size: float) -> tuple["Dataset", "Dataset"]:
    """Split rows into (train, validation) by the hash of their content; equal rows stay on one side.

    Which rows are held out depends on nothing but the rows, so it is the same on every rank and after a resume.
    """
    import numpy as np

    wanted = int(val_size) if val_size >= 1 else max(1, round(len(dataset) * val_size))
    hashes = np.asarray(dataset.with_format("numpy")[HASH])
    unique, counts = np.unique(hashes, return_counts=True)
    num_groups = int(np.searchsorted(np.cumsum(counts), wanted)) + 1
    is_held = np.isin(hashes, unique[:num_groups])
    if num_groups >= len(unique):
        raise UserError(f"val_size {val_size:g} leaves nothing to train on: there are {len(dataset)} rows; lower it.")
    return dataset.select(np.flatnonzero(~is_held)), dataset.select(np.flatnonzero(is_held))


def same_rows(dataset: "Dataset", others: "Dataset") -> "Dataset":
    """Return the rows of dataset whose content stands in others too."""
    import numpy as np

    hashes = np.asarray(dataset.with_format("numpy")[HASH])
    return dataset.select(np.flatnonzero(np.isin(hashes, np.asarray(others.with_format("numpy")[HASH]))))


def concatenate(parts: Mapping[str, "Dataset"]) -> "Dataset | None":
    """Put datasets end to end; None when there are none."""
    from datasets import concatenate_datasets

    return concatenate_datasets(list(parts.values())) if parts else None


def strip(dataset: Any) -> Any:
    """Take the hash column off a dataset (None stays None)."""
    return None if dataset is None else dataset.remove_columns(HASH)


def show_row(tokenizer: "PreTrainedTokenizerBase", row: Mapping[str, Sequence[int]]) -> str:
    """Show a row as text with the learned stretches in [[ ]]."""
    stretches: list[tuple[bool, list[int]]] = []
    for number, label in zip(row["input_ids"], row["labels"], strict=True):
        is_learned = label != IGNORE_INDEX
        if not stretches or stretches[-1][0] != is_learned:
            stretches.append((is_learned, []))
        stretches[-1][1].append(number)
    texts = [(is_learned, str(tokenizer.decode(ids))) for is_learned, ids in stretches]
    text = "".join(f"[[{part}]]" if is_learned else part for is_learned, part in texts).replace("\n", "\\n")
    num_learned = sum(label != IGNORE_INDEX for label in row["labels"])
    cut = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
    return f"{len(row['input_ids'])} tokens, {num_learned} learned (in [[ ]]): {cut}"
