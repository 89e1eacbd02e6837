"""Jobs that wait: in order, over failures, over the death of everybody who could let them begin."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from job_making import Acts, give_devices, plugin_values, wait_gone, wait_over, wait_until

from llamafactory.webui import jobs
from llamafactory.webui.jobs import Options
from llamafactory.webui.jobs.queue import dispatcher_lock, entries
from llamafactory.webui.jobs.record import read_record


NOTE = """
import sys
from pathlib import Path
with Path("order.txt").open("a") as file: print({name!r}, file=file)
{then}
"""


def note(acts: Acts, name: str, then: str = "sys.exit(0)", **options: object) -> Path:
    """Queue a job that writes its name down and then does something."""
    return acts.start(name, name, NOTE.format(name=name, then=then), queued=True, **options).run_dir


def order(acts: Acts) -> list[str]:
    path = acts.places.work / "order.txt"
    return path.read_text().split() if path.exists() else []


def dispatchers(root: Path) -> list[int]:
    import psutil

    words = [process.info for process in psutil.process_iter(["pid", "cmdline"])]
    return [
        item["pid"]
        for item in words
        if item["cmdline"] and item["cmdline"][-2:] == ["llamafactory.webui.jobs.dispatcher", str(root)]
    ]


def test_waiting_jobs_run_in_order_and_a_failure_holds_up_nobody(acts: Acts) -> None:
    first = note(acts, "first", "import time; time.sleep(1); sys.exit(3)")
    second = note(acts, "second", "raise ValueError('no')")
    third = note(acts, "third")
    assert jobs.read_status(third).state == "queued"
    assert jobs.read_status(third).waits_behind in (1, 2)

    assert wait_over(third).state == "finished"
    assert order(acts) == ["first", "second", "third"]
    assert [jobs.read_status(folder).state for folder in (first, second)] == ["failed", "failed"]
    assert entries(acts.places.saves) == []
    wait_gone(lambda: not dispatchers(acts.places.saves))


def test_a_waiting_job_can_be_taken_out(acts: Acts) -> None:
    first = note(acts, "first", "import time; time.sleep(600)")
    second = note(acts, "second")
    wait_until(first, lambda status: order(acts) == ["first"])
    assert jobs.read_status(second).state == "queued"

    jobs.abort(second)
    status = jobs.read_status(second)
    assert (status.state, status.reason) == ("stopped", "taken out of the queue before it began")
    jobs.abort(first, grace=0)
    assert wait_over(first).state == "stopped"
    assert order(acts) == ["first"]
    assert not jobs.cancel(first)


@pytest.mark.slow
def test_the_queue_goes_on_when_the_one_in_charge_is_killed(acts: Acts) -> None:
    first = note(acts, "first", "import time; time.sleep(2); sys.exit(0)")
    second = note(acts, "second")
    wait_until(first, lambda status: status.state == "running")
    (pid,) = dispatchers(acts.places.saves)
    os.kill(pid, signal.SIGKILL)
    wait_gone(lambda: not dispatchers(acts.places.saves))

    deadline = time.monotonic() + 60
    while order(acts) != ["first", "second"]:  # nobody looks: the supervisor of the first job calls for the next
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert wait_over(second).state == "finished"


def test_whoever_looks_wakes_a_queue_that_nobody_is_in_charge_of(acts: Acts) -> None:
    acts.write("second", NOTE.format(name="second", then="sys.exit(0)"))
    with dispatcher_lock(acts.places.saves).acquire():
        run = jobs.start(plugin_values("second", "second"), Options(queued=True), places=acts.places)
        with pytest.raises(Timeout), FileLock(dispatcher_lock(acts.places.saves).lock_file).acquire(timeout=0):
            pass
        assert jobs.read_status(run.run_dir).state == "queued"
    assert dispatchers(acts.places.saves) == []

    assert wait_over(run.run_dir).state == "finished"


@pytest.mark.slow
def test_a_waiting_job_lets_only_jobs_on_its_own_devices_go_first(
    acts: Acts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    give_devices(monkeypatch, tmp_path, 3)
    first = note(acts, "first", "import time; time.sleep(600)", devices=(0, 1))
    other = note(acts, "other", "import os; print(os.environ['CUDA_VISIBLE_DEVICES']); sys.exit(0)", devices=(2,))
    same = note(acts, "same", devices=(1,))

    assert wait_over(other).state == "finished"
    assert jobs.read_status(other).log_tail.splitlines()[-1] == "2"
    assert jobs.read_status(same).state == "queued"
    assert jobs.read_status(first).state == "running"
    jobs.abort(first, grace=0)
    assert wait_over(same).state == "finished"


@pytest.mark.slow
def test_a_job_at_once_does_not_wait_for_the_queue(acts: Acts) -> None:
    first = note(acts, "first", "import time; time.sleep(600)")
    wait_until(first, lambda status: status.state == "running")
    now = acts.start("now", "now", NOTE.format(name="now", then="sys.exit(0)"))
    assert wait_over(now.run_dir).state == "finished"
    record = read_record(first)
    assert record is not None
    assert record.phase == "running"


@pytest.mark.slow
def test_the_secret_of_one_job_is_not_handed_on_to_the_next(acts: Acts) -> None:
    secret = "hf_abcdefghijklmnop1234"
    acts.write("first", "import time; time.sleep(2); raise SystemExit(0)")
    jobs.start(plugin_values("first", "first", hf_hub_token=secret), places=acts.places)
    check = "import os; sys.exit(4 if any('abcdefghijklmnop1234' in text for text in os.environ.values()) else 0)"
    assert wait_over(note(acts, "second", check)).state == "finished"


QUEUER = """
import os, signal, sys
from pathlib import Path
from llamafactory.webui import jobs
from llamafactory.webui.places import Places
sys.path.insert(0, sys.argv[1])
from job_making import plugin_values
for name in ("first", "second", "third"):
    jobs.start(plugin_values(name, name), jobs.Options(queued=True), places=Places(work=Path(sys.argv[2])))
os.killpg(0, signal.SIGKILL)
"""


@pytest.mark.slow
def test_the_queue_outlives_its_server_and_nobody_needs_to_look(acts: Acts) -> None:
    for name, then in (
        ("first", "sys.exit(0)"),
        ("second", "import os; os.kill(os.getpid(), 9)"),
        ("third", "sys.exit(0)"),
    ):
        acts.write(name, NOTE.format(name=name, then=then))
    words = [sys.executable, "-c", QUEUER, str(Path(__file__).parent), str(acts.places.work)]
    assert subprocess.run(words, start_new_session=True, check=False).returncode == -signal.SIGKILL

    wait_gone(lambda: order(acts) == ["first", "second", "third"], seconds=120)
    wait_gone(lambda: not dispatchers(acts.places.saves), seconds=60)
    states = {row.run_id: row.state for row in jobs.list_runs(acts.places.saves)}
    assert states["tiny/lora/second"] == "failed"
    assert wait_over(acts.places.saves / "tiny/lora/third").state == "finished"
