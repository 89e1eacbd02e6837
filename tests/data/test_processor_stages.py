"""Rows of the other stages: N13 (pre-training), pairs, and N31 (feedback)."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafactory.data import TEMPLATES, get_dataset, get_template_and_fix_tokenizer
from llamafactory.data.arrangement import arrange_rows
from llamafactory.data.blocks import TextBlocks
from llamafactory.data.collator import KTODataCollatorWithPadding, PairwiseDataCollatorWithPadding
from llamafactory.data.conversation import Conversation, Message, Role, RowDropped
from llamafactory.data.mismatch import MismatchedRows
from llamafactory.data.processor import (
    FeedbackDatasetProcessor,
    PackedSupervisedDatasetProcessor,
    PairwiseDatasetProcessor,
    PretrainDatasetProcessor,
    ProcessedRow,
    greedy_knapsack,
)
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.extras.errors import UserError
from llamafactory.hparams import DataArguments, ModelArguments, TrainingArguments


WORDS = st.text(alphabet="abc \n", max_size=30)


def processor(kind: Callable[..., Any], tokenizer: Any, **options: Any) -> Any:
    return kind(TEMPLATES.get("chatml"), tokenizer, DataArguments(**options))


def text(content: str) -> Conversation:
    return Conversation((Message(Role.USER, content),))


def pair(prompt: str, chosen: str, rejected: str) -> Conversation:
    turns = (Message(Role.USER, prompt), Message(Role.ASSISTANT, chosen))
    return Conversation(turns, rejected=Message(Role.ASSISTANT, rejected))


def test_n13_a_text_ends_with_one_end_token_and_begins_as_the_tokenizer_says(tiny_tokenizer: Any) -> None:
    eos = tiny_tokenizer.eos_token_id

    plain, typed_end, empty = processor(PretrainDatasetProcessor, tiny_tokenizer, packing=True).process(
        [text("one two"), text("one<|im_end|>"), text("")]
    )

    assert plain.input_ids == [*tiny_tokenizer.encode("one two"), eos]
    assert plain.labels == plain.input_ids
    assert typed_end.input_ids.count(eos) == 1  # what a text says is not a control token
    assert isinstance(empty, RowDropped)


def test_n13_a_begin_token_is_put_once_where_the_tokenizer_puts_one(fresh_tokenizer: Callable[..., Any]) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = fresh_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )

    (row,) = processor(PretrainDatasetProcessor, tokenizer, packing=True).process([text("one")])

    assert row.input_ids[0] == bos
    assert (row.input_ids.count(bos), row.input_ids.count(eos)) == (1, 1)


def test_without_packing_a_text_is_cut(tiny_tokenizer: Any) -> None:
    (row,) = processor(PretrainDatasetProcessor, tiny_tokenizer, packing=False, cutoff_len=3).process(
        [text("one two three four five six")]
    )

    assert len(row.input_ids) == 3
    assert row.is_truncated


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 30), max_size=20), block_len=st.integers(1, 25))
def test_n13_the_blocks_one_after_the_other_are_the_stream_of_the_texts(lengths: list[int], block_len: int) -> None:
    numbers = iter(range(10_000))
    texts = [{"input_ids": [next(numbers) for _ in range(length)]} for length in lengths]

    blocks = [TextBlocks(texts, block_len)[index] for index in range(len(TextBlocks(texts, block_len)))]

    assert [number for block in blocks for number in block["input_ids"]] == list(range(sum(lengths)))
    assert all(len(block["input_ids"]) == block_len for block in blocks[:-1])
    assert all(block["labels"] == block["input_ids"] for block in blocks)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=WORDS, chosen=WORDS, rejected=WORDS, cutoff=st.integers(1, 50))
def test_n21_n29_both_answers_stand_behind_the_same_prompt_however_they_are_cut(
    tiny_tokenizer: Any, prompt: str, chosen: str, rejected: str, cutoff: int
) -> None:
    (row,) = processor(PairwiseDatasetProcessor, tiny_tokenizer, cutoff_len=cutoff).process(
        [pair(prompt, chosen, rejected)]
    )

    if isinstance(row, RowDropped):
        return
    prompts, answers = [], []
    for ids, labels in ((row.input_ids, row.labels), (row.more["rejected_input_ids"], row.more["rejected_labels"])):
        assert len(ids) == len(labels) <= cutoff
        start = sum(label == IGNORE_INDEX for label in labels)
        assert labels == [IGNORE_INDEX] * start + ids[start:]
        prompts.append(ids[:start])
        answers.append(ids[start:])
    assert prompts[0] == prompts[1]
    assert len(prompts[0]) >= 1
    assert answers[0] != answers[1]


def test_pairs_have_whole_answers_with_their_end_tokens(tiny_tokenizer: Any) -> None:
    (row,) = processor(PairwiseDatasetProcessor, tiny_tokenizer).process([pair("one?", "two", "three four")])

    learned = [
        tiny_tokenizer.decode([label for label in labels if label != IGNORE_INDEX])
        for labels in (row.labels, row.more["rejected_labels"])
    ]
    assert learned == ["two<|im_end|>", "three four<|im_end|>"]


def test_equal_answers_are_dropped_and_counted(tiny_tokenizer: Any) -> None:
    same, cut = processor(PairwiseDatasetProcessor, tiny_tokenizer, cutoff_len=24).process(
        [pair("one?", "two", "two"), pair("one " * 9, "two " * 40 + "a", "two " * 40 + "b")]
    )

    assert (str(same), str(cut)) == ("both answers are the same", "both answers are the same within cutoff_len")


def feedback_rows(tokenizer: Any, num_rows: int) -> list[dict[str, Any]]:
    conversations = [
        Conversation(
            (Message(Role.USER, f"question {index}"), Message(Role.ASSISTANT, f"answer {index}")),
            is_good=index % 2 == 0,
        )
        for index in range(num_rows)
    ]
    rows = processor(FeedbackDatasetProcessor, tokenizer).process(conversations)
    assert all(isinstance(row, ProcessedRow) for row in rows)
    return [{"input_ids": row.input_ids, "labels": row.labels, **row.more} for row in rows]


@pytest.mark.parametrize("num_rows", [2, 3, 7])
def test_n31_every_row_gets_the_answer_of_another_row(tiny_tokenizer: Any, num_rows: int) -> None:
    rows = feedback_rows(tiny_tokenizer, num_rows)

    paired = MismatchedRows(rows, 2048)

    for index in range(num_rows):
        shown = tiny_tokenizer.decode(paired[index]["kl_input_ids"])
        assert f"question {index}" in shown
        assert f"answer {(index + 1) % num_rows}<|im_end|>" in shown
        kept = [label for label in paired[index]["kl_labels"] if label != IGNORE_INDEX]
        assert tiny_tokenizer.decode(kept) == f"answer {(index + 1) % num_rows}<|im_end|>"
    with pytest.raises(UserError, match="at least 2"):
        MismatchedRows(rows[:1], 2048)
    assert all(len(MismatchedRows(rows, 9)[index]["kl_input_ids"]) <= 9 for index in range(num_rows))


def test_batches_of_pairs_and_of_marks_are_padded(tiny_tokenizer: Any) -> None:
    pairs = [
        {"chosen_input_ids": [5, 6], "chosen_labels": [-100, 6], "rejected_input_ids": [5], "rejected_labels": [5]},
        {"chosen_input_ids": [7], "chosen_labels": [7], "rejected_input_ids": [8, 9], "rejected_labels": [8, 9]},
    ]
    pad = tiny_tokenizer.pad_token_id

    batch = PairwiseDataCollatorWithPadding(tiny_tokenizer)(pairs)
    marked = KTODataCollatorWithPadding(tiny_tokenizer)(
        [MismatchedRows(feedback_rows(tiny_tokenizer, 3), 99)[index] for index in range(3)]
    )

    assert batch["input_ids"].tolist() == [[5, 6], [7, pad], [5, pad], [8, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0], [1, 0], [1, 1]]
    assert marked["kto_tags"].tolist() == [True, False, True]
    assert marked["kl_input_ids"].shape == marked["kl_labels"].shape == marked["kl_attention_mask"].shape


def test_a_batch_of_conversations_can_be_packed_at_once(tiny_tokenizer: Any) -> None:
    conversations = [
        Conversation((Message(Role.USER, "one?"), Message(Role.ASSISTANT, "two " * count))) for count in range(1, 9)
    ]
    packer = processor(PackedSupervisedDatasetProcessor, tiny_tokenizer, cutoff_len=80)

    rows = packer.pack(conversations)

    assert all(len(row["input_ids"]) <= 80 for row in rows)
    assert sum(row["position_ids"].count(0) for row in rows) == 8 > len(rows)
    assert greedy_knapsack([3, 9, 1, 7], 10) == [[9, 1], [7, 3]]


PAIR_ROWS = {
    "texts": [{"instruction": f"q{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(3)],
    "turns": [
        {
            "conversations": [{"from": "human", "value": f"q{i}"}],
            "chosen": {"from": "gpt", "value": f"yes {i}"},
            "rejected": {"from": "gpt", "value": f"no {i}"},
        }
        for i in range(3)
    ],
    "conversations": [
        {
            name: [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"{word} {i}"}]
            for name, word in (("chosen", "yes"), ("rejected", "no"))
        }
        for i in range(3)
    ],
}


def load_stage(stage: str, path: str, tokenizer: Any, **options: Any) -> Any:
    data_args = DataArguments(dataset=(path,), template="chatml", **options)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    rows = get_dataset(
        template,
        ModelArguments(model_name_or_path="unused"),
        data_args,
        TrainingArguments(output_dir="unused"),
        stage=stage,
        tokenizer=tokenizer,
    )["train_dataset"]
    return arrange_rows(rows, stage, data_args)


@pytest.mark.parametrize("layout", PAIR_ROWS)
@pytest.mark.parametrize("stage", ["rm", "dpo"])
def test_pairs_are_read_in_every_layout(
    write_rows: Callable[..., str], fresh_tokenizer: Callable[..., Any], layout: str, stage: str
) -> None:
    tokenizer = fresh_tokenizer()

    rows = load_stage(stage, write_rows(f"{layout}.json", PAIR_ROWS[layout]), tokenizer)

    shown = [
        [tokenizer.decode([x for x in row[f"{side}_labels"] if x != IGNORE_INDEX]) for side in ("chosen", "rejected")]
        for row in rows
    ]
    assert shown == [[f"yes {i}<|im_end|>", f"no {i}<|im_end|>"] for i in range(3)]
    assert "q1" in tokenizer.decode(rows[1]["rejected_input_ids"])


def test_marked_answers_texts_and_prompts_reach_their_stages(
    write_rows: Callable[..., str], fresh_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = fresh_tokenizer()
    marks = [{"instruction": f"q{i}", "output": f"a{i}", "kto_tag": i == 0} for i in range(3)]
    path = write_rows("marks.json", marks)

    marked = load_stage("kto", path, tokenizer)
    texts = load_stage(
        "pt", write_rows("texts.json", [{"text": "one two three"}] * 5), tokenizer, cutoff_len=7, packing=True
    )
    prompts = load_stage("ppo", write_rows("prompts.json", [{"instruction": "q", "output": "a"}]), tokenizer)

    assert [row["kto_tags"] for row in map(marked.__getitem__, range(3))] == [True, False, False]
    assert tokenizer.decode(marked[2]["kl_labels"][-2:]).endswith("<|im_end|>")
    stream = [number for index in range(len(texts)) for number in texts[index]["input_ids"]]
    assert tokenizer.decode(stream) == "one two three<|im_end|>" * 5
    assert tokenizer.decode(prompts[0]["input_ids"]).endswith("assistant\n")
    with pytest.raises(UserError, match="no preference pairs"):
        load_stage("dpo", path, tokenizer)
    with pytest.raises(UserError, match="no marks"):
        load_stage("kto", write_rows("c.json", [{"instruction": "q", "output": "a"}]), tokenizer)


@pytest.mark.parametrize("kind", [PairwiseDatasetProcessor, FeedbackDatasetProcessor])
@pytest.mark.parametrize("name", ["default", "llama3", "gemma"])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_n16_begin_of_text_stands_once_in_every_answer(
    fresh_tokenizer: Callable[..., Any], kind: Callable[..., Any], name: str, adds_bos: bool
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = fresh_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
        )
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name))

    (row,) = kind(template, tokenizer, DataArguments()).process([pair("one?", "two", "three")])

    sequences = [row.input_ids, *[ids for key, ids in row.more.items() if key.endswith("input_ids")]]
    assert len(sequences) == (2 if kind is PairwiseDatasetProcessor else 1)
    for ids in sequences:
        assert ids.count(tokenizer.bos_token_id) == int(adds_bos or name != "default")


def test_n18_both_answers_of_a_pair_learn_their_end_token_when_it_is_the_pad_token_too(
    fresh_tokenizer: Callable[..., Any],
) -> None:
    tokenizer = fresh_tokenizer(pad_token="<|im_end|>")
    (row,) = processor(PairwiseDatasetProcessor, tokenizer).process([pair("one?", "two", "three four")])

    batch = PairwiseDataCollatorWithPadding(tokenizer)(
        [{"chosen_input_ids": row.input_ids, "chosen_labels": row.labels, **row.more}]
    )

    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        learned = [label for label in labels if label != IGNORE_INDEX]
        assert learned[-1] == tokenizer.eos_token_id
        assert labels.count(tokenizer.eos_token_id) == 1 < ids.count(tokenizer.eos_token_id)


def test_a_pair_counts_the_tokens_of_both_answers(tiny_tokenizer: Any) -> None:
    from llamafactory.data.report import PreparationReport

    (row,) = processor(PairwiseDatasetProcessor, tiny_tokenizer).process([pair("one?", "two", "three four")])
    report = PreparationReport("pairs", 99)
    report.keep(row)

    both = [row.labels, row.more["rejected_labels"]]
    assert report.num_tokens == sum(map(len, both))
    assert report.lengths.tolist() == [max(map(len, both))]
    assert report.num_supervised == sum(label != IGNORE_INDEX for labels in both for label in labels)
    assert PreparationReport.from_dict(report.to_dict()) == report
