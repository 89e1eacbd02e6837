"""The command `data`: every planted defect is found, previews mark what is learned, figures equal a plain count."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from llamafactory import cli
from llamafactory.data import get_dataset
from llamafactory.data.inspection.bench import load_bench
from llamafactory.data.inspection.check import check_data, learned_ends
from llamafactory.data.inspection.command import run_data
from llamafactory.data.inspection.figures import data_figures, packed_lengths, run_figures
from llamafactory.data.inspection.findings import load_kinds
from llamafactory.data.inspection.preview import PreviewRow, Segment, Stretch, preview_data
from llamafactory.data.inspection.show import show_row
from llamafactory.data.lengths import SequenceLengths
from llamafactory.extras.errors import UserError
from llamafactory.hparams import DataArguments, TrainingArguments
from llamafactory.hparams.parser import load_run_config


Run = Callable[..., "Result"]


class Result:
    """What a command printed and how it ended."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def finding(self, code: str) -> dict[str, Any]:
        return next(finding for finding in self.json["findings"] if finding["code"] == code)

    @property
    def codes(self) -> set[str]:
        return {finding["code"] for finding in self.json["findings"]}


@pytest.fixture
def data(tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `data` in this process; keywords are keys of the configuration."""

    def run(*words: str, model: Path = tiny_llama_dir, **options: Any) -> Result:
        options = {"model_name_or_path": str(model), "template": "chatml", "dataset_dir": str(tmp_path)} | options
        file = tmp_path / "run.yaml"
        file.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in options.items()), encoding="utf-8")
        code: object = 0
        try:
            cli.main(["data", words[0], str(file), *words[1:]])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def alpaca(instruction: str, output: str, **more: str) -> dict[str, str]:
    return {"instruction": instruction, "input": "", "output": output, **more}


def sharegpt(*texts: str, first: str = "human") -> dict[str, Any]:
    speakers = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    return {"conversations": [{"from": speakers[index % 2], "value": text} for index, text in enumerate(texts)]}


GOOD = [alpaca("Say one.", "one"), alpaca("Say two.", "two"), alpaca("Say three.", "three")]


def test_sound_data_passes_without_a_finding(data: Run, write_rows: Any) -> None:
    result = data("check", "--json", dataset=write_rows("a.json", GOOD))
    assert result.code == 0
    assert result.json["is_ok"] is True
    assert result.json["findings"] == []
    assert [(item["name"][-6:], item["num_read"], item["num_kept"]) for item in result.json["datasets"]] == [
        ("a.json", 3, 3)
    ]


@pytest.mark.parametrize(
    ("rows", "code", "places"),
    [
        ([*GOOD, alpaca("", "x y")], "empty-turn", [4]),
        ([sharegpt("a", "b", "c", " "), sharegpt("d", "e")], "empty-turn", [1]),
        ([sharegpt("a", "b", "a", "c"), sharegpt("d", "d"), sharegpt("e", "f", "g", "h")], "repeated-turn", [1, 2]),
        ([sharegpt("a", "b", first="gpt"), sharegpt("d", "e")], "dropped", [1]),
        ([*GOOD, alpaca("No answer.", "")], "dropped", [4]),
        ([*GOOD, GOOD[1], GOOD[1]], "duplicate", [4, 5]),
        ([*GOOD, alpaca("What is <|im_end|>?", "a token")], "control-text", [4]),
        ([*GOOD, alpaca("Who?", "I am {{name}}."), alpaca("What is {{x}}?", "x")], "placeholder", [4]),
        ([*GOOD, alpaca("Count.", "one two three four " * 40)], "truncated", [4]),
        ([*GOOD, alpaca("Count.", "one two three four " * 40)], "answer-cut", [4]),
    ],
)
def test_a_planted_warning_is_found_at_its_rows(
    data: Run, write_rows: Any, rows: list[Any], code: str, places: list[int]
) -> None:
    result = data("check", "--json", dataset=write_rows("a.json", rows), cutoff_len=100)
    finding = result.finding(code)
    assert finding["severity"] == "warning"
    assert finding["count"] == len(places)
    assert [place["row"] for place in finding["places"]] == places
    assert all(f"row {place['row']} " in place["where"] for place in finding["places"])
    assert result.code == 0


def test_dropped_rows_are_told_by_reason(data: Run, write_rows: Any) -> None:
    rows = [sharegpt("a", "b", first="gpt"), sharegpt("b", "c", first="gpt"), sharegpt("d"), sharegpt("e", "f")]
    result = data("check", "--json", dataset=write_rows("a.json", rows))
    dropped = {item["subject"]: item["count"] for item in result.json["findings"] if item["code"] == "dropped"}
    assert dropped == {"wrong order of roles": 2, "no answer at the end": 1}


def test_rows_that_train_on_nothing_are_found(data: Run, write_rows: Any) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss": False}]
    rows = [{"messages": turns}, {"messages": [turns[0], {"role": "assistant", "content": "c"}]}]
    assert data("check", "--json", dataset=write_rows("a.json", rows)).finding("dropped")["subject"].startswith("noth")


@pytest.mark.parametrize(("choice", "code"), [("truncate", "truncated"), ("drop", "dropped"), ("error", "overlong")])
def test_overlong_rows_are_reported_as_the_run_would_treat_them(
    data: Run, load: Any, write_rows: Any, choice: str, code: str
) -> None:
    path = write_rows("a.json", [*GOOD, alpaca("Count.", "one two three four " * 40)])
    options = {"cutoff_len": 100, "on_overlong": choice}
    result = data("check", "--json", dataset=path, **options)
    assert result.finding(code)["count"] == 1
    assert result.code == int(choice == "error")
    if choice != "error":
        shown = data("preview", "--json", "--ids", "--rows=9", dataset=path, **options).json["rows"]
        assert [row["input_ids"] for row in shown if not row["dropped"]] == load([path], **options)["train_dataset"][
            "input_ids"
        ][:]


def test_duplicates_across_datasets_and_overlap_with_evaluation_are_found(data: Run, write_rows: Any) -> None:
    one, other = write_rows("a.json", GOOD), write_rows("b.json", [GOOD[2], alpaca("Say four.", "four")])
    held_out = write_rows("c.json", [alpaca("Say five.", "five"), GOOD[0]])
    result = data("check", "--json", dataset=[one, other], eval_dataset=held_out)
    assert result.finding("duplicate-across")["places"][0]["note"].endswith("a.json, row 3")
    overlap = result.finding("overlap")
    assert (overlap["severity"], overlap["count"], overlap["places"][0]["row"]) == ("error", 1, 2)
    assert overlap["places"][0]["note"].endswith("a.json, row 1")
    assert result.code == 1


def test_a_dataset_that_cannot_be_read_is_an_error_beside_the_others(data: Run, write_rows: Any) -> None:
    good, bad = write_rows("a.json", [*GOOD, alpaca("Again.", "x"), GOOD[0]]), write_rows("b.json", [GOOD[0]])
    Path(bad).write_text('[{"instruction": 5, "output": "x"}]', encoding="utf-8")
    result = data("check", "--json", dataset=[bad, good])
    assert result.code == 1
    assert "b.json, row 1" in result.finding("unreadable")["subject"]
    assert result.finding("duplicate")["count"] == 1


def test_a_dataset_without_a_usable_row_is_an_error(data: Run, write_rows: Any) -> None:
    result = data("check", "--json", dataset=write_rows("a.json", [alpaca("No answer.", "")]))
    assert (result.code, "no-rows" in result.codes) == (1, True)


@pytest.fixture
def other_model(tiny_llama_dir: Path, tmp_path: Path, fresh_tokenizer: Any) -> Callable[..., Path]:
    """The tiny model's folder with a changed tokenizer."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        for name in ("config.json", "model.safetensors"):
            (folder / name).symlink_to(tiny_llama_dir / name)
        fresh_tokenizer(**changes).save_pretrained(folder)
        return folder

    return make


def test_a_second_begin_of_text_token_is_an_error(data: Run, write_rows: Any, other_model: Any) -> None:
    doubled = "{{ bos_token + bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    model = other_model(chat_template=doubled, bos_token="<|endoftext|>")
    result = data("check", "--json", dataset=write_rows("a.json", GOOD), model=model, template=None)
    assert result.finding("double-bos")["count"] == 3
    assert result.code == 1


def test_an_answer_without_an_end_token_is_an_error(data: Run, write_rows: Any, other_model: Any) -> None:
    endless = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    endless += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    model = other_model(chat_template=endless)
    result = data("check", "--json", dataset=write_rows("a.json", GOOD), model=model, template=None)
    assert result.finding("no-end-token")["count"] == 3
    assert result.code == 1


def test_a_tokenizer_without_pad_is_told(data: Run, write_rows: Any, other_model: Any) -> None:
    result = data("check", "--json", dataset=write_rows("a.json", GOOD), model=other_model(pad_token=None))
    assert result.codes == {"no-pad"}


def test_a_template_that_is_not_the_models_own_shows_the_tokens(data: Run, write_rows: Any) -> None:
    result = data("check", "--json", dataset=write_rows("a.json", GOOD), template="qwen")
    assert "{+<|im_start|>system\\nYou are Qwen" in result.finding("template")["subject"]
    same = data("check", "--json", dataset=write_rows("a.json", GOOD), template="auto")
    assert same.codes == set()


def test_a_check_is_readable_and_names_the_first_places(data: Run, write_rows: Any) -> None:
    rows = [*GOOD, *[alpaca(f"Say {index}.", "I am {{ name }}.") for index in range(5)]]
    result = data("check", dataset=write_rows("a.json", rows))
    assert "rows with a placeholder that nothing replaces (5)" in result.out
    assert "a.json, row 4 (line 1): {{ name }}" in result.out
    assert "and 2 more" in result.out
    assert result.out.splitlines()[-1] == "0 errors, 1 warning in 8 rows of 1 dataset"


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


def test_figures_equal_a_plain_count(data: Run, write_rows: Any, load: Any) -> None:
    rows = [alpaca(f"Say {index}.", "one two three " * (index % 7 + 1)) for index in range(30)]
    train, held_out = write_rows("a.json", [*rows, alpaca("x", "")]), write_rows("b.json", GOOD)
    options = {"cutoff_len": 40, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    result = data(
        "stats", "--json", dataset=train, eval_dataset=held_out, num_train_epochs=2.5, padding_free=False, **options
    )
    expected = load([train], cutoff_len=40)["train_dataset"]
    lengths = sorted(len(ids) for ids in expected["input_ids"])
    learned = sum(label != -100 for labels in expected["labels"] for label in labels)

    own, other = result.json["datasets"]
    assert (own["side"], other["side"]) == ("train", "eval")
    assert (own["num_read"], own["num_kept"], own["num_dropped"]) == (31, 30, 1)
    assert own["dropped"] == {"no answer at the end": 1}
    whole = load([train], cutoff_len=1000)["train_dataset"]
    assert own["num_truncated"] == sum(len(ids) > 40 for ids in whole["input_ids"]) > 0
    assert (own["num_tokens"], own["num_supervised"]) == (sum(lengths), learned)
    assert own["lengths"] == {"p50": lengths[15], "p95": lengths[28], "p99": lengths[29], "max": 40}
    assert sum(bar["num_rows"] for bar in own["histogram"]) == 30
    run = result.json["run"]
    assert (run["num_rows"], run["num_tokens"]) == (30, sum(lengths))
    assert (run["steps_per_epoch"], run["num_steps"]) == (4, 10)
    assert 0 < run["padding_share"] < 1
    assert result.code == 0


def test_a_run_that_packs_steps_over_packed_rows(load: Any, write_rows: Any) -> None:
    rows = [alpaca(f"Say {index}.", "one two three " * (index % 7 + 1)) for index in range(40)]
    dataset = load([write_rows("a.json", rows)], cutoff_len=128)["train_dataset"]
    training_args = TrainingArguments(output_dir="x", per_device_train_batch_size=1, num_train_epochs=2)
    run = run_figures(dataset, DataArguments(cutoff_len=128, packing=True), training_args, num_ranks=1)
    assert run.num_rows == 40
    assert run.steps_per_epoch == run.num_packed_rows < 20
    assert run.num_steps == 2 * run.num_packed_rows
    assert run.packing_efficiency == pytest.approx(run.num_tokens / (run.num_packed_rows * 128), abs=1e-4)
    assert run.packing_efficiency > 0.9
    assert run_figures(dataset, DataArguments(cutoff_len=128), training_args, num_ranks=4).steps_per_epoch == 10


@pytest.mark.parametrize(
    ("stage", "lengths", "expected"),
    [
        ("pt", [25, 3], [10, 10, 8]),
        ("pt", [7, 3, 4], [10, 4]),
        ("sft", [7, 3, 4], [10, 4]),
        ("sft", [7, 4, 4], [7, 8]),
    ],
)
def test_packing_is_counted_as_the_stage_packs(stage: str, lengths: list[int], expected: list[int]) -> None:
    packed = packed_lengths(SequenceLengths({"": np.array(lengths)}), DataArguments(cutoff_len=10), 0, stage)
    assert packed is not None
    assert packed.total.tolist() == expected


def test_pairs_and_marks_are_not_packed() -> None:
    pairs = SequenceLengths({"chosen_": np.array([3, 4]), "rejected_": np.array([5, 2])})
    assert packed_lengths(pairs, DataArguments(cutoff_len=10), 0, "dpo") is None


def test_pairs_are_shown_and_counted_with_both_answers(
    load: Any, write_rows: Any, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    rows = [{"instruction": "Say one.", "input": "", "chosen": "one", "rejected": "two three"}]
    write_rows("a.json", rows)
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    write_rows("dataset_info.json", {"pairs": {"file_name": "a.json", "ranking": True, "columns": columns}})
    options = {"model_name_or_path": tiny_llama_dir, "dataset": "pairs", "dataset_dir": tmp_path, "output_dir": "x"}
    config = load_run_config({**{key: str(value) for key, value in options.items()}, "template": "chatml"})
    bench = replace(load_bench(config), stage="dpo")
    (row,) = preview_data(bench, 1, 0)
    assert [segment.text for segment in row.segments if segment.is_learned] == ["one<|im_end|>"]
    assert row.others["rejected"].endswith("two three<|im_end|>\n") or row.others["rejected"].endswith("<|im_end|>")
    assert check_data(bench).findings == ()
    module = get_dataset(
        bench.template,
        bench.model_args,
        bench.data_args,
        bench.training_args,
        "dpo",
        tokenizer=bench.tokenizer,
    )
    run = data_figures(module, bench.data_args, bench.training_args, stage="dpo").run
    assert run is not None
    assert run.num_tokens > run.num_rows * len(row.input_ids)


def test_padding_is_what_batches_of_the_run_have() -> None:
    rows: Any = [{"input_ids": [7] * length} for length in (1, 3, 5, 5, 2)]
    data_args = DataArguments(padding_free=False)
    arguments = TrainingArguments(output_dir="x", per_device_train_batch_size=2, seed=1)
    sequential = replace(arguments, train_sampling_strategy="sequential")
    assert run_figures(rows, data_args, sequential).padding_share == pytest.approx(1 - 16 / (6 + 10 + 2), abs=1e-4)
    grouped = replace(arguments, train_sampling_strategy="group_by_length")
    assert run_figures(rows, data_args, grouped).padding_share == pytest.approx(1 - 16 / (10 + 6 + 1), abs=1e-4)


def test_token_budgets_are_counted_in_steps_and_filling() -> None:
    rows: Any = [{"input_ids": [7] * length} for length in (4, 4, 2, 6, 3)]
    arguments = TrainingArguments(output_dir="x", train_sampling_strategy="sequential", num_train_epochs=2)
    run = run_figures(rows, DataArguments(max_batch_tokens=10, padding_free=True), arguments)
    assert (run.steps_per_epoch, run.num_steps, run.rows_per_batch) == (2, 4, 2.5)  # 4 4 2, 6 3
    assert run.batch_fill == pytest.approx(19 / 20)
    assert run.padding_share == 0
    padded = run_figures(rows, DataArguments(max_batch_tokens=10, padding_free=False), arguments)
    assert padded.steps_per_epoch == 4  # 4 4, 2, 6, 3 (2 and 6 take 12 places)
    assert padded.padding_share == 0


def test_stats_are_readable(data: Run, write_rows: Any) -> None:
    result = data("stats", dataset=[write_rows("a.json", GOOD), write_rows("b.json", GOOD[:2])], max_steps=7)
    assert "7 in all (7 epochs; 8 rows x 1 accumulated x 1 rank)" in result.out
    assert "\n  all " in result.out
    assert "packing" in result.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["peek"], "`data` does not know 'peek'."),
        (["chekc"], "Did you mean 'check'?"),
        (["check", "cutoff=5"], "did you mean cutoff_len"),
        (["check", "model_name_or_path=x"], "name a dataset"),
        (["preview", "--rows", "many"], "--rows"),
        (["check", "--ids"], "`data check` has no option --ids"),
    ],
)
def test_a_mistake_is_one_message(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["data", *words])
    captured = capsys.readouterr()
    assert (end.value.code, captured.out) == (2, "")
    assert message in captured.err


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["data"], ["data", "--help"], ["data", "check", "-h"], ["help", "data"]):
        cli.main(words)
        assert capsys.readouterr().out.startswith("usage: llamafactory-cli data check|preview|stats")


def test_help_and_mistakes_need_nothing_heavy() -> None:
    code = (
        "import sys\nfrom llamafactory.cli import main\nmain(['data', '--help'])\n"
        "try:\n    main(['data', 'check', 'cutoff=5'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'rich') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_every_kind_of_finding_has_words() -> None:
    for kind in load_kinds().values():
        assert kind.severity in ("error", "warning")
        assert kind.title
        assert kind.advice


def test_learned_stretches_end_where_labels_stop() -> None:
    assert learned_ends([-100, 1, 2, -100, 3]) == [2, 3]
    assert learned_ends([-100, -100]) == []


@pytest.mark.parametrize("word", ["x", "-1", "1.5"])
def test_a_row_count_that_is_none_is_one_sentence(word: str) -> None:
    with pytest.raises(UserError, match=rf"--rows: '{word}' must be a whole number >= 0"):
        run_data(["preview", "run.yaml", f"--rows={word}"])


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


def test_the_data_can_be_looked_at_before_the_weights_are_there(
    data: Run, write_rows: Any, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_llama_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))

    result = data("check", dataset=write_rows("a.json", GOOD), model_name_or_path=str(folder))

    assert result.code == 0
