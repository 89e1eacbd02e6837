"""Jobs whose starter, supervisor or workers are killed, and jobs that do not want to end.

The commands are real ones; a plug-in, which is imported before anything heavy, decides what they do.
"""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from job_making import Acts, plugin_values, wait_gone, wait_over, wait_until

from llamafactory.webui import jobs
from llamafactory.webui.jobs.processes import Identity, identify, run_processes
from llamafactory.webui.jobs.record import Record, read_record


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("is there", flush=True)
time.sleep(600)
"""
STARTER = """
import sys, time
from pathlib import Path
from llamafactory.webui import jobs
from llamafactory.webui.places import Places
sys.path.insert(0, sys.argv[1])
from job_making import plugin_values
print(jobs.start(plugin_values("a", "loud"), places=Places(work=Path(sys.argv[2]))).run_id, flush=True)
time.sleep(600)
"""


def record_of(run_dir: Path) -> Record:
    record = read_record(run_dir)
    assert record is not None
    return record


def kill(process: Identity | None) -> None:
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    wait_gone(lambda: not process.is_alive)


def test_the_death_of_the_starter_changes_nothing_and_ten_megabytes_of_output_block_nobody(acts: Acts) -> None:
    acts.write(
        "loud", "import time\ntime.sleep(1.5)\nfor _ in range(10_000): print('x' * 1000 + '<b>')\nraise SystemExit(0)"
    )
    words = [sys.executable, "-c", STARTER, str(Path(__file__).parent), str(acts.places.work)]
    starter = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
    assert starter.stdout is not None
    assert starter.stdout.readline().decode().strip() == "tiny/lora/a"
    os.killpg(starter.pid, signal.SIGKILL)
    starter.communicate()

    run_dir = acts.places.saves / "tiny/lora/a"
    status = wait_over(run_dir)
    assert status.state == "finished", status.reason
    assert (run_dir / "webui_subprocess.log").stat().st_size > 10_000_000
    assert len(status.log_tail) <= 20_000
    assert status.log_tail.endswith("x<b>")  # inert: it is text until a page escapes it


def test_what_does_not_end_by_itself_is_killed_with_all_its_children(acts: Acts) -> None:
    run = acts.start("a", "stubborn", STUBBORN)
    wait_until(run.run_dir, lambda status: "is there" in status.log_tail)
    workers = run_processes(run.run_dir)
    assert len(workers) == 2

    jobs.abort(run.run_dir, grace=0.5)
    assert jobs.read_status(run.run_dir).is_stopping
    status = wait_over(run.run_dir)
    assert (status.state, status.reason, status.exit_code) == ("stopped", "stopped before anything was saved", -9)
    assert [worker for worker in workers if worker.is_alive] == []


@pytest.mark.slow
def test_a_shorter_grace_counts_when_it_is_asked_for_again(acts: Acts) -> None:
    run = acts.start("a", "stubborn", STUBBORN)
    wait_until(run.run_dir, lambda status: "is there" in status.log_tail)

    jobs.abort(run.run_dir)
    time.sleep(0.5)
    assert jobs.read_status(run.run_dir).state == "running"
    jobs.abort(run.run_dir, grace=0)
    assert wait_over(run.run_dir).state == "stopped"


def test_a_run_without_supervisor_is_still_followed_and_stopped(acts: Acts) -> None:
    run = acts.start("a", "stubborn", STUBBORN)
    wait_until(run.run_dir, lambda status: "is there" in status.log_tail)
    kill(record_of(run.run_dir).supervisor)
    assert jobs.read_status(run.run_dir).state == "running"

    jobs.abort(run.run_dir, grace=0)
    assert wait_over(run.run_dir).state == "stopped"
    assert run_processes(run.run_dir) == []


def test_a_run_that_fails_while_nobody_watches_is_found_out(acts: Acts) -> None:
    run = acts.start("a", "slow", "import time\nprint('is there', flush=True)\ntime.sleep(600)")
    wait_until(run.run_dir, lambda status: "is there" in status.log_tail)
    record = record_of(run.run_dir)
    kill(record.supervisor)
    kill(record.child)

    status = jobs.read_status(run.run_dir)
    assert status.state == "failed"
    assert record_of(run.run_dir).phase == "ended"


@pytest.mark.slow
def test_workers_whose_parents_were_all_killed_keep_a_run_alive_until_it_is_stopped(acts: Acts) -> None:
    run = acts.start("a", "stubborn", STUBBORN)
    wait_until(run.run_dir, lambda status: "is there" in status.log_tail)
    record = record_of(run.run_dir)
    kill(record.supervisor)
    kill(record.child)
    assert jobs.read_status(run.run_dir).state == "running"

    jobs.abort(run.run_dir, grace=0)
    assert wait_over(run.run_dir).state == "stopped"
    assert run_processes(run.run_dir) == []


def test_a_killed_run_says_so_and_leaves_no_worker(acts: Acts) -> None:
    run = acts.start("a", "stubborn", STUBBORN)
    wait_until(run.run_dir, lambda status: "is there" in status.log_tail)
    kill(record_of(run.run_dir).child)

    status = wait_over(run.run_dir)
    assert status.state == "failed"
    assert "killed (SIGKILL)" in status.reason
    assert run_processes(run.run_dir) == []


def test_a_number_that_was_given_to_somebody_else_is_not_the_run(acts: Acts) -> None:
    own = identify(os.getpid())
    assert own is not None
    assert own.is_alive
    assert not Identity(own.pid, own.mark + "0").is_alive
    assert not Identity(own.pid, "").is_alive


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        ("raise ValueError('no <i>such</i> thing')", "ValueError: no <i>such</i> thing", 1),
        (
            "from llamafactory.extras.errors import UserError\nraise UserError('Name the file; it is missing.')",
            "Name the file; it is missing.",
            2,
        ),
        ("import os\nos._exit(7)", "exit code 7", 7),
    ],
)
def test_a_failed_run_says_why(acts: Acts, code: str, reason: str, exit_code: int) -> None:
    status = wait_over(acts.start("a", "fails", code).run_dir)

    assert (status.state, status.exit_code) == ("failed", exit_code)
    assert reason in status.reason


@pytest.mark.slow
def test_a_run_that_finishes_while_nobody_watches_is_known_by_its_results(acts: Acts) -> None:
    code = """
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
print("is there", flush=True)
time.sleep(2)
Path("saves/tiny/lora/a/train_results.json").write_text("{}")
"""
    run = acts.start("a", "writes", code + "raise SystemExit(0)\n")
    wait_until(run.run_dir, lambda status: "is there" in status.log_tail)
    kill(record_of(run.run_dir).supervisor)

    status = wait_over(run.run_dir)
    assert (status.state, status.exit_code, status.reason) == ("finished", None, "")


def test_of_two_who_start_in_one_folder_at_once_one_is_refused(acts: Acts) -> None:
    acts.write("slow", "import time; time.sleep(600)")

    def begin(_: int) -> str:
        try:
            return jobs.start(plugin_values("a", "slow"), places=acts.places).run_id
        except jobs.JobError as error:
            return error.problems[0].keys[0]

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(begin, range(4))) == ["output_dir", "output_dir", "output_dir", "tiny/lora/a"]
    run_dir = acts.places.saves / "tiny/lora/a"
    wait_gone(lambda: bool(run_processes(run_dir)))
    time.sleep(0.5)
    assert len(run_processes(run_dir)) == 1


@pytest.mark.slow
def test_a_failed_run_begins_again_with_what_it_was_told(acts: Acts) -> None:
    code = "import sys\nfrom llamafactory.hparams import get_train_args as read\n"
    code += "training = read(sys.argv[2:])[2]\nprint(training.learning_rate, training.max_steps)\nsys.exit(5)"
    acts.write("fails", code)
    values = plugin_values("a", "fails", learning_rate=1e-5)
    run = jobs.start(values, places=acts.places)
    assert wait_over(run.run_dir).log_tail.endswith("1e-05 3")

    for steps in (4, 5):
        assert jobs.resume(run.run_dir, {"max_steps": steps}, places=acts.places) == run
        status = wait_over(run.run_dir)
        assert status.state == "failed"
        assert status.log_tail.splitlines() == [f"1e-05 {steps}"]  # the output of this start alone
