"""Files and command lines: what is read, what wins, and how broken input is told."""

from pathlib import Path
from typing import Any

import pytest
from config_corpus import REQUIRED

from llamafactory.extras.errors import UserError
from llamafactory.hparams import ConfigError, get_train_args, read_args
from llamafactory.hparams.parser import load_run_config
from llamafactory.hparams.reading import read_given


def write(folder: Path, text: str, name: str = "run.yaml") -> str:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_later_words_win_and_keep_their_place(tmp_path: Path) -> None:
    file = write(tmp_path, "lora_rank: 8\nlora_alpha: 16\nstage: sft\n")
    given = read_given([file, "lora_rank=16", "--lora-rank", "32", "--lora_alpha=64"])
    assert read_args([file, "lora_rank=16"]) == {"lora_rank": 16, "lora_alpha": 16, "stage": "sft"}
    assert (given["lora_rank"].raw.value, given["lora_rank"].place) == (32, "--lora-rank")
    assert given["lora_alpha"].place == "--lora_alpha"
    assert given["stage"].place == f"{file}:3"


def test_switches_need_no_value() -> None:
    given = read_given(["--do_train", "--no_plot_loss", "--bf16", "false", "--sglang_tp_size", "-1", "lora_rank=4"])
    assert {key: item.raw.value for key, item in given.items()} == {
        "do_train": True,
        "plot_loss": False,
        "bf16": False,
        "sglang_tp_size": -1,
        "lora_rank": 4,
    }


def test_dotted_overrides_reach_into_a_mapping_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "fsdp_config:\n  version: 1\n  inner: {a: 1}\n")
    given = read_given([file, "fsdp_config.version=2", "fsdp_config.inner.b=two"])
    assert given["fsdp_config"].raw == {"version": 2, "inner": {"a": 1, "b": "two"}}
    with pytest.raises(UserError, match=r"'lora_rank\.x' reaches into 'lora_rank'"):
        read_given(["lora_rank=8", "lora_rank.x=1"])


def test_anchors_merge_keys_and_comments_work(tmp_path: Path) -> None:
    text = "fsdp_config: &base {version: 2, rate: 1e-4}\naccelerator_config:\n  <<: *base\n  version: 3  # own\n"
    given = read_given([write(tmp_path, text)])
    assert given["accelerator_config"].raw == {"version": 3, "rate": 1e-4}


def test_a_byte_order_mark_and_an_empty_file_are_fine(tmp_path: Path) -> None:
    assert read_given([write(tmp_path, "\ufefflora_rank: 8\n")])["lora_rank"].raw.value == 8
    assert read_given([write(tmp_path, "# nothing\n")]) == {}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("lora_rank: 8\nstage: sft\nlora_rank: 16\n", 3, "'lora_rank' already stands in line 1"),
        ("a: {x: 1,\n x: 2}\n", 2, "'x' already stands in line 1"),
        ("lora_rank 8\n", 1, "must consist of `key: value` lines"),
        ("lora_rank: 8\n\tstage: sft\n", 2, "not a valid configuration"),
        ("- a\n- b\n", 1, "must consist of `key: value` lines"),
        ("a: 1\n[b]: 2\n", 2, "a key must be a word"),
        ("a: [1, 2\nb: 3\n", 2, "not a valid configuration"),
        ("a: !!python/object/apply:os.system ['true']\n", 1, "could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", 2, "but found another document"),
        ("a: &a [*a, *a]\n", 1, "aliases"),
    ],
)
def test_a_broken_yaml_file_is_told_with_its_line(text: str, line: int, words: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_given([file])
    assert f"{file}:{line}:" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{\n "a": 1,\n "b" 2\n}', 3, "not valid JSON"),
        ('{\n "a": {"b": 1},\n "b": 1,\n "b": 2\n}', 4, "'b' stands there twice"),
        ("[1, 2]", 1, "must be one object"),
        ("[" * 100_000, 1, "nested too deeply"),
    ],
)
def test_a_broken_json_file_is_told_with_its_line(text: str, line: int, words: str, tmp_path: Path) -> None:
    file = write(tmp_path, text, "run.json")
    with pytest.raises(UserError) as caught:
        read_given([file])
    assert f"{file}:{line}:" in str(caught.value)
    assert words in str(caught.value)


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 9)
    )
    with pytest.raises(UserError, match="aliases"):
        read_given([write(tmp_path, bomb)])


def test_a_missing_file_is_told_with_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "a: 1\n", "train_lora.yaml")
    with pytest.raises(UserError, match=r"There is no file .*Did you mean 'train_lora\.yaml'"):
        read_given([str(tmp_path / "train_lorra.yaml")])
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        read_given([str(tmp_path / "folder.yaml")])
    (tmp_path / "latin.yaml").write_bytes(b"run_name: caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_given([str(tmp_path / "latin.yaml")])


@pytest.mark.parametrize(("words", "match"), [(["a.yaml.txt"], "not understood"), (["x", "=3"], "not understood")])
def test_a_word_that_means_nothing_is_told(words: list[str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        read_given(words)


def test_two_files_are_one_too_many(tmp_path: Path) -> None:
    one, two = write(tmp_path, "a: 1\n", "a.yaml"), write(tmp_path, "b: 1\n", "b.yaml")
    with pytest.raises(UserError, match="Two configuration files"):
        read_given([one, two])


def test_unknown_keys_are_tolerated_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    args: dict[str, Any] = {"model_name_or_path": "x", "output_dir": "y", "my_own_key": 1}
    monkeypatch.setenv("ALLOW_EXTRA_ARGS", "1")
    config = load_run_config(args)
    assert any("my_own_key" in notice and "ALLOW_EXTRA_ARGS" in notice for notice in config.notices)


def test_null_means_the_default() -> None:
    args = {"model_name_or_path": "x", "output_dir": "y", "lora_rank": None, "max_samples": None}
    config = load_run_config(args)
    assert config.values["lora_rank"] == 8
    with pytest.raises(UserError, match="output_dir is None but must be text"):
        load_run_config({"model_name_or_path": "x", "output_dir": None})
    with pytest.raises(UserError, match="output_dir has no value; set it"):
        load_run_config({"model_name_or_path": "x", "output_dir": ""})


def test_a_secret_may_come_from_the_environment_and_what_is_given_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFACTORY_HF_HUB_TOKEN", "from-the-environment")
    base = {**REQUIRED["train"], "do_train": True, "dataset": "a"}
    assert get_train_args(base)[0].hf_hub_token == "from-the-environment"
    assert get_train_args({**base, "hf_hub_token": "given"})[0].hf_hub_token == "given"
    assert "from-the-environment" not in load_run_config(base).to_yaml()


def test_every_problem_names_the_keys_that_it_is_about() -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config({**REQUIRED["train"], "lora_rank": "x", "lora_rnk": 1, "quantization_bit": 4, "stage": "pt"})
    found = {problem.keys: problem.message for problem in caught.value.found}
    assert {("lora_rank",), ("lora_rnk",)} <= set(found)
    assert not [message for message in found.values() if message.startswith("argument")]
    assert len(caught.value.problems) == len(found)
