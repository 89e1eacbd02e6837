"""Rows of ids and labels: which tokens are learned, and what is cut."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafactory.data import TEMPLATES
from llamafactory.data.conversation import Conversation, Message, Role, RowDropped, as_conversation
from llamafactory.data.processor import (
    ProcessedRow,
    SupervisedDatasetProcessor,
    UnsupervisedDatasetProcessor,
    infer_seqlen,
)
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.extras.errors import UserError
from llamafactory.hparams import DataArguments


TURNS = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]


def supervised(tokenizer: Any, template: str = "chatml", **options: Any) -> SupervisedDatasetProcessor:
    return SupervisedDatasetProcessor(TEMPLATES.get(template), tokenizer, DataArguments(**options))


def learned(tokenizer: Any, row: Any) -> str:
    assert isinstance(row, ProcessedRow)
    assert all(label in (IGNORE_INDEX, number) for number, label in zip(row.input_ids, row.labels, strict=True))
    assert row.num_supervised == sum(label != IGNORE_INDEX for label in row.labels)
    return tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX])


@pytest.mark.parametrize(
    ("source", "target", "cutoff", "expected"),
    [
        (10, 10, 100, (10, 10)),  # all fits
        (100, 10, 50, (40, 10)),  # a short target stays whole
        (10, 100, 50, (10, 40)),  # a short source stays whole
        (100, 100, 50, (25, 25)),  # both are cut in proportion
        (300, 100, 40, (30, 10)),
        (0, 100, 10, (0, 10)),
    ],
)
def test_a_pair_is_cut_by_the_established_formula(
    source: int, target: int, cutoff: int, expected: tuple[int, int]
) -> None:
    assert infer_seqlen(source, target, cutoff) == expected


@given(source=st.integers(1, 500), target=st.integers(1, 500), cutoff=st.integers(1, 300))
def test_n21_a_cut_pair_fits_and_keeps_a_prompt(source: int, target: int, cutoff: int) -> None:
    new_source, new_target = infer_seqlen(source, target, cutoff)

    assert new_source + new_target == min(source + target, cutoff)
    assert new_source >= 1
    assert new_source <= source
    assert new_target <= target


def test_n19_only_answers_are_learned_up_to_their_end_token(tiny_tokenizer: Any) -> None:
    (row,) = supervised(tiny_tokenizer).process([as_conversation(TURNS, "Count.")])

    assert learned(tiny_tokenizer, row) == "two<|im_end|>four<|im_end|>"
    assert tiny_tokenizer.decode(row.input_ids).endswith("four<|im_end|>\n")


def test_n18_the_end_token_is_learned_when_it_is_the_pad_token_too(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer(pad_token="<|im_end|>")

    (row,) = supervised(tokenizer).process([as_conversation(TURNS[:2])])

    assert row.labels[-2] == tokenizer.pad_token_id == tokenizer.eos_token_id


def test_n19_train_on_prompt_learns_everything(tiny_tokenizer: Any) -> None:
    (row,) = supervised(tiny_tokenizer, train_on_prompt=True).process([as_conversation(TURNS)])

    assert row.labels == row.input_ids


def test_n19_mask_history_learns_the_last_answer_only(tiny_tokenizer: Any) -> None:
    whole = supervised(tiny_tokenizer).process([as_conversation(TURNS)])[0]

    (row,) = supervised(tiny_tokenizer, mask_history=True).process([as_conversation(TURNS)])

    assert learned(tiny_tokenizer, row) == "four<|im_end|>"
    assert row.input_ids == whole.input_ids


def test_n6_a_message_can_choose_for_itself(tiny_tokenizer: Any) -> None:
    muted = [TURNS[0], {**TURNS[1], "loss": False}, *TURNS[2:]]
    loud = [TURNS[0], {**TURNS[1], "loss": True}, *TURNS[2:]]
    conversations = [as_conversation(muted), as_conversation(loud)]

    rows = supervised(tiny_tokenizer).process(conversations)
    masked = supervised(tiny_tokenizer, mask_history=True).process(conversations)

    assert [learned(tiny_tokenizer, row) for row in rows] == ["four<|im_end|>", "two<|im_end|>four<|im_end|>"]
    assert [learned(tiny_tokenizer, row) for row in masked] == ["four<|im_end|>", "two<|im_end|>four<|im_end|>"]
    with pytest.raises(UserError, match=r"loss -0\.3"):
        supervised(tiny_tokenizer).process([as_conversation([TURNS[0], {**TURNS[1], "loss": -0.3}])])


@pytest.mark.parametrize("mask_history", [False, True])
def test_n19_efficient_eos_follows_learned_answers_only(
    fresh_tokenizer: Callable[..., Any], mask_history: bool
) -> None:
    tokenizer = fresh_tokenizer()
    template = TEMPLATES.get("gemma2").fix_tokenizer(tokenizer)
    processor = SupervisedDatasetProcessor(template, tokenizer, DataArguments(mask_history=mask_history))
    eos, end = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")

    (row,) = processor.process([as_conversation(TURNS)])

    after_answers = [row.labels[place + 1] for place, label in enumerate(row.labels) if label == end]
    assert after_answers == ([eos] if mask_history else [eos, eos])
    assert row.labels.count(eos) == len(after_answers) + 1
    assert row.input_ids.count(eos) == 1
    assert (row.input_ids[-1], row.labels[-1]) == (eos, eos)


def test_a_row_with_nothing_to_learn_is_dropped(tiny_tokenizer: Any) -> None:
    long_prompt = {"role": "user", "content": "word " * 200}
    conversations = [
        as_conversation(TURNS[:3]),
        as_conversation([TURNS[0], {**TURNS[1], "loss": False}]),
        as_conversation([*TURNS[:1], {**TURNS[1], "loss": False}, long_prompt, TURNS[3]]),
    ]

    rows = supervised(tiny_tokenizer, cutoff_len=12).process(conversations)

    assert [str(row) for row in rows if isinstance(row, RowDropped)] == [
        "no answer at the end",
        "nothing to learn within cutoff_len",
        "nothing to learn within cutoff_len",
    ]


TEXTS = st.lists(st.text(alphabet="abc \n", max_size=30), min_size=2, max_size=6)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, cutoff=st.integers(1, 60), mask_history=st.booleans(), template=st.sampled_from(["chatml", "yi"]))
def test_n21_labels_stay_aligned_wherever_the_row_is_cut(
    tiny_tokenizer: Any, texts: list[str], cutoff: int, mask_history: bool, template: str
) -> None:
    roles = [Role.USER, Role.ASSISTANT] * 3
    pairs = list(zip(roles, texts, strict=False))[: len(texts) // 2 * 2]
    conversation = Conversation(tuple(Message(role, text) for role, text in pairs))
    options = {"cutoff_len": cutoff, "mask_history": mask_history}
    whole = supervised(tiny_tokenizer, template, cutoff_len=10_000, mask_history=mask_history).process([conversation])[
        0
    ]

    (row,) = supervised(tiny_tokenizer, template, **options).process([conversation])

    assert isinstance(whole, ProcessedRow)
    if isinstance(row, RowDropped):
        return
    assert len(row.input_ids) == len(row.labels) <= cutoff
    assert all(label in (IGNORE_INDEX, number) for number, label in zip(row.input_ids, row.labels, strict=True))
    assert row.num_supervised > 0
    assert row.is_truncated == (len(row.input_ids) < len(whole.input_ids) - 1)
    assert (row.input_ids == whole.input_ids) == (row.labels == whole.labels)


def test_a_cut_row_keeps_the_first_turns_or_the_last_with_mask_history(tiny_tokenizer: Any) -> None:
    conversation = as_conversation(TURNS)
    first, second = TEMPLATES.get("chatml").encode_multiturn(tiny_tokenizer, TURNS)
    cutoff = len(first[0]) + len(first[1]) + 3

    (row,) = supervised(tiny_tokenizer, cutoff_len=cutoff).process([conversation])
    (masked,) = supervised(tiny_tokenizer, cutoff_len=cutoff, mask_history=True).process([conversation])

    assert row.input_ids[: len(first[0]) + len(first[1])] == first[0] + first[1]
    assert masked.input_ids[-len(second[0]) - len(second[1]) + 1 :] == (second[0] + second[1])[:-1]
    assert (row.is_truncated, masked.is_truncated) == (True, True)


def test_a_row_to_predict_is_a_prompt_with_its_answer_aside(tiny_tokenizer: Any) -> None:
    template = TEMPLATES.get("chatml")
    processor = UnsupervisedDatasetProcessor(template, tiny_tokenizer, DataArguments())

    rows = processor.process([as_conversation(TURNS), as_conversation(TURNS[:3])])

    prompt = template.encode_prompt(tiny_tokenizer, TURNS[:3])
    assert [row.input_ids for row in rows] == [prompt, prompt]
    assert [tiny_tokenizer.decode(row.labels) for row in rows] == ["four<|im_end|>", ""]


@pytest.mark.parametrize("cutoff_len", [40, 10])
def test_an_answer_aside_takes_no_room_and_a_long_prompt_keeps_its_end(tiny_tokenizer: Any, cutoff_len: int) -> None:
    template = TEMPLATES.get("chatml")
    turns = [*TURNS[:3], {"role": "assistant", "content": "four " * 100}]
    processor = UnsupervisedDatasetProcessor(template, tiny_tokenizer, DataArguments(cutoff_len=cutoff_len))

    (row,) = processor.process([as_conversation(turns)])

    prompt = template.encode_prompt(tiny_tokenizer, TURNS[:3])
    assert row.input_ids == prompt[-cutoff_len:]
    assert len(row.labels) == cutoff_len
    assert row.is_truncated


def test_one_bad_row_does_not_spoil_its_batch(tiny_tokenizer: Any) -> None:
    bad = Conversation((Message(Role.USER, "x"), Message(Role.FUNCTION, "not json")))

    rows = supervised(tiny_tokenizer).process([as_conversation(TURNS), bad, as_conversation(TURNS)])

    assert [isinstance(row, RowDropped) for row in rows] == [False, True, False]
    assert rows[0] == rows[2]
