"""Whatever is wrong with a configuration, the answer is a UserError that names the key, never a traceback."""

import json
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from config_corpus import REQUIRED
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llamafactory.extras.errors import UserError
from llamafactory.hparams import ConfigError
from llamafactory.hparams.legacy import list_legacy
from llamafactory.hparams.parser import load_run_config
from llamafactory.hparams.reading import read_given
from llamafactory.hparams.schema import COMMAND_CLASSES, Param, list_params


PARAMS = list_params("train")
BASE = {**REQUIRED["train"], "do_train": True, "dataset": "a,b", "learning_rate": 1e-4}
COMBINATIONS: list[tuple[dict[str, Any], str]] = [
    ({"dataset": None}, "dataset"),
    ({"do_eval": True}, "do_eval"),
    ({"do_predict": True, "val_size": 0.1}, "predict_with_generate"),
    ({"val_size": 0.1, "eval_dataset": "c"}, "eval_dataset"),
    ({"val_size": 1.5}, "val_size"),
    ({"train_on_prompt": True, "mask_history": True}, "mask_history"),
    ({"fp16": True, "bf16": True}, "fp16"),
    ({"pure_bf16": True, "fp16": True}, "pure_bf16"),
    ({"early_stopping_steps": 3}, "early_stopping_steps"),
    ({"load_best_model_at_end": True}, "load_best_model_at_end"),
    ({"logging_steps": 0}, "logging_steps"),
    ({"save_steps": 2.5}, "save_steps"),
    ({"dataloader_prefetch_factor": 2}, "dataloader_num_workers"),
    ({"interleave_probs": "0.5,0.5"}, "mix_strategy"),
    ({"report_to": "none,wandb"}, "report_to"),
    ({"finetuning_type": "full", "adapter_name_or_path": "x"}, "adapter_name_or_path"),
    ({"finetuning_type": "full", "use_dora": True}, "use_dora"),
    ({"disable_gradient_checkpointing": True, "gradient_checkpointing": True}, "gradient_checkpointing"),
    ({"image_min_pixels": 10**9}, "image_max_pixels"),
    ({"streaming": True, "packing": True}, "max_steps"),
    ({"num_train_epochs": 0}, "num_train_epochs"),
]
MISFITS: dict[type, list[Any]] = {
    bool: ["perhaps", 2, [True], {"a": 1}],
    int: ["many", 1.5, True, [1, 2], {"a": 1}, "1e999"],
    float: ["fast", True, [0.5, 0.5], {"a": 1}, "nan", float("inf")],
    str: [["a", ["b"]], {"a": 1}],
    dict: [3, True, "{broken", "{'a': 1", [1]],
    tuple: [{"a": 1}, True, [["nested"]]],
}


def problems_of(args: dict[str, Any] | list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run_config(args, "train", announce=False)
    assert caught.value.problems
    return str(caught.value)


def refusal_of(function: Callable[[Any], Any], args: Any) -> str | None:
    """Return the sentence of the UserError; None when the arguments are taken, and any other error goes through."""
    try:
        function(args)
    except UserError as error:
        return str(error)
    return None


@st.composite
def typos(draw: st.DrawFn) -> str:
    key = draw(st.sampled_from(sorted(PARAMS)))
    place = draw(st.integers(0, len(key) - 1))
    letter = draw(st.sampled_from(string.ascii_lowercase))
    edits = (
        key[:place] + key[place + 1 :],
        key[:place] + letter + key[place:],
        key[:place] + letter + key[place + 1 :],
    )
    typo = draw(st.sampled_from(edits))
    assume(typo and typo not in PARAMS and typo not in list_legacy())
    return typo


def misfits(param: Param) -> list[Any]:
    """Values that no form of the key can hold."""
    bases = {shape.base for shape in param.shapes} - {type(None)}
    if (
        param.choices
        and not param.has(bool)
        and not param.has(tuple)
        and not any(shape.base is str and not shape.choices for shape in param.shapes)
    ):
        return ["no such choice", 987654, {"a": 1}]
    common = [value for value in MISFITS[next(iter(bases))] if all(value in MISFITS[base] for base in bases)]
    limits = [limit - 1 if sign in (">=", ">") else limit + 1 for sign, limit in param.bounds]
    return common + (limits if len(bases) == 1 or bases == {int, float} else [])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(typo=typos(), value=st.sampled_from([1, "x", True, None, "a b"]))
def test_a_typo_in_a_key_is_named_with_the_nearest_keys(typo: str, value: Any) -> None:
    message = problems_of({**BASE, typo: value})
    assert f"unknown key {typo}" in message or f"{typo} belongs to" in message


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data(), name=st.sampled_from(sorted(PARAMS)))
def test_a_wrong_value_is_named_with_its_key(data: st.DataObject, name: str) -> None:
    values = misfits(PARAMS[name])
    assume(values)
    message = problems_of({**BASE, name: data.draw(st.sampled_from(values))})
    assert f"{name} is" in message


