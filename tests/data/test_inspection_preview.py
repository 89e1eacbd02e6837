"""The command `data preview`: it marks what is learned and nothing else."""

import io
from pathlib import Path
from typing import Any

import pytest
from inspection_tools import GOOD, Run, alpaca, sharegpt
from rich.console import Console

from llamafactory.data.inspection.check import learned_ends
from llamafactory.data.inspection.preview import PreviewRow, Segment, Stretch
from llamafactory.data.inspection.show import show_row


@pytest.mark.parametrize(
    ("options", "learned"),
    [
        ({}, ["b<|im_end|>", "d<|im_end|>"]),
        ({"mask_history": True}, ["d<|im_end|>"]),
        ({"cutoff_len": 22}, ["b<|im_end|>"]),
    ],
)
def test_a_preview_marks_what_is_learned_and_nothing_else(
    data: Run, write_rows: Any, options: dict[str, Any], learned: list[str]
) -> None:
    path = write_rows("a.json", [sharegpt("a", "b", "c", "d")])
    result = data("preview", dataset=path, **options)
    assert [part.partition("]]")[0] for part in result.out.split("[[")[1:]] == learned
    segments = data("preview", "--json", dataset=path, **options).json["rows"][0]["segments"]
    assert [segment["text"] for segment in segments if segment["is_learned"]] == learned


def test_a_preview_shows_the_rows_that_training_gets(data: Run, load: Any, demo_dataset_dir: Path) -> None:
    names = ["tiny_alpaca", "tiny_sharegpt", "tiny_identity"]
    rows = load(names)["train_dataset"]
    result = data("preview", "--json", "--ids", "--rows=99", dataset=names, dataset_dir=str(demo_dataset_dir))
    shown = result.json["rows"]
    assert [row["input_ids"] for row in shown] == rows["input_ids"][:]
    assert [row["labels"] for row in shown] == rows["labels"][:]
    assert "I am Nova, made by the tests." in shown[-2]["segments"][1]["text"]


def test_in_a_terminal_what_is_learned_is_green_and_control_tokens_are_magenta(data: Run, write_rows: Any) -> None:
    shown = data("preview", "--json", dataset=write_rows("a.json", [alpaca("a", "b")])).json["rows"][0]
    segments = (
        Segment("user", 0, 2, False, (Stretch("<s>", True), Stretch("a", False))),
        Segment("assistant", 2, 4, True, (Stretch("b", False), Stretch("</s>", True))),
    )
    row = PreviewRow(**{key: shown[key] for key in ("side", "dataset", "number", "where")}, segments=segments)
    stream = io.StringIO()
    show_row(row, Console(file=stream, force_terminal=True, color_system="standard", width=200), with_ids=False)
    text = stream.getvalue()
    assert "\x1b[35m<s>\x1b[0ma" in text
    assert "\x1b[1;32mb\x1b[0m\x1b[1;35m</s>\x1b[0m" in text
    assert "[[" not in text


def test_turns_have_names_and_bounds(data: Run, write_rows: Any, tiny_tokenizer: Any) -> None:
    row = {**sharegpt("a", "b", "c", "d"), "system": "Be brief."}
    result = data("preview", "--json", "--ids", dataset=write_rows("a.json", [row]))
    (shown,) = result.json["rows"]
    roles = [segment["role"] for segment in shown["segments"]]
    assert roles == ["system+user", "assistant", "user", "assistant", "end"]
    for segment in shown["segments"]:
        ids = shown["input_ids"][segment["start"] : segment["end"]]
        labels = shown["labels"][segment["start"] : segment["end"]]
        assert tiny_tokenizer.decode(ids) == segment["text"]
        assert labels == (ids if segment["is_learned"] else [-100] * len(ids))
    assert shown["segments"][-1]["end"] == shown["num_tokens"] == len(shown["input_ids"])


def test_rows_and_offset_choose_what_is_shown(data: Run, write_rows: Any) -> None:
    rows = [alpaca(f"Say {index}.", f"{index}" if index != 2 else "") for index in range(6)]
    result = data("preview", "--rows", "2", "--offset=1", dataset=write_rows("a.json", rows))
    assert "Say 1." in result.out
    assert "Say 0." not in result.out
    assert "Say 3." not in result.out
    assert "dropped: no answer at the end" in result.out
    assert " ids " not in result.out


def test_with_prediction_the_answer_stands_apart(data: Run, write_rows: Any) -> None:
    options = {"predict_with_generate": True, "do_predict": True}
    result = data("preview", eval_dataset=write_rows("a.json", GOOD[:1]), **options)
    assert "[[" not in result.out
    assert "compared with: one<|im_end|>" in result.out


def test_learned_stretches_end_where_labels_stop() -> None:
    assert learned_ends([-100, 1, 2, -100, 3]) == [2, 3]
    assert learned_ends([-100, -100]) == []


def test_a_preview_shows_what_a_loss_is_multiplied_by(data: Run, write_rows: Any) -> None:
    row = sharegpt("a", "b", "c", "d")
    row["conversations"][1]["loss"] = 0.3
    path = write_rows("a.json", [row])

    result = data("preview", dataset=path)
    segments = data("preview", "--json", dataset=path).json["rows"][0]["segments"]

    assert "[[b<|im_end|>]] x 0.3" in result.out
    assert "[[d<|im_end|>]] x" not in result.out
    assert [segment["weight"] for segment in segments if segment["is_learned"]] == [pytest.approx(0.3), 1.0]


@pytest.mark.parametrize("stage", ["rm", "dpo", "kto", "pt", "ppo"])
def test_rows_of_other_stages_are_checked_shown_and_counted(
    data: Run, write_rows: Any, tmp_path: Path, stage: str
) -> None:
    rows = [
        {"instruction": f"Say {word}.", "input": "", "output": word, "rejected": f"not {word}", "good": True}
        for word in ("one", "two", "three")
    ]
    columns = {"prompt": "instruction"}
    if stage in ("rm", "dpo"):
        columns |= {"chosen": "output", "rejected": "rejected"}
    if stage == "kto":
        columns |= {"kto_tag": "good"}
    write_rows("a.json", rows)
    entry = {"file_name": "a.json", "ranking": stage in ("rm", "dpo"), "columns": columns}
    write_rows("dataset_info.json", {"rows": entry})  # pyright: ignore[reportArgumentType]
    options: dict[str, Any] = {"dataset": "rows", "dataset_dir": str(tmp_path), "stage": stage, "packing": None}
    if stage == "ppo":
        options |= {"reward_model": "unused", "reward_model_type": "full", "do_train": True}

    assert data("check", **options).code == 0
    shown = data("preview", "--json", "--ids", **options).json["rows"]
    result = data("stats", "--json", **options).json

    own = result["datasets"][0]
    assert own["num_tokens"] == sum(row["num_tokens"] for row in shown)
    assert own["num_supervised"] == sum(row["num_supervised"] for row in shown)
    assert 0 <= own["supervised_share"] <= 1
    assert (own["supervised_share"] == 0) == (stage == "ppo")
    assert (result["run"]["num_packed_rows"] is None) == (stage != "pt")
    if stage in ("rm", "dpo"):
        assert result["run"]["num_tokens"] == own["num_tokens"] > sum(len(row["input_ids"]) for row in shown)
    if stage == "kto":  # with the mismatched answers, as long as the prompts and answers are
        assert own["num_tokens"] < result["run"]["num_tokens"] <= 2 * own["num_tokens"]
