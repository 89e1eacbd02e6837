"""Every key, in every way of writing it, arrives at the right value."""

import json
from pathlib import Path
from typing import Any

import pytest
from config_corpus import REQUIRED, good_values, written

from llamafactory.hparams.reading import read_given
from llamafactory.hparams.schema import COMMAND_CLASSES, Param, list_params
from llamafactory.hparams.values import ValueProblem, coerce


CASES = [
    pytest.param(param, id=f"{command}-{param.name}")
    for command in ("train", "eval")
    for param in list_params(command).values()
]


def parse(param: Param, args: dict[str, Any] | list[str]) -> Any:
    value = coerce(param, read_given(args)[param.name].raw)
    assert not isinstance(value, ValueProblem), value.message
    return value


def expected(param: Param, value: Any) -> Any:
    """Null means the default, unless null is a value of its own."""
    return param.default if value is None and not param.is_optional else value


@pytest.mark.parametrize("param", CASES)
def test_every_value_arrives_from_a_dict_and_an_override_and_a_flag(param: Param) -> None:
    for value in good_values(param):
        check_all_forms(param, value)


def check_all_forms(param: Param, value: Any) -> None:
    assert parse(param, {param.name: value}) == expected(param, value)
    if isinstance(value, dict):
        assert parse(param, {param.name: json.dumps(value)}) == value
        assert parse(param, [f"{param.name}={json.dumps(value)}"]) == value
    else:
        assert parse(param, [f"{param.name}={written(value)}"]) == expected(param, value)
        assert parse(param, [f"--{param.name}", written(value)]) == expected(param, value)
        assert parse(param, [f"--{param.name}={written(value)}"]) == expected(param, value)


@pytest.mark.parametrize("command", list(COMMAND_CLASSES))
def test_every_value_arrives_from_a_yaml_and_a_json_file(command: str, tmp_path: Path) -> None:
    params = list_params(command)
    for index in range(6):  # the test above goes through every choice
        values = {name: good_values(param)[index % len(good_values(param))] for name, param in params.items()}
        yaml_file, json_file = tmp_path / "run.yaml", tmp_path / "run.json"
        yaml_file.write_text("".join(f"{name}: {yaml_text(value)}\n" for name, value in values.items()))
        json_file.write_text(json.dumps(values, indent=1))
        for file in (yaml_file, json_file):
            given = read_given([str(file)])
            assert list(given) == list(values)
            for line, (name, param) in enumerate(params.items(), start=1 if file == yaml_file else 2):
                assert coerce(param, given[name].raw) == expected(param, values[name]), (file.name, name)
                if file == yaml_file:
                    assert given[name].place == f"{file}:{line}"


def yaml_text(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return written(value) if not isinstance(value, tuple) else "[" + ", ".join(written(item) for item in value) + "]"


def test_numbers_are_read_as_people_write_them() -> None:
    params = list_params("train")
    assert parse(params["learning_rate"], ["learning_rate=1e-4"]) == 1e-4
    assert parse(params["learning_rate"], {"learning_rate": "1.0e-4"}) == 1e-4
    assert parse(params["lora_rank"], {"lora_rank": 8.0}) == 8
    assert parse(params["quantization_bit"], {"quantization_bit": "4"}) == 4
    assert parse(params["logging_steps"], ["logging_steps=10"]) == 10
    assert parse(params["master_port"], ["master_port=029500"]) == "029500"
    assert parse(params["run_name"], ["run_name=2024-01-01"]) == "2024-01-01"
    assert parse(params["run_name"], ["run_name=1e3"]) == "1e3"


def test_yaml_words_that_look_like_switches_stay_words_where_words_are_wanted(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("eval_strategy: no\nreport_to: [none]\nlora_target: [yes, on]\nresume_from_checkpoint: true\n")
    given = read_given([str(file)])
    params = list_params("train")
    values = {name: coerce(params[name], item.raw) for name, item in given.items()}
    assert values == {
        "eval_strategy": "no",
        "report_to": ("none",),
        "lora_target": ("yes", "on"),
        "resume_from_checkpoint": True,
    }


def test_lists_and_mappings_are_read_in_every_form() -> None:
    params = list_params("train")
    for form in ("q_proj,v_proj", "q_proj, v_proj", "[q_proj, v_proj]", '["q_proj","v_proj"]', ["q_proj", "v_proj"]):
        assert parse(params["lora_target"], {"lora_target": form}) == ("q_proj", "v_proj"), form
    assert parse(params["lora_target"], ["--lora_target", "q_proj", "v_proj"]) == ("q_proj", "v_proj")
    assert parse(params["fsdp_config"], ["fsdp_config.version=2", "fsdp_config.a.b=x"]) == {
        "version": 2,
        "a": {"b": "x"},
    }
    assert parse(params["fsdp_config"], {"fsdp_config": "fsdp.json"}) == "fsdp.json"
    assert parse(params["vllm_config"], ["vllm_config={max_num_seqs: 4}"]) == {"max_num_seqs": 4}
    assert parse(params["dataset_dir"], {"dataset_dir": '{"mine": {"file_name": "a.json"}}'}) == {
        "mine": {"file_name": "a.json"}
    }


def test_required_keys_are_known() -> None:
    for command, required in REQUIRED.items():
        params = list_params(command)
        assert {name for name, param in params.items() if param.is_required} <= set(required)
