"""The data that come with the repository: every entry can be read, and what stage sft can learn is learned whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafactory.data.conversation import RowDropped
from llamafactory.data.converter import get_dataset_converter
from llamafactory.data.parser import get_dataset_list
from llamafactory.data.processor import SupervisedDatasetProcessor
from llamafactory.data.sources import open_source
from llamafactory.data.template import TEMPLATES
from llamafactory.hparams import DataArguments


FOLDER = Path(__file__).parents[2] / "data"
NAMES = list(json.loads((FOLDER / "dataset_info.json").read_text(encoding="utf-8")))
LEARNED = [name for name in NAMES if name.split("_")[0] not in ("dpo", "kto", "pretrain", "wiki", "c4")]


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_can_be_read(name: str) -> None:
    (attr,) = get_dataset_list([name], str(FOLDER))
    convert = get_dataset_converter(attr.formatting, attr)

    conversations = [convert(row.values) for row in open_source(attr).read()]

    assert len(conversations) >= 60
    assert not any("{{" in message.content for item in conversations for message in item.messages)


@pytest.mark.parametrize("name", LEARNED)
def test_every_row_of_an_entry_can_be_learned(name: str, fresh_tokenizer: Callable[..., Any]) -> None:
    (attr,) = get_dataset_list([name], str(FOLDER))
    convert = get_dataset_converter(attr.formatting, attr)
    tokenizer = fresh_tokenizer()
    template = TEMPLATES.get("qwen").fix_tokenizer(tokenizer)
    processor = SupervisedDatasetProcessor(template, tokenizer, DataArguments(cutoff_len=100_000))

    rows = processor.process([convert(row.values) for row in open_source(attr).read()])

    assert not [row for row in rows if isinstance(row, RowDropped) or row.is_truncated]
