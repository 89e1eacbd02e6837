"""Batches in several processes: the same rows in the same order, and a death that is noticed at once."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from llamafactory.data.conversation import Conversation, Message, Role
from llamafactory.data.workers import process_batches
from llamafactory.extras.errors import UserError


@dataclass(frozen=True)
class LengthProcessor:
    """A processor without a tokenizer: a row is its text's length; the text "die" kills the process."""

    parent: int

    def process(self, conversations: Sequence[Conversation]) -> list[Any]:
        texts = [conversation.messages[0].content for conversation in conversations]
        if "die" in texts and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return [(len(text), os.getpid() != self.parent) for text in texts]


def batches(texts: list[str]) -> Any:
    return iter([[Conversation((Message(Role.USER, text),))] for text in texts])


def test_n24_workers_give_every_row_once_and_in_order() -> None:
    processor: Any = LengthProcessor(os.getpid())
    texts = ["x" * index for index in range(12)]

    results = list(process_batches(processor, batches(texts), num_workers=2, num_rows_before=3))

    assert [row[0] for (row,) in results] == list(range(12))
    assert [row[1] for (row,) in results] == [False] * 3 + [True] * 9


def test_little_data_starts_no_workers() -> None:
    processor: Any = LengthProcessor(os.getpid())

    results = list(process_batches(processor, batches(["a", "b"]), num_workers=8))

    assert not any(is_elsewhere for ((_, is_elsewhere),) in results)


def test_a_killed_worker_ends_the_run_with_the_cause() -> None:
    processor: Any = LengthProcessor(os.getpid())
    start = time.monotonic()

    with pytest.raises(UserError, match=r"exit code -9 .*lower preprocessing_num_workers"):
        list(process_batches(processor, batches(["a", "die", "b", "c"]), num_workers=2, num_rows_before=0))

    assert time.monotonic() - start < 10
