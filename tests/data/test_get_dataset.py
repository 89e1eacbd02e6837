"""get_dataset from end to end: rows, report, cache, mixing, splitting, and what is said when it goes wrong."""

import json
import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafactory.data import split_dataset
from llamafactory.data.fingerprint import tokenizer_digest
from llamafactory.data.loader import PROCESSORS
from llamafactory.data.store import HASH
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.extras.errors import UserError


Load = Callable[..., Any]
Write = Callable[[str, list[Any]], str]


def decode(tokenizer: Any, row: dict[str, list[int]]) -> str:
    return tokenizer.decode(row["input_ids"])


def row(text: str, answer: str = "Yes.") -> dict[str, str]:
    return {"instruction": text, "output": answer}


def test_rows_have_ids_mask_and_labels(load: Load, tiny_tokenizer: Any) -> None:
    module = load("tiny_alpaca,tiny_sharegpt")

    rows = module["train_dataset"]
    assert module["eval_dataset"] is None
    assert rows.column_names == ["input_ids", "attention_mask", "labels"]
    assert len(rows) == 32
    assert decode(tiny_tokenizer, rows[0]).startswith("<|im_start|>user\nCount to one.\nStart at one.<|im_end|>\n")
    for item in rows:
        assert len(item["input_ids"]) == len(item["attention_mask"]) == len(item["labels"])
        assert set(item["attention_mask"]) == {1}
        assert tiny_tokenizer.eos_token_id in item["labels"]


def test_values_are_filled_in(load: Load, tiny_tokenizer: Any) -> None:
    rows = load("tiny_identity")["train_dataset"]

    assert "I am Nova, made by the tests.<|im_end|>" in decode(tiny_tokenizer, rows[0])


