"""Jobs in real processes of their own: they outlive whoever started them, and everything about them is on disk."""

import json

import pytest
from job_making import run_values, wait_over

from llamafactory.webui import jobs
from llamafactory.webui.places import Places


def test_a_run_is_followed_by_its_files_alone(places: Places) -> None:
    run = jobs.start(run_values("a", run_name="x; touch y"), places=places)
    assert run.run_id == "tiny/lora/a"
    status = wait_over(run.run_dir)

    assert status.state == "finished", status
    assert (status.progress.step, status.progress.total_steps, status.progress.percentage) == (3, 3, 100.0)
    assert [step for step, _ in status.curves["loss"]] == [1, 2, 3]
    assert status.results["train_loss"] > 0
    assert "Training: 3 updates" in status.log_tail
    assert "Training: 3 updates" in (run.run_dir / "running_log.txt").read_text()
    assert not (places.work / "y").exists()
    assert json.loads((run.run_dir / "job.json").read_text())["exit_code"] == 0
    assert [(row.run_id, row.state) for row in jobs.list_runs(places.saves)] == [("tiny/lora/a", "finished")]

    with pytest.raises(jobs.JobError, match="already holds a finished run") as caught:
        jobs.start(run_values("a"), places=places)
    assert caught.value.problems[0].keys == ("output_dir",)
