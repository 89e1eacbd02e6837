"""What is declared: help for every key, agreement with transformers, the JSON Schema, the reference page."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_corpus import REQUIRED, good_values
from jsonschema import Draft202012Validator

import llamafactory
from llamafactory.extras.errors import UserError
from llamafactory.hparams.commands import show_config, show_schema
from llamafactory.hparams.json_schema import build_schema
from llamafactory.hparams.legacy import RULES, load_legacy
from llamafactory.hparams.optimizers import OPTIMIZERS
from llamafactory.hparams.reference import render_reference
from llamafactory.hparams.schema import COMMAND_CLASSES, list_params
from llamafactory.hparams.tables import load_table
from llamafactory.hparams.usage import format_help
from llamafactory.hparams.values import describe


ROOT = Path(__file__).resolve().parents[2]
PARAMS = {name: param for command in COMMAND_CLASSES for name, param in list_params(command).items()}

# Where our declaration differs from transformers' on purpose.
OWN_DEFAULTS = {
    "output_dir": "required: a run must say where its files go",
    "bf16": "None: chosen by the hardware",
    "remove_unused_columns": "False: our collators know what they need",
    "label_names": "our one label column",
}
RUNTIME_DIFFERENCES = {"report_to": ("none",), "debug": (), "include_for_metrics": ()}  # the same, as tuples


def test_every_key_has_one_line_of_help_that_says_what_changes() -> None:
    for param in PARAMS.values():
        assert re.fullmatch(r"[A-Z].*\.", param.help), param.name
        assert "\n" not in param.help
        assert "whether or not" not in param.help.lower()
        assert describe(param), param.name
    assert all(param.title for param in PARAMS.values())


@pytest.mark.parametrize("command", list(COMMAND_CLASSES))
def test_no_two_classes_of_a_command_declare_the_same_key(command: str) -> None:
    names = [item.name for cls in COMMAND_CLASSES[command] for item in dataclasses.fields(cls)]
    assert len(names) == len(set(names))


def test_our_trainer_keys_are_those_of_the_installed_transformers() -> None:
    from transformers import Seq2SeqTrainingArguments

    params = list_params("train")
    ours = {
        name for name, param in params.items() if param.owner.__module__.endswith(("trainer_args", "reporting_args"))
    }
    theirs = {item.name: item for item in dataclasses.fields(Seq2SeqTrainingArguments)}
    assert ours - theirs.keys() == {"overwrite_output_dir", "logging_dir"}
    assert theirs.keys() - ours == set()
    for name, item in theirs.items():
        default = item.default_factory() if item.default is dataclasses.MISSING else item.default  # type: ignore[misc]
        if name in RUNTIME_DIFFERENCES:
            assert params[name].default == RUNTIME_DIFFERENCES[name]
        elif name in OWN_DEFAULTS:
            assert params[name].default != default, f"{name} no longer differs"
        else:
            assert params[name].default == default, name


def test_choices_are_those_of_the_installed_transformers() -> None:
    from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
    from transformers.training_args import OptimizerNames

    params = list_params("train")
    enums: dict[str, Any] = {
        "optim": OptimizerNames,
        "lr_scheduler_type": SchedulerType,
        "hub_strategy": HubStrategy,
        "save_strategy": SaveStrategy,
        "eval_strategy": IntervalStrategy,
        "logging_strategy": IntervalStrategy,
    }
    for name, enum in enums.items():
        assert set(params[name].choices) == {item.value for item in enum}, name


@pytest.mark.parametrize("command", list(COMMAND_CLASSES))
def test_the_json_schema_is_valid_and_takes_what_the_parser_takes(command: str) -> None:
    schema = json.loads(json.dumps(build_schema(command)))
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert list(validator.iter_errors(REQUIRED[command])) == []
    for name, param in list_params(command).items():
        for value in good_values(param):
            plugins = {"plugins": "my_stage.py"} if param.is_open else {}
            instance = json.loads(json.dumps({**REQUIRED[command], **plugins, name: value}))
            assert list(validator.iter_errors(instance)) == [], (name, value)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_rnak": 8},
        {"lora_rank": 0},
        {"lora_rank": "eight"},
        {"stage": "sftt"},
        {"lora_dropout": 1},
        {"bf16": "maybe"},
        {"task": "mmlu_test"},
        {"sharded_ddp": "simple"},
        {"fsdp_config": 3},
        {"debug": ["everything"]},
    ],
)
def test_the_json_schema_refuses_what_is_wrong(changes: dict[str, Any]) -> None:
    validator = Draft202012Validator(build_schema("train"))
    assert not validator.is_valid({**REQUIRED["train"], **changes})


def test_the_json_schema_knows_old_keys_and_yaml_words() -> None:
    schema = build_schema("train")
    validator = Draft202012Validator(schema)
    text = (
        "model_name_or_path: x\noutput_dir: y\nwarmup_ratio: 0.1\neval_strategy: no\nlora_target: a,b\nno_cuda: true\n"
    )
    assert validator.is_valid(yaml.safe_load(text))
    legacy = load_legacy()
    for old in (*legacy.rename, *legacy.ignored, *RULES):
        assert schema["properties"][old]["deprecated"] is True
    assert schema["properties"]["hf_hub_token"]["writeOnly"] is True
    assert "Not in this version yet" in schema["properties"]["use_mca"]["description"]


def test_the_commands_print_what_they_promise(capsys: pytest.CaptureFixture[str]) -> None:
    show_schema([])
    assert json.loads(capsys.readouterr().out)["title"] == "llamafactory-cli train"
    show_schema(["chat"])
    assert json.loads(capsys.readouterr().out)["required"] == ["model_name_or_path"]
    show_config(["chat", "model_name_or_path=x"])
    assert "model_name_or_path: x  # command line" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"does not know 'trian'\. Did you mean 'train'"):
        show_schema(["trian"])


@pytest.mark.parametrize("command", ["train", "chat", "api", "export"])
def test_help_is_short_grouped_and_complete(command: str) -> None:
    overview = format_help(command)
    assert len(overview.splitlines()) < 120
    assert "model_name_or_path (required)" in overview
    everything = format_help(command, "all")
    assert all(re.search(rf"^  {name}\b", everything, re.MULTILINE) for name in list_params(command))
    assert "Width of the update matrices" in format_help(command, "lora_rank")
    assert "Takes a whole number >= 1. Group: LoRA." in format_help(command, "lora-rank")
    with pytest.raises(UserError, match="Did you mean 'lora'"):
        format_help(command, "lorra")
    table = load_table("usage.toml")
    assert {*table["common"], *table[command]} <= list_params(command).keys()


def test_the_reference_page_has_every_key() -> None:
    page = render_reference()
    assert all(f"| `{name}` |" in page for name in PARAMS)
    assert "| `warmup_ratio` | read as `warmup_steps` below 1 |" in page
    assert "`FORCE_TORCHRUN`" in page


def test_the_reference_page_is_not_stale() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_pending_and_needs_tables_name_real_keys_and_groups() -> None:
    groups = {param.group for param in PARAMS.values()}
    pending = load_table("pending.toml")
    assert pending["keys"].keys() <= PARAMS.keys()
    assert pending["groups"].keys() <= groups
    for name, row in pending["keys"].items():
        assert set(row.get("values", ())) <= ({True, False} | set(PARAMS[name].choices))
    for row in load_table("needs.toml")["needs"]:
        assert row["key"] in PARAMS if "key" in row else set(row["commands"]) <= COMMAND_CLASSES.keys()
        assert set(row.get("names", ())) <= PARAMS.keys()
        assert row.get("group", "lora") in groups


def test_every_key_is_read_somewhere_or_declared_pending() -> None:
    """A key that nothing reads would be silently ignored; there is no such key."""
    package = Path(llamafactory.__file__).parent
    sources = [file for file in package.rglob("*.py") if "hparams" not in file.relative_to(package).parts]
    words = set(re.findall(r"\w+", "".join(file.read_text(encoding="utf-8") for file in sources)))
    words |= set(re.findall(r"view\.(\w+)", (package / "hparams" / "resolve.py").read_text(encoding="utf-8")))
    words |= {key for row in OPTIMIZERS.values() for key in (row.switch, row.layerwise)}
    words.add("export_legacy_format")  # a rule refuses it
    pending = load_table("pending.toml")
    needs = load_table("needs.toml")["needs"]

    def is_covered(name: str) -> bool:
        param = PARAMS[name]
        if name in words or name in pending["keys"] or param.group in pending["groups"]:
            return True
        switches = [row.get("key") for row in needs if name in row.get("names", ()) or row.get("group") == param.group]
        return any(switch in pending["keys"] for switch in switches)

    passed_on = ("trainer_args", "reporting_args")  # train/hf_args.py copies these to transformers by name
    own = [name for name in list_params("train") if not PARAMS[name].owner.__module__.endswith(passed_on)]
    assert [name for name in own if not is_covered(name)] == []
