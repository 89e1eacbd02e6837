"""What the buttons do, called directly as somebody would who sends requests instead of clicking."""

from pathlib import Path
from typing import Any

import pytest
from job_making import end_everything, give_devices, make_places

from llamafactory.extras.env import read_env
from llamafactory.extras.errors import UserError
from llamafactory.webui import jobs
from llamafactory.webui.availability import Standing, judge, missing_package
from llamafactory.webui.exchange import to_widget
from llamafactory.webui.form import start_value
from llamafactory.webui.jobs.record import read_record
from llamafactory.webui.layout import fields_of
from llamafactory.webui.markup import log_text, notice, plain_info, progress_bar, table
from llamafactory.webui.places import Places
from llamafactory.webui.settings import read_settings
from llamafactory.webui.train_actions import Form, problem_notice


FIELDS = fields_of(("top", "train"))
EVIL = '<img src=x onerror="alert(1)">'


def ready(**values: Any) -> dict[str, Any]:
    start = {element: start_value(field) for element, field in FIELDS.items()}
    chosen = {"top.model_path": "models/tiny", "train.dataset": ["tiny_alpaca"], "train.output_dir": "one"}
    return {**start, **chosen, "train.extra_args": "{}", "top.model_name": "Custom", **values}


@pytest.fixture
def form(tmp_path: Path, demo_dataset_dir: Path) -> Form:
    return Form(FIELDS, make_places(tmp_path, data=demo_dataset_dir))


def told(form: Form, **values: Any) -> dict[str, str]:
    """Return the problems by key."""
    checked = form.check(ready(**values), "en")
    return {key: message for keys, message in checked.problems for key in keys}


def test_a_form_that_fits_has_no_problem(form: Form) -> None:
    assert told(form) == {}


def test_an_empty_form_says_all_that_is_missing_in_the_visitors_language(form: Form) -> None:
    values = ready(**{"top.model_path": "", "train.dataset": [], "train.output_dir": ""})
    assert len(form.check(values, "zh").problems) == 3
    assert "请填写模型路径" in problem_notice(form.check(values, "zh").problems, "zh")


@pytest.mark.parametrize(
    ("element", "value", "key"),
    [
        ("train.output_dir", "../../x", "output_dir"),
        ("train.output_dir", "x; touch y", "output_dir"),
        ("train.output_dir", EVIL, "output_dir"),
        ("train.dataset_dir", "../../../etc", "dataset_dir"),
        ("train.dataset_dir", "/etc", "dataset_dir"),
        ("train.learning_rate", EVIL, "learning_rate"),
        ("train.cutoff_len", 0, "cutoff_len"),
        ("train.lr_scheduler_type", "x; touch y", "lr_scheduler_type"),
        ("top.quantization_bit", "seven", "quantization_bit"),
        ("train.extra_args", '{"deepspeed": "../../../etc/passwd"}', "deepspeed"),
        ("train.extra_args", '{"output_dir": "../../x"}', "output_dir"),
        ("train.extra_args", '{"lora_rnak": 8}', "lora_rnak"),
        ("train.extra_args", '{"hub_token": "x", "optim_args": "hf_abcdefghijklmnopqrstuvwx"}', "optim_args"),
        ("train.extra_args", "[1]", "extra_args"),
    ],
)
def test_what_no_form_would_send_is_refused_beside_its_field(form: Form, element: str, value: Any, key: str) -> None:
    problems = told(form, **{element: value})
    assert key in problems, problems
    assert not (form.places.work.parent / "x").exists()
    assert list(form.places.saves.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value"), [("output_dir", "../../x"), ("dataset_dir", "/etc"), ("cutoff_len", EVIL), ("nonsense", 1)]
)
def test_a_start_checks_again_whatever_came_before(form: Form, key: str, value: Any) -> None:
    config = {**form.check(ready(), "en").config, key: value}
    with pytest.raises(jobs.JobError):
        form.start(ready(), config)
    assert list(form.places.saves.iterdir()) == []


def test_what_people_write_is_shown_and_never_part_of_the_page() -> None:
    pieces = [
        notice(EVIL, "problem", [EVIL]),
        log_text(EVIL),
        table((EVIL,), [(EVIL,)]),
        progress_bar(0.5, EVIL, EVIL),
    ]
    for piece in pieces:
        assert "<img" not in piece
        assert "&lt;img" in piece
    assert "](" not in plain_info("[a](http://x)")


@pytest.mark.parametrize("name", ["../../x.yaml", "/etc/x", "a/b", "x; touch y", EVIL, "", ".hidden"])
def test_arguments_are_saved_and_read_in_one_folder_only(form: Form, name: str) -> None:
    with pytest.raises(UserError):
        form.save(ready(), name)
    with pytest.raises(UserError):
        form.load(name, "en", ())


