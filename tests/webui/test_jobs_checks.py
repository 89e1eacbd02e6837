"""What a page may ask for: everything that is wrong is told with its keys, and nothing leads out of the board."""

from pathlib import Path
from typing import Any

import pytest
from job_making import Acts, give_devices, plugin_values, run_values, wait_over

from llamafactory.extras.errors import UserError
from llamafactory.webui import jobs
from llamafactory.webui.jobs import JobError, Options
from llamafactory.webui.jobs.devices import device_variables, list_devices
from llamafactory.webui.places import Places


SECRET = "hf_abcdefghijklmnop1234"


@pytest.fixture
def places(acts: Acts) -> Places:
    (acts.places.work / "models" / "tiny").mkdir(parents=True)
    return acts.places


def keys_of(values: dict[str, Any], places: Places, **options: Any) -> set[str]:
    with pytest.raises(JobError) as caught:
        jobs.start(values, Options(**options), places=places)
    assert list(places.saves.rglob("*")) == []
    return {key for problem in caught.value.problems for key in problem.keys}


def test_all_problems_come_at_once_with_their_keys(places: Places, capfd: pytest.CaptureFixture[str]) -> None:
    values = run_values("a", learning_rate="fast", lora_rnk=3, quantization_bit=4, finetuning_type="full", dataset="")
    assert keys_of(values, places) >= {"learning_rate", "lora_rnk", "quantization_bit", "finetuning_type"}

    told = jobs.find_problems(values, "train", places)
    assert not [problem for problem in told if problem.message.startswith("argument:")]
    assert any("lora_rank" in problem.message for problem in told)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "folder",
    ["../../x", "saves/../../x", "/etc/x", "saves", "saves/", "data/x", "saves/a\0b", "saves/.hidden", "saves/_x", ""],
)
def test_a_run_lies_in_the_folder_of_all_runs(places: Places, folder: str) -> None:
    assert keys_of(run_values("a", output_dir=folder), places) == {"output_dir"}


def test_a_link_does_not_lead_a_run_out(places: Places, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (places.saves / "link").symlink_to(outside)

    with pytest.raises(JobError, match="lies outside"):
        jobs.start(run_values("a", output_dir="saves/link/x"), places=places)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset_dir", "../elsewhere"),
        ("dataset_dir", "/etc"),
        ("tokenized_path", "/tmp/x"),  # noqa: S108
        ("media_dir", "../.."),
        ("logging_dir", "data/logs"),
        ("dataset", "/etc/passwd"),
        ("plugins", "/etc/passwd"),
        ("deepspeed", "/etc/passwd"),
        ("reward_funcs", "/etc/passwd.py:f,/etc/passwd"),
        ("resume_from_checkpoint", "/etc"),
    ],
)
def test_no_other_path_leads_out(places: Places, key: str, value: str) -> None:
    assert key in keys_of(run_values("a", **{key: value}), places)


def test_what_is_no_path_is_not_taken_for_one(places: Places) -> None:
    values = run_values("a", dataset_dir="REMOTE:org/set", deepspeed={"zero_optimization": {"stage": 2}})
    assert [problem for problem in jobs.find_problems(values, "train", places) if "outside" in problem.message] == []


def test_names_that_look_like_commands_or_markup_are_only_names(acts: Acts) -> None:
    acts.write("ok", "raise SystemExit(0)")
    name = 'x; touch y <img src=x onerror="alert(1)">'
    run = jobs.start(plugin_values(name, "ok"), places=acts.places)

    assert wait_over(run.run_dir).state == "finished"
    assert run.run_id == f"tiny/lora/{name}"
    assert [row.run_id for row in jobs.list_runs(acts.places.saves)] == [run.run_id]
    assert sorted(item.name for item in acts.places.work.iterdir()) == ["acts", "saves"]