@settings(max_examples=150, deadline=None, derandomize=True)
@given(chosen=st.lists(st.sampled_from(COMBINATIONS), min_size=1, max_size=3), typo=typos())
def test_bad_combinations_are_all_named_at_once(chosen: list[tuple[dict[str, Any], str]], typo: str) -> None:
    merged: dict[str, Any] = {}
    for changes, _ in chosen:
        assume(not merged.keys() & changes.keys())
        merged.update(changes)
    message = problems_of({**BASE, **merged, typo: 1})
    assert typo in message
    assert chosen[0][1] in message


@pytest.mark.parametrize(("changes", "key"), COMBINATIONS)
def test_each_bad_combination_alone_names_its_key(changes: dict[str, Any], key: str) -> None:
    assert key in problems_of({**BASE, **changes})


def test_the_nearest_keys_and_the_owning_command_are_told() -> None:
    message = problems_of({**BASE, "lora_rnak": 8, "task": "mmlu_test", "eval_steos": 5})
    assert "unknown key lora_rnak: 8; did you mean lora_rank" in message
    assert "task belongs to the command `eval`, not to `train`" in message
    assert "eval_steps" in message
    assert "3 problems" in message
    with pytest.raises(ConfigError, match="learning_rate belongs to the command `train`, not to `chat`"):
        load_run_config({"model_name_or_path": "x", "learning_rate": 1e-4}, "chat")


def test_every_problem_has_its_place(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model_name_or_path: x\noutput_dir: y\n\n# comment\nlora_rank: eight\ntrain_on_prompt: true\n")
    message = problems_of([str(file), "mask_history=true", "--lora_dropout", "2", "--stage", "sftt"])
    assert f"{file}:5: lora_rank is 'eight' but must be a whole number >= 1" in message
    assert f"{file}:6, command line: train_on_prompt: true cannot go with mask_history: true" in message
    assert "--lora_dropout: lora_dropout is '2' but must be a number >= 0 and < 1" in message
    assert "--stage: stage is 'sftt' but must be one of pt, sft, rm, ppo, dpo, kto, grpo or a name" in message
    assert "registers; did you mean 'sft'?" in message


@pytest.mark.parametrize("command", list(COMMAND_CLASSES))
def test_missing_keys_are_named(command: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config({}, command)
    for name in REQUIRED[command]:
        assert f"{name} is missing" in str(caught.value)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(max_size=60) | st.text(alphabet="abc: -[]{}\"'\n#&*!|>%\t\\,?", max_size=60))
def test_any_file_is_read_or_refused_in_one_sentence(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".yaml", ".json"):
            file = Path(folder) / f"run{suffix}"
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
            refusal = refusal_of(read_given, [str(file)])
            assert refusal is None or str(file) in refusal


@settings(max_examples=200, deadline=None, derandomize=True)
@given(words=st.lists(st.text(alphabet="ab-=.{}[],: \n\"'", min_size=1, max_size=12), max_size=4))
def test_any_command_line_is_read_or_refused_in_one_sentence(words: list[str]) -> None:
    assert refusal_of(load_run_config, words) != ""


@settings(max_examples=100, deadline=None, derandomize=True)
@given(value=st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), st.lists, max_leaves=3))
def test_any_python_value_is_taken_or_refused(value: Any) -> None:
    for name in ("lora_rank", "bf16", "fsdp_config", "dataset", "flash_attn", "interleave_probs", "output_dir"):
        refusal = refusal_of(load_run_config, {**BASE, name: value})
        assert refusal is None or name in refusal


def test_a_json_value_that_is_broken_says_where() -> None:
    message = problems_of({**BASE, "fsdp_config": '{"a": 1,, }'})
    assert "fsdp_config is not valid JSON" in message
    assert "column" in message
    assert json.dumps("a") in message


def test_a_value_that_is_nested_too_deeply_is_told() -> None:
    for deep in ("[" * 100_000, '{"a":' * 100_000):
        message = problems_of({**BASE, "fsdp_config": deep, "lora_target": deep, "lora_rank": 0})
        assert "lora_rank is 0" in message
