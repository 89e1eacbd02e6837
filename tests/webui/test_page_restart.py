"""The server is killed while a run that it started goes on; the next server shows how it ended."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browsing import Board, open_board, take_shot
from job_making import run_values, wait_over, wait_until

from llamafactory.webui.jobs.processes import run_processes


pytestmark = pytest.mark.slow


@pytest.fixture
def visitor(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    visitor = context.new_page()
    visitor.set_default_timeout(60_000)
    yield visitor
    context.close()


def fill_choice(visitor: Any, element: str, text: str) -> None:
    box = visitor.locator(f"#{element} input").first
    box.fill(text)
    box.press("Enter")


def start_saved(visitor: Any, board: Board, name: str) -> Path:
    """Load saved arguments into the form and start them."""
    folder = board.work / "llamaboard_config"
    folder.mkdir(exist_ok=True)
    values = {key: value for key, value in run_values(name).items() if key != "output_dir"}
    (folder / "saved.yaml").write_text(yaml.safe_dump(values))
    open_board(visitor, board)
    fill_choice(visitor, "train-config_path", "saved.yaml")
    visitor.click("#train-arg_load_btn")
    visitor.wait_for_function("document.querySelector('#top-model_path textarea, #top-model_path input').value != ''")
    fill_choice(visitor, "train-output_dir", name)
    visitor.click("#train-start_btn")
    return wait_for_run(board, name)


def wait_for_run(board: Board, name: str) -> Path:
    end = time.monotonic() + 60
    while True:
        found = list((board.work / "saves").glob(f"*/*/{name}/job.json"))
        if found:
            return found[0].parent
        assert time.monotonic() < end
        time.sleep(0.2)


def test_the_run_finishes_without_its_server_and_the_next_server_shows_it(board: Board, visitor: Any) -> None:
    run_dir = start_saved(visitor, board, "lives")
    wait_until(run_dir, lambda status: status.state == "running" and bool(run_processes(run_dir)))
    visitor.wait_for_selector("#train-progress_bar :text-matches('running', 'i')")
    assert board.process is not None
    os.killpg(board.process.pid, signal.SIGKILL)
    board.process.wait()
    assert run_processes(run_dir)

    assert wait_over(run_dir).state == "finished"
    board.start()
    open_board(visitor, board)
    visitor.wait_for_selector("#train-progress_bar :text-matches('finished', 'i')")
    visitor.wait_for_selector("#train-metrics_box :text('train_loss')")
    visitor.wait_for_selector("#train-loss_viewer")
    take_shot(visitor, "after-restart")
