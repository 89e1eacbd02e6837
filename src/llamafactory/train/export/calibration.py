"""Calibration texts: what gptq and awq measure their error on.

Every text counts: those longer than `maxlen` give one piece from a random place, shorter ones are joined, with the
end-of-text token between them, until a row is full. The same texts give the same rows.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data.data_files import find_local
from ...data.hubs import Access
from ...data.parser import DatasetAttr
from ...data.sources import open_source
from ...extras.errors import UserError
from ...extras.logging import get_logger


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...hparams import ModelArguments

logger = get_logger(__name__)

SEED = 42
COLUMN = "text"


def calibration_rows(tokenizer: "PreTrainedTokenizerBase", model_args: "ModelArguments") -> list[list[int]]:
    """Return `export_quantization_nsamples` rows of `export_quantization_maxlen` ids, or as many as the texts give."""
    name = str(model_args.export_quantization_dataset)
    rows = pack_texts(
        tokenizer,
        list(read_texts(name, model_args)),
        num_rows=model_args.export_quantization_nsamples,
        length=model_args.export_quantization_maxlen,
    )
    if not rows:
        raise UserError(f"export_quantization_dataset {name!r} has no text in its column {COLUMN!r}.")
    if len(rows) < model_args.export_quantization_nsamples:
        logger.warning(
            "export_quantization_dataset %s gives %s rows of %s tokens, not %s: the fewer, the coarser the weights.",
            name,
            len(rows),
            model_args.export_quantization_maxlen,
            model_args.export_quantization_nsamples,
        )
    return rows


def read_texts(name: str, model_args: "ModelArguments") -> Iterator[str]:
    """Yield the texts of a file, a folder, a pattern or a hub dataset; a row without text is a UserError."""
    is_local = bool(find_local(name)) or Path(name).exists()
    source = open_source(DatasetAttr("file" if is_local else "hf_hub", name), Access.of(model_args))
    for row in source.read():
        text = row.values.get(COLUMN)
        if not isinstance(text, str):
            columns = ", ".join(row.values)
            raise UserError(f"{row.where}: export_quantization_dataset needs a column {COLUMN!r}; here are {columns}.")
        if text.strip():
            yield text


def pack_texts(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], *, num_rows: int, length: int
) -> list[list[int]]:
    """Fill rows of `length` ids with pieces of the texts, in an order that is the same each time.

    A last row that is not full is kept only where no other is.
    """
    shuffler = random.Random(SEED)  # noqa: S311  (a choice of texts, no secret)
    order = list(range(len(texts)))
    shuffler.shuffle(order)
    rows: list[list[int]] = []
    row: list[Any] = []
    for index in order:
        ids: Any = tokenizer(texts[index], add_special_tokens=False)["input_ids"]
        start = shuffler.randrange(len(ids) - length + 1) if len(ids) > length else 0
        row += ids[start : start + length]
        if tokenizer.eos_token_id is not None:
            row.append(tokenizer.eos_token_id)
        if len(row) >= length:
            rows.append(row[:length])
            row = row[length:]
        if len(rows) == num_rows:
            return rows
    return rows or ([row] if row else [])