def test_a_secret_reaches_the_command_and_no_file(acts: Acts) -> None:
    acts.write(
        "told",
        "import sys\nfrom llamafactory.hparams import get_train_args\n"
        f"sys.exit(0 if get_train_args(sys.argv[2:])[0].hf_hub_token == {SECRET[::-1]!r}[::-1] else 3)",
    )
    values = plugin_values("a", "told", hf_hub_token=SECRET)
    form = {"train.hf_hub_token": SECRET, "train.note": f"my {SECRET}", "train.lora_rank": 8}
    run = jobs.start(values, Options(form=form), places=acts.places)
    status = wait_over(run.run_dir)

    assert status.state == "finished", status
    written = [path for path in acts.places.work.rglob("*") if path.is_file() and SECRET in path.read_text()]
    assert written == []
    assert jobs.clone_run(acts.places.saves, run.run_id).form == {"train.lora_rank": 8}


def test_a_secret_that_would_be_written_down_is_refused(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys_of(run_values("a", hf_hub_token=SECRET), places, queued=True) == {"hf_hub_token"}
    assert keys_of(run_values("a", run_name=f"with {SECRET}"), places) == {"run_name"}
    assert keys_of(run_values("a", accelerator_config={"api_key": "x"}), places) >= {"accelerator_config"}
    monkeypatch.setenv("ALLOW_EXTRA_ARGS", "1")
    assert keys_of(run_values("a", other_token="x"), places) == {"other_token"}


def test_a_number_of_tokens_is_no_token(places: Places) -> None:
    values = run_values("a", vllm_config={"max_num_batched_tokens": 8192}, max_new_tokens=8)
    assert jobs.find_problems(values, "train", places) == []


def test_only_commands_that_are_jobs_are_started(places: Places) -> None:
    with pytest.raises(UserError, match="cannot be started from the board"):
        jobs.start(run_values("a"), Options(command="api; touch y"), places=places)


def test_a_folder_in_use_is_refused_and_stays_as_it_is(acts: Acts) -> None:
    run = acts.start("a", "slow", "import time; time.sleep(600)")
    before = (run.run_dir / "training_args.yaml").read_text()
    with pytest.raises(JobError, match="A job runs or waits") as caught:
        jobs.start(plugin_values("a", "slow", max_steps=9), places=acts.places)

    assert caught.value.problems[0].keys == ("output_dir",)
    assert (run.run_dir / "training_args.yaml").read_text() == before
    with pytest.raises(UserError, match="runs or waits"):
        jobs.delete_runs(acts.places.saves, [run.run_id])
    assert run.run_dir.is_dir()
    jobs.abort(run.run_dir, grace=0)
    wait_over(run.run_dir)


def test_a_choice_of_devices_becomes_the_environment_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_variables((), None) == {}
    monkeypatch.setenv("PATH", "")
    several = device_variables((1, 3), None)
    assert several["CUDA_VISIBLE_DEVICES"] == several["ASCEND_RT_VISIBLE_DEVICES"] == "1,3"
    assert (several["NPROC_PER_NODE"], several["FORCE_TORCHRUN"]) == ("2", "1")
    assert device_variables((2,), None) | {"FORCE_TORCHRUN": "0"} == device_variables((2,), None)
    assert device_variables((), 2) == {"NPROC_PER_NODE": "2", "FORCE_TORCHRUN": "1"}


def test_devices_are_what_the_driver_tells_and_the_server_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    give_devices(monkeypatch, tmp_path, 2)
    assert [(device.index, device.name, device.used_gib) for device in list_devices()] == [
        (0, "NVIDIA H200", 1.0),
        (1, "NVIDIA H200", 1.0),
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [device.index for device in list_devices()] == [1]


def test_a_device_that_is_not_there_is_refused(
    places: Places, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert keys_of(run_values("a"), places, devices=(0,)) >= {"devices"}
    give_devices(monkeypatch, tmp_path, 2)
    assert keys_of(run_values("a", lora_rank="x"), places, devices=(0, 1)) == {"lora_rank"}
    assert keys_of(run_values("a"), places, devices=(0, 2)) >= {"devices"}
    assert keys_of(run_values("a"), places, processes=0) >= {"processes"}
