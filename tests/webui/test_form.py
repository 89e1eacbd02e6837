"""The form without a browser: values to keys and back, the command, saved arguments."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory.extras.errors import UserError
from llamafactory.hparams.parser import load_run_config, read_args
from llamafactory.hparams.schema import list_params
from llamafactory.hparams.yamltext import read_entries
from llamafactory.webui.arguments import (
    arguments_text,
    command_line,
    from_config,
    load_arguments,
    read_extra,
    run_config,
)
from llamafactory.webui.exchange import fill_form, read_form, to_widget, to_yaml, typed
from llamafactory.webui.form import start_value
from llamafactory.webui.layout import UNSET, Field, fields_of, list_fields, list_groups
from llamafactory.webui.places import Places
from llamafactory.webui.train_actions import Form, add_key, other_keys


FIELDS = fields_of(("top", "train"))
START = {element: start_value(field) for element, field in FIELDS.items()}
OWN = [field for field in FIELDS.values() if field.widget != "secret"]
WORDS = st.text("abcXYZ019_-/. ", min_size=1, max_size=12).map(str.strip).filter(lambda text: text and text != ".")
PLAIN = WORDS.filter(lambda text: text.lower() not in ("null", "~", "none"))


def filled(**values: Any) -> dict[str, Any]:
    """Return the values of a form that could be started, with some changed."""
    ready = {"top.model_path": "models/tiny", "train.dataset": ["tiny_alpaca"], "train.output_dir": "one"}
    return {**START, **ready, "train.extra_args": "{}", "top.model_name": "Custom", **values}


def values_of(field: Field) -> st.SearchStrategy[Any]:
    """Return what a visitor can put into a widget, as long as it fits the declaration of its key."""
    if field.widget == "switch":
        return st.booleans()
    if field.range is not None:
        low, high, step = field.range
        whole = field.declared.has(int) and not field.declared.has(float)
        numbers = st.integers(math.ceil(low), math.floor(high)) if whole or step >= 1 else st.floats(low, high)
        return numbers.map(lambda number: number if isinstance(number, int) else round(number, 6)).filter(
            lambda number: _within(field, number)
        )
    if field.widget in ("choice", "open"):
        words = [to_widget(field, word) if field.param else word for word in field.choices]
        return st.sampled_from(words) if words else PLAIN
    if field.widget == "names":
        return st.lists(PLAIN.filter(lambda text: "," not in text), max_size=3)
    return _written(field)


def _within(field: Field, number: float) -> bool:
    signs = {">=": float.__ge__, ">": float.__gt__, "<=": float.__le__, "<": float.__lt__}
    return all(signs[sign](float(number), float(limit)) for sign, limit in field.declared.bounds)


def _written(field: Field) -> st.SearchStrategy[str]:
    if field.widget == "product":
        return st.integers(1, 2000).map(lambda side: f"{side}*{side}")
    param = field.declared
    if param.has(dict) or param.has(str):
        return PLAIN
    if param.has(tuple):
        numbers = any(shape.base is float for outer in param.shapes for shape in outer.item)
        return st.just("0.5,1.5") if numbers else PLAIN.filter(lambda text: " " not in text)
    if param.has(float):
        return st.sampled_from(["0.25", "0.125", "1e-05", "0.45"])
    low = max([math.ceil(limit) for sign, limit in param.bounds if sign in (">=", ">")], default=0)
    high = min([math.floor(limit) for sign, limit in param.bounds if sign in ("<=", "<")], default=1000)
    return st.integers(low + 1, max(high, low + 1)).filter(lambda number: _within(field, number)).map(str)


def test_every_field_stands_in_one_group_and_every_name_of_a_group_is_a_field() -> None:
    for tab in ("top", "train"):
        names = [name for group in list_groups(tab) for name in group.names]
        assert len(names) == len(set(names))
        assert set(list_fields(tab)) <= set(names)


def test_a_fresh_form_fills_itself_again() -> None:
    again = fill_form(FIELDS, read_form(FIELDS, START))
    assert again.rest == {}
    assert again.values == START


@pytest.mark.parametrize("field", OWN, ids=lambda field: field.id)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_field_reaches_the_yaml_and_comes_back(field: Field, data: st.DataObject) -> None:
    value = data.draw(values_of(field))
    values = {**START, field.id: value}
    if field.name == "ds_offload":
        values["train.ds_stage"] = "2"
    names = {field.id, "train.ds_stage"} if field.name == "ds_offload" else {field.id}
    config = read_form({key: FIELDS[key] for key in names}, values, idle=True)
    again = fill_form(FIELDS, read_args(_file_args(to_yaml(config))))
    assert again.values[field.id] == _canonical(field, value)


def _file_args(text: str) -> dict[str, Any]:
    return {entry.key: entry.raw for entry in read_entries(text)}


def _canonical(field: Field, value: Any) -> Any:
    """Return what a widget shows after its value went through a file: numbers and lists in their one form."""
    if field.param is None or field.widget in ("switch", "choice", "open", "slider"):
        return value
    return to_widget(field, typed(field, value))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_pasted_command_means_the_written_file(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(OWN), max_size=6, unique_by=lambda field: field.id))
    values = {**START, **{field.id: data.draw(values_of(field)) for field in chosen}}
    config = read_form(FIELDS, values)
    line = command_line(config)
    words = shlex.split(line.partition("\n")[2] if line.startswith("cat") else line.replace("\\\n", " "))
    if line.startswith("cat"):
        text = line.partition("\n")[2].rpartition("END_OF_FILE\n")[0]
        assert read_args(_file_args(text)) == read_args(_file_args(to_yaml(config)))
    else:
        assert words[:2] == ["llamafactory-cli", "train"]
        assert read_args(words[2:]) == read_args(_file_args(to_yaml(config)))


def test_a_run_of_the_page_and_its_previewed_command_resolve_to_the_same(tmp_path: Path) -> None:
    form = Form(FIELDS, Places(work=tmp_path))
    config = run_config(FIELDS, filled(**{"train.val_size": 0.2, "train.lora_target": "q_proj,v_proj"}), form.places)
    text, command = form.preview(config, {})
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    started = load_run_config([str(path)], announce=False)
    pasted = load_run_config(shlex.split(command.replace("\\\n", " "))[2:], announce=False)
    assert pasted.values == started.values
    assert started.values["eval_strategy"] == "steps"
    assert started.values["output_dir"] == "saves/Custom/lora/one"


def test_what_a_command_line_cannot_say_is_written_into_a_file() -> None:
    line = command_line({"run_name": "null", "prompt_init_text": 'it\'s "so"; $(touch y)'})
    assert line.startswith("cat > run.yaml <<'END_OF_FILE'\n")
    assert 'run_name: "null"\n' in line
    quoted = command_line({"prompt_init_text": "it's; $(touch y) `z`"})
    assert shlex.split(quoted.replace("\\\n", " "))[2] == "prompt_init_text=it's; $(touch y) `z`"


def test_saved_arguments_come_back_without_secrets(tmp_path: Path) -> None:
    values = filled(**{"train.lora_rank": 32, "train.swanlab_api_key": "hush", "train.use_dora": True})
    values["train.extra_args"] = '{"hub_token": "hf_hush", "lora_router": true}'
    text = arguments_text(FIELDS, values)
    assert "hush" not in text
    path = tmp_path / "kept.yaml"
    path.write_text(text, encoding="utf-8")
    loaded = load_arguments(FIELDS, path, ("train.extra_args", "top.model_name"))
    assert loaded.unknown == ()
    assert loaded.values["train.lora_rank"] == 32
    assert loaded.values["train.use_dora"] is True
    assert json.loads(loaded.values["train.extra_args"]) == {"lora_router": True}
    same = {key for key in FIELDS if FIELDS[key].widget != "secret"}
    assert {key: loaded.values[key] for key in same} == {key: values[key] for key in same}


def test_arguments_saved_elsewhere_load_with_a_sentence_for_what_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(
        "top.booster: flashattn2\ntrain.training_stage: Reward Modeling\ntrain.reward_model:\n- a\n- b\n"
        "train.learning_rate: 5e-5\ntrain.nonsense: 1\ntrain.lora_rank: 99999\n",
        encoding="utf-8",
    )
    loaded = load_arguments(FIELDS, path, ())
    assert loaded.values["train.training_stage"] == "rm"
    assert loaded.values["top.booster"] == "flashattn2"
    assert float(loaded.values["train.learning_rate"]) == 5e-5
    assert loaded.unknown == ("train.nonsense", "train.lora_rank")


def test_a_hand_written_file_loads_and_keeps_keys_that_have_no_field(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model_name_or_path: a/b\nstage: dpo\ndo_train: true\nlora_rank: 4\nlora_target: q_proj,v_proj\nbf16: true\n"
        "ignore_data_skip: true\nwarmup_ratio: 0.1\noutput_dir: saves/x/lora/y\nhf_hub_token: hf_secret\n",
        encoding="utf-8",
    )
    loaded = load_arguments(FIELDS, path, ())
    assert loaded.values["train.training_stage"] == "dpo"
    assert loaded.values["train.compute_type"] == "bf16"
    assert loaded.values["train.lora_target"] == "q_proj,v_proj"
    assert loaded.values["train.output_dir"] == "saves/x/lora/y"
    assert set(loaded.rest) == {"ignore_data_skip", "warmup_ratio"}
    assert loaded.unknown == ("hf_hub_token",)
    assert "hf_secret" not in str(loaded)


def test_every_key_of_the_command_line_is_a_field_or_can_be_looked_up() -> None:
    fields = {key for field in FIELDS.values() for key in field.keys}
    secrets = {key for key, param in list_params("train").items() if param.is_secret}
    missing = set(list_params("train")) - fields - set(other_keys(FIELDS)) - secrets
    assert missing == {"output_dir"}
    assert json.loads(add_key("{}", "ignore_data_skip")) == {"ignore_data_skip": False}


def test_further_arguments_win_over_their_fields_and_must_be_a_mapping(tmp_path: Path) -> None:
    places = Places(work=tmp_path)
    config = run_config(FIELDS, filled(**{"train.extra_args": '{"lora_rank": 3}'}), places)
    assert config["lora_rank"] == 3
    assert read_extra("optim: adamw_torch\nseed: 1") == {"optim": "adamw_torch", "seed": 1}
    with pytest.raises(UserError, match="key"):
        read_extra("[1, 2]")


def test_a_checkpoint_is_an_adapter_or_for_full_tuning_the_model(tmp_path: Path) -> None:
    places = Places(work=tmp_path)
    for method in ("lora", "full"):
        (places.saves / "Custom" / method / "first").mkdir(parents=True)
    adapter = run_config(FIELDS, filled(**{"top.checkpoint_path": ["first"]}), places)
    assert adapter["adapter_name_or_path"] == ("saves/Custom/lora/first",)
    whole = run_config(FIELDS, filled(**{"top.finetuning_type": "full", "top.checkpoint_path": ["first"]}), places)
    assert whole["model_name_or_path"] == "saves/Custom/full/first"
    assert "adapter_name_or_path" not in whole


def test_the_form_of_a_configuration_writes_that_configuration(tmp_path: Path) -> None:
    places = Places(work=tmp_path)
    config = run_config(FIELDS, filled(**{"train.lora_rank": 5, "train.report_to": ["tensorboard"]}), places)
    loaded = from_config(FIELDS, config)
    assert run_config(FIELDS, loaded.values, places) == config


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "", "saves/../../x", "saves/", "x; touch y", "<b>x</b>", "a\x00b", ".."]
)
def test_a_run_cannot_be_put_outside_the_folder_of_runs(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        Places(work=tmp_path).run_dir("Custom", "lora", name)
    with pytest.raises(UserError):
        Places(work=tmp_path).arguments_file(name)


def test_unset_is_null_and_not_text() -> None:
    config = read_form(FIELDS, {**START, "train.max_samples": UNSET, "train.lora_alpha": 0})
    assert "max_samples" not in config
    assert "lora_alpha" not in config