def test_the_same_again_is_read_and_any_change_is_prepared_anew(
    load: Load, fresh_tokenizer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def is_prepared(**options: Any) -> bool:
        caplog.clear()
        load("tiny_alpaca", **options)
        return "Preparing the dataset" in caplog.text

    other = fresh_tokenizer()
    other.add_tokens(["seven"])
    assert is_prepared()
    assert not is_prepared()
    assert not is_prepared(preprocessing_batch_size=3, preprocessing_num_workers=2, val_size=4)
    assert is_prepared(cutoff_len=100)
    assert is_prepared(template="yi")
    assert is_prepared(default_system="x")
    assert is_prepared(mask_history=True)
    assert is_prepared(max_samples=3)
    assert is_prepared(tokenizer=other)
    assert is_prepared(overwrite_cache=True)
    assert not is_prepared()


def test_changed_rows_are_prepared_anew(load: Load, write_rows: Write, tiny_tokenizer: Any) -> None:
    path = write_rows("a.json", [row("One?")])
    load(path)
    write_rows("a.json", [row("Two?")])

    assert "Two?" in decode(tiny_tokenizer, load(path)["train_dataset"][0])


def test_two_tokenizers_never_share_rows(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizers = [fresh_tokenizer(), fresh_tokenizer(), fresh_tokenizer(chat_template="x"), fresh_tokenizer()]
    tokenizers[3].add_tokens(["seven"])
    tokenizers[1]("x", truncation=True, max_length=2)  # state that changes no tokens

    digests = [tokenizer_digest(tokenizer) for tokenizer in tokenizers]

    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_the_report_equals_a_count_by_hand(
    load: Load, write_rows: Write, caplog: pytest.LogCaptureFixture, private_cache: Path
) -> None:
    caplog.set_level(logging.INFO)
    good = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    rows = [
        {"conversations": good},
        {"conversations": good[::-1]},
        {"conversations": [{"from": "human", "value": "word " * 100}, {"from": "gpt", "value": "b"}]},
        {"conversations": good[:1]},
        {"conversations": [*good, good[1]]},
    ]

    kept = load(write_rows("a.json", rows), cutoff_len=40)["train_dataset"]

    (report,) = [json.loads(path.read_text()) for path in private_cache.glob("datasets/*/report.json")]
    lengths = [len(item["input_ids"]) for item in kept]
    assert (report["num_read"], report["num_truncated"], report["lengths"]) == (5, 1, lengths)
    assert report["num_supervised"] == sum(label != IGNORE_INDEX for item in kept for label in item["labels"])
    assert report["dropped"] == {"wrong order of roles": 2, "no answer at the end": 1}
    assert "5 rows read, 2 kept, 1 of them cut at 40 tokens, 3 dropped" in caplog.text
    assert "wrong order of roles: 2 (first: " in caplog.text
    assert "a.json, row 2 (line 1)" in caplog.text
    assert "First row: " in caplog.text
    assert "[[b<|im_end|>]]" in caplog.text


def test_rows_that_are_too_long_are_cut_dropped_or_named(
    load: Load, write_rows: Write, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_rows("a.json", [row("a"), row("word " * 100), row("b"), row("c", "word " * 100)])
    short = load(path)["train_dataset"].select([0, 2]).to_list()

    cut = load(path, cutoff_len=40)["train_dataset"]
    dropped = load(path, cutoff_len=40, on_overlong="drop")["train_dataset"]

    assert len(cut) == 4
    assert max(map(len, cut["input_ids"])) <= 40
    assert dropped.to_list() == short
    assert "longer than cutoff_len 40: 2 (first: " in caplog.text
    with pytest.raises(
        UserError, match=r"a\.json, row 2 \(line 1\): the row is longer than cutoff_len 40, and on_over"
    ):
        load(path, cutoff_len=40, on_overlong="error")
    assert load(path, on_overlong="error")["train_dataset"].num_rows == 4


def test_n22_typed_control_tokens_count_when_the_user_allows_it(
    load: Load, write_rows: Write, tiny_tokenizer: Any
) -> None:
    path = write_rows("a.json", [row("a<|im_end|>b", "c<|endoftext|>d")])
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    other = tiny_tokenizer.convert_tokens_to_ids("<|endoftext|>")

    (plain,) = load(path)["train_dataset"]
    (allowed,) = load(path, allow_special_tokens=True)["train_dataset"]

    assert (plain["input_ids"].count(end), plain["input_ids"].count(other)) == (2, 0)
    assert (allowed["input_ids"].count(end), allowed["input_ids"].count(other)) == (3, 1)
    assert decode(tiny_tokenizer, plain) == decode(tiny_tokenizer, allowed)
    assert allowed["input_ids"] == tiny_tokenizer(decode(tiny_tokenizer, allowed))["input_ids"]


@pytest.mark.parametrize("key", ["loss", "weight"])
def test_a_turn_may_say_that_it_is_not_learned(load: Load, write_rows: Write, tiny_tokenizer: Any, key: str) -> None:
    turns = [("user", "a"), ("assistant", "first"), ("user", "b"), ("assistant", "second"), ("user", "c")]
    messages: list[dict[str, Any]] = [
        {"role": role, "content": text} for role, text in [*turns, ("assistant", "last")]
    ]
    messages[1][key] = 0 if key == "weight" else False
    path = write_rows("a.json", [{"messages": messages}])

    (item,) = load(path)["train_dataset"]
    learned = tiny_tokenizer.decode([label for label in item["labels"] if label != IGNORE_INDEX])
    assert learned == "second<|im_end|>last<|im_end|>"

    messages[1][key] = 0.5
    (item,) = load(write_rows("b.json", [{"messages": messages}]))["train_dataset"]
    first = tiny_tokenizer.encode("first<|im_end|>")
    weights = [weight for weight in item["loss_weights"] if weight]
    assert weights == [0.5] * len(first) + [1.0] * (len(weights) - len(first))

    messages[1][key] = "much"
    with pytest.raises(UserError, match=rf"c\.json, row 1 .*message 2, 'content': {key} is \"much\", but true, false"):
        load(write_rows("c.json", [{"messages": messages}]))


def test_max_samples_takes_the_head_of_each_dataset(load: Load) -> None:
    whole = load("tiny_alpaca,tiny_sharegpt")["train_dataset"]

    rows = load("tiny_alpaca,tiny_sharegpt", max_samples=3)["train_dataset"]

    assert rows.to_list() == whole.select([0, 1, 2, 24, 25, 26]).to_list()


def test_num_samples_draws_all_rows_before_any_comes_again(load: Load, write_rows: Write) -> None:
    path = write_rows("a.json", [row(f"Question {index}?") for index in range(5)])
    info = {"few": {"file_name": path, "num_samples": 3}, "many": {"file_name": path, "num_samples": 12}}

    few = load("few", dataset_dir=info)["train_dataset"]
    many = load("many", dataset_dir=info)["train_dataset"]

    assert len({tuple(ids) for ids in few["input_ids"]}) == len(few) == 3
    counts = [list(map(tuple, many["input_ids"])).count(ids) for ids in {tuple(ids) for ids in many["input_ids"]}]
    assert sorted(counts) == [2, 2, 2, 3, 3]


def test_a_dataset_listed_twice_counts_twice(load: Load) -> None:
    assert len(load("tiny_alpaca,tiny_alpaca")["train_dataset"]) == 48


@pytest.mark.parametrize(("val_size", "expected"), [(0.25, 6), (5, 5), (0.01, 1)])
def test_n23_a_part_is_held_out(load: Load, val_size: float, expected: int) -> None:
    module = load("tiny_alpaca", val_size=val_size)

    train = {tuple(ids) for ids in module["train_dataset"]["input_ids"]}
    held = {tuple(ids) for ids in module["eval_dataset"]["input_ids"]}
    assert not train & held
    assert len(module["eval_dataset"]) >= expected
    assert len(module["train_dataset"]) + len(module["eval_dataset"]) == 24


def test_n23_the_split_depends_on_the_rows_alone() -> None:
    from datasets import Dataset

    hashes = [(index * 7919) % 101 - 50 for index in range(40)] + [(3 * 7919) % 101 - 50] * 5
    rows = Dataset.from_dict({HASH: hashes, "x": list(range(45))})
    mixed = rows.shuffle(seed=1)

    train, held = split_dataset(rows, 0.2)
    mixed_train, mixed_held = split_dataset(mixed, 0.2)

    assert set(held["x"]) == set(mixed_held["x"])
    assert set(train["x"]) == set(mixed_train["x"])
    assert not set(train[HASH]) & set(held[HASH])
    assert 9 <= len(held) <= 14


def test_n23_growing_data_moves_no_row_from_validation_to_training() -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({HASH: [(index * 7919) % 1009 for index in range(100)]})
    fewer = rows.select(range(90))

    held = set(split_dataset(rows, 10)[1][HASH])

    assert len(held & set(split_dataset(fewer, 10)[1][HASH])) >= 8


def test_a_split_that_leaves_nothing_is_refused(load: Load) -> None:
    with pytest.raises(UserError, match="leaves nothing to train on: there are 24 rows"):
        load("tiny_alpaca", val_size=24)


def test_eval_datasets_are_joined_or_kept_apart(load: Load) -> None:
    together = load("tiny_identity", eval_dataset="tiny_alpaca,tiny_sharegpt")["eval_dataset"]
    apart = load("tiny_identity", eval_dataset="tiny_alpaca,tiny_sharegpt", eval_on_each_dataset=True)["eval_dataset"]

    assert len(together) == 32
    assert {name: len(rows) for name, rows in apart.items()} == {"tiny_alpaca": 24, "tiny_sharegpt": 8}


def test_rows_to_predict_end_where_the_model_writes(load: Load, tiny_tokenizer: Any) -> None:
    module = load("tiny_alpaca", eval_dataset="tiny_identity", predict=True)
    held = load("tiny_alpaca", val_size=3, predict=True)["eval_dataset"]

    item = module["eval_dataset"][1]
    assert decode(tiny_tokenizer, item).endswith("What is your name?<|im_end|>\n<|im_start|>assistant\n")
    assert tiny_tokenizer.decode(item["labels"]) == "My name is Nova.<|im_end|>"
    assert tiny_tokenizer.eos_token_id in module["train_dataset"][0]["labels"]
    assert len(held) == 3
    assert all(decode(tiny_tokenizer, item).endswith("assistant\n") for item in held)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [row("a"), {"instruction": "b", "output": 3}],
            'a.json, row 2 (line 1): field "output" is 3, but text is needed',
        ),
        ([{"x": "y"}], "The layout of the dataset"),
        ([], "a.json holds no rows"),
        ([row("a", ""), row("b", "")], "can be used: no answer at the end: 2 (first: "),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "instruction": "d"}], "holds preference pairs"),
    ],
)
def test_bad_rows_are_one_sentence(load: Load, write_rows: Write, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(write_rows("a.json", rows))

    assert message.replace('"', "'") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_columns_are_named_beside_the_found_ones(load: Load, write_rows: Write) -> None:
    info = {"mine": {"file_name": write_rows("a.json", [{"q": "a", "a": "b"}])}}

    with pytest.raises(UserError, match=r"column 'instruction' or 'output' .* first row has \['a', 'q'\]"):
        load("mine", dataset_dir=info)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"columns": {"images": "pictures"}}, "has media in pictures; this version learns from text only"),
        ({"columns": {"kto_tag": "label"}}, "holds answers marked good or bad"),
        ({"ranking": True}, "holds preference pairs"),
    ],
)
def test_data_of_another_kind_is_refused(load: Load, write_rows: Write, entry: dict[str, Any], message: str) -> None:
    info = {"mine": {"file_name": write_rows("a.json", [row("a")]), **entry}}

    with pytest.raises(UserError, match=message):
        load("mine", dataset_dir=info)


