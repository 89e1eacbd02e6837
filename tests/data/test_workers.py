"""Batches in several processes: the same rows in the same order, and a death that is noticed at once."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
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
        if "bad" in texts:
            raise UserError("This row is bad.")
        return [(len(text), os.getpid() != self.parent) for text in texts]


class SlowFirstProcessor:
    """The first rows take longest, so that later ones overtake them."""

    def process(self, conversations: Sequence[Conversation]) -> list[Any]:
        texts = [conversation.messages[0].content for conversation in conversations]
        time.sleep(0.05 if texts[0] in "012" else 0)
        return texts


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

    with pytest.raises(UserError, match=r"exit code -9 \(killed, .*lower preprocessing_num_workers"):
        list(process_batches(processor, batches(["a", "die", "b", "c"]), num_workers=2, num_rows_before=0))

    assert time.monotonic() - start < 10


@pytest.mark.parametrize("num_rows_before", [0, 100])
def test_a_users_error_is_the_same_sentence_wherever_it_comes_up(num_rows_before: int) -> None:
    processor: Any = LengthProcessor(os.getpid())

    with pytest.raises(UserError, match=r"\AThis row is bad\.\Z"):
        list(process_batches(processor, batches(["a", "bad", "b", "c"]), 2, num_rows_before))


def test_threads_give_every_row_once_and_in_order() -> None:
    processor: Any = SlowFirstProcessor()

    results = list(process_batches(processor, batches([f"{index}" for index in range(9)]), num_threads=3))

    assert results == [[f"{index}"] for index in range(9)]


def test_reading_does_not_run_far_ahead_of_processing() -> None:
    processor: Any = SlowFirstProcessor()
    read: list[int] = []

    def feed() -> Iterator[Sequence[Conversation]]:
        for index in range(50):
            read.append(index)
            yield [Conversation((Message(Role.USER, str(index)),))]

    results = process_batches(processor, feed(), num_threads=2)
    next(results)

    assert len(read) <= 4
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
