"""Real training as jobs: stopped in the middle and gone on with, on two ranks, predicted from and exported."""

from pathlib import Path

import pytest
from job_making import endless, is_training, run_values, wait_gone, wait_over, wait_until

from llamafactory.extras.errors import UserError
from llamafactory.train.checkpoints import list_checkpoints
from llamafactory.webui import jobs
from llamafactory.webui.jobs import JobError, Options
from llamafactory.webui.jobs.processes import run_processes
from llamafactory.webui.jobs.record import read_record
from llamafactory.webui.places import Places


def kill_supervisor(run_dir: Path) -> None:
    import os
    import signal

    record = read_record(run_dir)
    assert record is not None
    assert record.supervisor is not None
    os.kill(record.supervisor.pid, signal.SIGKILL)
    wait_gone(lambda: record.supervisor is not None and not record.supervisor.is_alive)


@pytest.mark.slow
def test_a_run_is_stopped_in_the_middle_and_goes_on_from_there(places: Places) -> None:
    run = jobs.start(endless("a"), places=places)
    wait_until(run.run_dir, is_training)
    kill_supervisor(run.run_dir)  # the stop works from any process, and without the one that watched
    jobs.abort(run.run_dir)
    stopped = wait_over(run.run_dir)

    (checkpoint,) = list_checkpoints(run.run_dir)
    step = int(checkpoint.name.split("-")[1])
    assert (stopped.state, stopped.reason) == ("stopped", f"stopped, saved step {step}")
    assert run_processes(run.run_dir) == []

    again = jobs.resume(run.run_dir, {"max_steps": step + 2}, places=places)
    assert again == run
    done = wait_over(run.run_dir)
    assert done.state == "finished", done
    assert done.progress.step == step + 2
    assert [point for point, _ in done.curves["loss"]] == list(range(1, step + 3))
    assert f"step {step + 1}/{step + 2}" in done.log_tail
    assert f"step {step}/{step + 2}" not in done.log_tail

    with pytest.raises(JobError, match="already at step"):
        jobs.resume(run.run_dir, places=places)


@pytest.mark.slow
def test_two_ranks_stop_together_save_once_and_leave_nobody(places: Places) -> None:
    run = jobs.start(endless("two"), Options(processes=2), places=places)
    wait_until(run.run_dir, is_training)
    assert len(run_processes(run.run_dir)) >= 3  # torchrun and its two workers

    jobs.abort(run.run_dir)
    status = wait_over(run.run_dir)
    (checkpoint,) = list_checkpoints(run.run_dir)
    assert (status.state, status.saved_step) == ("stopped", int(checkpoint.name.split("-")[1]))
    assert run_processes(run.run_dir) == []


@pytest.mark.slow
def test_predictions_and_exports_are_jobs_too(places: Places) -> None:
    train = jobs.start(run_values("a"), places=places)
    assert wait_over(train.run_dir).state == "finished"
    adapter = {"adapter_name_or_path": "saves/tiny/lora/a", "model_name_or_path": "models/tiny", "template": "chatml"}

    values = run_values(
        "p", **adapter, do_train=False, do_predict=True, eval_dataset="tiny_identity", max_new_tokens=4
    )
    predict = jobs.start(
        {key: value for key, value in values.items() if key not in ("dataset", "max_steps")}
        | {"predict_with_generate": True},
        places=places,
    )
    status = wait_over(predict.run_dir)
    assert status.state == "finished", status
    assert (predict.run_dir / "generated_predictions.jsonl").is_file()
    assert "predict_runtime" in status.results

    options = Options(command="export", run_dir="saves/tiny/export/e")
    export = jobs.start({**adapter, "export_dir": "merged"}, options, places=places)
    status = wait_over(export.run_dir)
    assert status.state == "finished", status
    assert (places.work / "merged" / "config.json").is_file()
    with pytest.raises(UserError, match="already holds a job"):
        jobs.start({**adapter, "export_dir": "merged2"}, options, places=places)
    assert {row.run_id: row.command for row in jobs.list_runs(places.saves)} == {
        "tiny/lora/a": "train",
        "tiny/lora/p": "train",
        "tiny/export/e": "export",
    }