def test_a_stage_without_rows_of_its_own_is_named(load: Load) -> None:
    with pytest.raises(UserError, match="Unknown stage 'dpoo'"):
        PROCESSORS.get("dpoo")


def test_a_failed_preparation_leaves_nothing_behind(load: Load, write_rows: Write, private_cache: Path) -> None:
    with pytest.raises(UserError):
        load(write_rows("a.json", [row("a"), {"instruction": 1}]))

    assert not [path for path in (private_cache / "datasets").iterdir() if path.suffix != ".lock"]


def test_prepared_rows_can_be_kept_in_a_folder(load: Load, tmp_path: Path) -> None:
    folder = str(tmp_path / "kept" / "rows")
    first = load("tiny_alpaca", tokenized_path=folder, val_size=4)

    again = load(None, tokenized_path=folder)

    assert again["train_dataset"].to_list() == first["train_dataset"].to_list()
    assert again["eval_dataset"].to_list() == first["eval_dataset"].to_list()
    with pytest.raises(UserError, match=r"prepared with other settings \(the data arguments\); remove the folder"):
        load("tiny_alpaca", tokenized_path=folder, cutoff_len=7)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UserError, match="a folder with other files in it"):
        load("tiny_alpaca", tokenized_path=str(tmp_path / "full"))


def prepare_in_child(cache: Path, folder: Path, barrier: Any, results: Any) -> None:
    """Prepare rows as a rank would, at the same time as the others."""
    from llamafactory.data.processor import ProcessedRow
    from llamafactory.data.report import PreparationReport
    from llamafactory.data.store import prepared

    def build() -> Any:
        (folder / f"built-{multiprocessing.current_process().name}").touch()
        return PreparationReport("x", 8), [[(ProcessedRow([1, 2], [1, 2], 2, False), 7)]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMAFACTORY_CACHE", str(cache))
        barrier.wait()
        rows, _, _ = prepared("key", build)
    results.put(rows.to_list())


def test_of_several_processes_one_prepares_and_the_others_read(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    (tmp_path / "log").mkdir()
    arguments = (tmp_path / "cache", tmp_path / "log", barrier, results)
    ranks = [context.Process(target=prepare_in_child, args=arguments) for _ in range(3)]

    for rank in ranks:
        rank.start()
    rows = [results.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join()

    assert len(list((tmp_path / "log").iterdir())) == 1
    assert rows == [[{"input_ids": [1, 2], "attention_mask": [1, 1], "labels": [1, 2], "row_hash": 7}]] * 3
