"""Registry, environment, log lines, optional packages and devices."""

import logging
from pathlib import Path

import pytest

from llamafactory.extras import device, env
from llamafactory.extras.env import Env, list_variables, read_env
from llamafactory.extras.environment import environment_report, show_environment
from llamafactory.extras.errors import UserError
from llamafactory.extras.logging import (
    RedactingFormatter,
    StderrHandler,
    get_logger,
    notice_once,
    redact,
    setup_logging,
)
from llamafactory.extras.misc import get_current_device, get_device_count, is_env_enabled
from llamafactory.extras.packages import is_available, package_version, require
from llamafactory.extras.registry import Registry, did_you_mean, nearest


def test_a_registry_resolves_lazy_rows_once() -> None:
    table: Registry[object] = Registry("thing", {"sqrt": "math:sqrt"})
    import math

    assert table.get("sqrt") is math.sqrt
    assert table.get("sqrt") is math.sqrt
    assert "sqrt" in table
    assert len(table) == 1


def test_an_unknown_name_is_told_with_the_nearest_and_all_names() -> None:
    table: Registry[object] = Registry("template", {"qwen": 1, "chatml": 2})
    with pytest.raises(UserError, match=r"Unknown template 'qwenn'\. Did you mean 'qwen'\? Known: chatml, qwen\."):
        table.get("qwenn")


def test_a_registry_takes_rows_until_it_is_frozen() -> None:
    table: Registry[object] = Registry("thing")

    @table.register("one")
    def one() -> int:
        return 1

    table.register("two", 2)
    assert table.names() == ("one", "two")
    assert table.get("one") is one
    with pytest.raises(RuntimeError, match="already"):
        table.register("two", 3)
    table.freeze()
    with pytest.raises(RuntimeError, match="frozen"):
        table.register("three", 3)


def test_nearest_names_ignore_case_and_distance_matters() -> None:
    assert nearest("LORA_RNAK", ["lora_rank", "cutoff_len"]) == ["lora_rank"]
    assert did_you_mean("zzz", ["lora_rank"]) == ""
    assert did_you_mean("alpacca", ["alpaca", "alpaca_en"]) == " Did you mean 'alpaca' or 'alpaca_en'?"


def test_the_environment_is_read_with_types() -> None:
    values = read_env(
        {"NNODES": "2", "FORCE_TORCHRUN": "Yes", "OPTIM_TORCH": "0", "RDZV_ID": "job", "MASTER_PORT": " 1 "}
    )
    assert (values.nnodes, values.force_torchrun, values.optim_torch, values.rdzv_id) == (2, True, False, "job")
    assert values.master_port == 1
    assert read_env({}) == Env()
    assert read_env({"NNODES": ""}).nnodes == 1
    assert Env(local_rank=1, rank=1, world_size=2).is_distributed
    assert not Env(rank=1).is_main_process
    with pytest.raises(UserError, match="NNODES is 'two'; it must be a whole number"):
        read_env({"NNODES": "two"})


def test_every_variable_is_listed_with_help() -> None:
    rows = {row.name: row for row in list_variables({"NNODES": "3"})}
    assert (rows["NNODES"].value, rows["NNODES"].default, rows["NNODES"].is_set) == ("3", "1", True)
    assert not rows["RDZV_ID"].is_set
    assert all(row.help.endswith(".") for row in rows.values())


def test_children_get_the_environment_and_defaults_do_not_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LF_TEST_ONE", "mine")
    assert env.child_environment(LF_TEST_TWO="2")["LF_TEST_TWO"] == "2"
    env.set_defaults({"LF_TEST_ONE": "theirs"})
    assert env.child_environment()["LF_TEST_ONE"] == "mine"
    monkeypatch.setenv("LF_TEST_SWITCH", "on")
    assert is_env_enabled("LF_TEST_SWITCH")
    assert not is_env_enabled("LF_TEST_NONE")
    assert is_env_enabled("LF_TEST_NONE", "1")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("token hf_abcdefghijklmnop1 end", "token hf_*** end"),
        ("sk-abcdefghijklmnopqrst", "sk-***"),
        ("ghp_abcdefghijkl", "ghp_***"),
        ("hf_hub_token and task-specific-sk-x stay", "hf_hub_token and task-specific-sk-x stay"),
    ],
)
def test_tokens_are_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown
    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", (text,), None)
    assert RedactingFormatter("%(message)s").format(record) == shown


def test_notices_are_said_once() -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = get_logger("llamafactory.test_notices")
    logger.addHandler(handler)
    for _ in range(3):
        notice_once(logger, "only once, please")
    assert said == ["only once, please"]
    assert get_logger("other").name == "llamafactory.other"


def test_the_log_level_is_checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("llamafactory")
    before = (logger.level, logger.propagate, list(logger.handlers))
    try:
        monkeypatch.setenv("LLAMAFACTORY_VERBOSITY", "loud")
        with pytest.raises(UserError, match="LLAMAFACTORY_VERBOSITY is 'loud'"):
            setup_logging()
        monkeypatch.setenv("LLAMAFACTORY_VERBOSITY", "debug")
        setup_logging()
        setup_logging()
        assert logger.level == logging.DEBUG
        assert sum(isinstance(handler, StderrHandler) for handler in logger.handlers) == 1
        get_logger("llamafactory.x").warning("to hf_abcdefghijkl")
        assert capsys.readouterr().err == "[WARNING] to hf_***\n"
        monkeypatch.setenv("RANK", "1")
        setup_logging()
        assert logger.level == logging.WARNING
    finally:
        logger.level, logger.propagate, logger.handlers = before


def test_a_missing_package_is_one_sentence() -> None:
    assert is_available("json")
    assert not is_available("no_such_module_here")
    assert not is_available("no_such_parent.child")
    assert require("json", "x", "Reading").__name__ == "json"
    with pytest.raises(UserError, match=r'Plotting needs the package .* run `pip install "llamafactory\[plots\]"`'):
        require("no_such_module_here", "plots", "Plotting")
    assert package_version("no-such-distribution") is None


def test_device_files_tell_whether_there_may_be_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert not device.may_have_several_devices(tmp_path)
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    assert not device.may_have_several_devices(tmp_path)
    (tmp_path / "nvidia1").touch()
    assert device.may_have_several_devices(tmp_path)
    monkeypatch.setattr("sys.platform", "darwin")
    assert not device.may_have_several_devices(tmp_path)
    monkeypatch.setattr("sys.platform", "win32")
    assert device.may_have_several_devices(tmp_path / "none")


def test_device_facts_agree_with_the_old_names() -> None:
    facts = device.device_facts()
    assert facts.count >= 1
    assert get_device_count() == (0 if facts.kind == "cpu" else facts.count)
    assert get_current_device().type == facts.kind


def test_the_environment_report_names_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    report = environment_report()
    assert {"llamafactory", "python", "platform", "torch", "transformers", "peft", "device"} <= report.keys()
    assert all(isinstance(value, str) for value in report.values())
    show_environment([])
    assert "transformers" in capsys.readouterr().out
    show_environment(["--vars"])
    assert "FORCE_TORCHRUN=" in capsys.readouterr().out
    with pytest.raises(UserError, match="does not know '--var'"):
        show_environment(["--var"])
