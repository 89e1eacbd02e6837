"""What the panel of a run reads and does: its curves, its place in SwanLab, and Abort pressed twice."""

import json
from pathlib import Path

import pytest
from job_making import Acts, wait_over, wait_until
from test_jobs_processes import STUBBORN

from llamafactory.webui import jobs
from llamafactory.webui.jobs import stopping
from llamafactory.webui.jobs.files import OUTPUT_FILE
from llamafactory.webui.run_view import curve_names, swanlab_link


def test_the_curves_of_a_preference_run_are_offered(tmp_path: Path) -> None:
    logged = {
        "loss": 0.6,
        "accuracy": 0.7,
        "rewards/margins": 0.2,
        "rewards/chosen": 0.1,
        "grad_norm": 1.5,
        "lr": 1e-5,
    }
    lines = [{"current_steps": step, "total_steps": 2, **logged, "elapsed_time": "0:00:01"} for step in (1, 2)]
    (tmp_path / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    status = jobs.read_status(tmp_path)

    assert curve_names(status.curves) == list(logged)
    assert status.curves["rewards/margins"] == [(1, 0.2), (2, 0.2)]
    assert status.progress.metrics["grad_norm"] == 1.5


def test_a_run_at_swanlab_is_linked_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / OUTPUT_FILE
    output.write_text("see https://swanlab.cn for more\nswanlab: no run at javascript:alert(1)/runs/x\n")
    assert swanlab_link(jobs.read_status(tmp_path), "en") == ""

    address = "https://swanlab.cn/@me/llamafactory/runs/ab12"
    output.write_text(f"swanlab: \x1b[32mView run at\x1b[0m {address}\n" + "step\n" * 30_000)
    shown = swanlab_link(jobs.read_status(tmp_path), "zh")
    assert f'href="{address}"' in shown
    assert "SwanLab" in shown


def test_abort_pressed_again_ends_a_stubborn_run_at_once(acts: Acts, monkeypatch: pytest.MonkeyPatch) -> None:
    run = acts.start("a", "stubborn", STUBBORN)
    wait_until(run.run_dir, lambda status: "is there" in status.log_tail)

    assert not jobs.press_abort(run.run_dir)
    assert not jobs.press_abort(run.run_dir)  # a double click is one press
    assert jobs.read_status(run.run_dir).is_stopping
    monkeypatch.setattr(stopping, "DOUBLE_CLICK_SECONDS", 0.0)
    assert jobs.press_abort(run.run_dir)

    assert wait_over(run.run_dir).state == "stopped"
    assert not jobs.press_abort(run.run_dir)
