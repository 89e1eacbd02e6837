"""The command `data check`: every planted defect is found, and a mistake is one message."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspection_tools import GOOD, Run, alpaca, sharegpt

from llamafactory import cli
from llamafactory.data.inspection.command import run_data
from llamafactory.data.inspection.findings import load_kinds
from llamafactory.extras.errors import UserError


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


@pytest.mark.parametrize("word", ["x", "-1", "1.5"])
def test_a_row_count_that_is_none_is_one_sentence(word: str) -> None:
    with pytest.raises(UserError, match=rf"--rows: '{word}' must be a whole number >= 0"):
        run_data(["preview", "run.yaml", f"--rows={word}"])


def test_the_data_can_be_looked_at_before_the_weights_are_there(
    data: Run, write_rows: Any, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_llama_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))

    result = data("check", dataset=write_rows("a.json", GOOD), model_name_or_path=str(folder))

    assert result.code == 0