def test_a_link_out_of_the_folder_is_not_followed(form: Form, tmp_path: Path) -> None:
    form.places.arguments.mkdir()
    (form.places.arguments / "out.yaml").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="outside"):
        form.load("out.yaml", "en", ())


def test_a_key_for_a_service_reaches_the_run_and_no_file(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(jobs, "start", lambda values, options, places: sent.append({**values, "_": options.form}))
    values = ready(**{"train.use_swanlab": True, "train.swanlab_api_key": "hush-hush"})
    config = form.check(values, "en").config
    form.start(values, config)
    assert sent[0]["swanlab_api_key"] == "hush-hush"
    assert "hush-hush" not in str(sent[0]["_"])
    assert "hush-hush" not in "".join(form.preview(config, values))


def test_what_the_rules_refuse_is_not_on_offer() -> None:
    standings = judge(FIELDS, ready())
    assert "full or freeze" in standings["train.use_galore"].reason
    assert "reduce_lr_on_plateau" in standings["train.lr_scheduler_type"].refused
    assert standings["train.oft_rank"].is_hidden
    assert standings["train.galore_rank"] == Standing(is_idle=True)
    assert judge(FIELDS, ready(**{"top.finetuning_type": "full"}))["train.use_galore"].is_usable


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo", "pt"])
@pytest.mark.parametrize("method", ["lora", "full", "prompt_tuning"])
def test_every_switch_that_is_on_offer_passes_the_parser(form: Form, stage: str, method: str) -> None:
    values = ready(**{"train.training_stage": stage, "top.finetuning_type": method})
    before = set(form.check(values, "en").problems)
    for element, standing in judge(FIELDS, values).items():
        field = FIELDS[element]
        if field.widget != "switch" or not standing.is_usable or values[element]:
            continue
        after = form.check({**values, element: True}, "en").problems
        added = [problem for problem in after if problem not in before and set(problem[0]) & set(field.keys)]
        added = [
            problem for problem in added if "max_steps" not in problem[0]
        ]  # says what to fill in, refuses nothing
        assert added == [], element


def test_a_package_that_a_choice_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafactory.webui.availability.is_available", lambda module: False)
    assert missing_package(FIELDS["top.quantization_method"], "bnb") == 'pip install "llamafactory[bnb]"'
    assert missing_package(FIELDS["train.optim"], "adamw_torch") == ""
    assert to_widget(FIELDS["top.quantization_bit"], None) == ""


def test_the_board_stays_on_this_machine_unless_it_has_a_password() -> None:
    assert read_settings([], read_env({}), "webui").host == "127.0.0.1"
    for environment in ({"GRADIO_SERVER_NAME": "0.0.0.0"}, {"GRADIO_SHARE": "1"}):  # noqa: S104  what is refused
        with pytest.raises(UserError, match="password"):
            read_settings([], read_env(environment), "webui")
    open_door = read_settings(["--host", "0.0.0.0"], read_env({"GRADIO_AUTH": "ann:secret"}), "webui")  # noqa: S104
    assert open_door.auth == ("ann", "secret")
    for wrong in ("ann", "ann:", ":x"):
        with pytest.raises(UserError, match="user:password"):
            read_settings(["--auth", wrong], read_env({}), "webui")


def test_other_folders_are_read_only_where_the_server_names_them(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UserError, match="LLAMABOARD_ROOTS"):
        Places(work=tmp_path / "work").readable(str(other), "data folder")
    assert Places(work=tmp_path / "work", others=(other,)).readable(str(other), "data folder") == other


def test_chosen_devices_reach_the_run_and_the_previewed_command(
    form: Form, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    values = ready(**{"train.used_devices": [3, 1]})
    config = form.check(values, "en").config
    with pytest.raises(jobs.JobError, match="no accelerator 1"):
        form.start(values, config)

    give_devices(monkeypatch, tmp_path, 4)
    words = form.preview(config, values)[1].split(" llamafactory-cli")[0].split()
    assert set(words) == {"CUDA_VISIBLE_DEVICES=1,3", "NPROC_PER_NODE=2", "FORCE_TORCHRUN=1"}
    run = form.start(values, config)
    record = read_record(run.run_dir)
    assert record is not None
    assert record.devices == (1, 3)
    end_everything(form.places)


@pytest.mark.parametrize("chosen", ["0; touch y", ["0"], [True], {"a": 1}])
def test_devices_that_no_list_offers_are_refused(form: Form, chosen: Any) -> None:
    values = ready(**{"train.used_devices": chosen})
    with pytest.raises(UserError, match="choose them by number"):
        form.start(values, form.check(values, "en").config)
