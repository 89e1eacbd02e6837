"""The Train tab as people use it, in a real browser: a run from the form to its end, reloads, stops, saved forms."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import Board, open_board, take_shot

from llamafactory.webui import jobs


pytestmark = pytest.mark.slow
RUN_MILLISECONDS = 240_000


def choose(page: Any, element: str, option: str) -> None:
    """Pick an option of a list as a visitor does: open it, type, take what is offered."""
    page.click(f"#{element} input")
    page.fill(f"#{element} input", option)
    page.get_by_role("option", name=option, exact=True).click()


def write(page: Any, element: str, text: str) -> None:
    page.fill(f"#{element} input, #{element} textarea", text)
    page.keyboard.press("Tab")


def fill_form(page: Any, name: str, steps: int) -> None:
    """Describe a tiny LoRA run."""
    write(page, "top-model_path", "models/tiny")
    choose(page, "train-dataset", "tiny_alpaca")
    page.keyboard.press("Escape")
    write(page, "train-num_train_epochs", str(steps))
    write(page, "train-output_dir", name)


def wait_until(is_so: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.3)


def step_of(folder: Path) -> int:
    return jobs.read_status(folder, with_curves=False).progress.step or 0


def test_the_whole_way_in_english(page: Any, board: Board) -> None:
    """Mistakes are told beside their fields; Preview; Start; the end with its plot."""
    page.click("#train-cmd_preview_btn")
    page.wait_for_selector("#train-output_box .notice.problem")
    assert "Choose a dataset." in page.inner_text("#train-dataset")
    fill_form(page, "journey", 20)
    page.click("#train-cmd_preview_btn")
    page.wait_for_selector("#train-output_box .notice.good")
    assert "output_dir: saves/Custom/lora/journey" in page.inner_text("#train-preview_yaml .cm-content")
    assert page.inner_text("#train-preview_command").count("llamafactory-cli train") == 1

    page.click("#train-start_btn")
    folder = board.work / "saves" / "Custom" / "lora" / "journey"
    wait_until(lambda: step_of(folder) > 0)
    page.wait_for_selector("#train-loss_viewer canvas, #train-loss_viewer svg")
    page.wait_for_selector("#train-progress_bar .progress.finished", timeout=RUN_MILLISECONDS)
    assert "100%" in page.inner_text("#train-progress_bar")
    assert "train_loss" in page.inner_text("#train-metrics_box")
    assert (folder / "adapter_model.safetensors").is_file()
    take_shot(page, "train-finished")


def test_the_whole_way_in_chinese_with_a_reload_a_killed_server_and_an_abort(browser: Any, board: Board) -> None:
    """In Chinese: a reload shows the run, and so does the next server when one dies; Abort saves and leaves nobody."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="zh-CN", color_scheme="dark")
    page = context.new_page()
    page.set_default_timeout(60_000)
    open_board(page, board, "?__theme=dark")
    page.get_by_role("button", name="开始", exact=True).wait_for()
    assert "训练轮数" in page.inner_text("#train-num_train_epochs")
    fill_form(page, "zhongwen", 4000)
    page.click("#train-start_btn")
    folder = board.work / "saves" / "Custom" / "lora" / "zhongwen"
    wait_until(lambda: step_of(folder) > 0)
    page.wait_for_selector("#train-progress_bar .progress.running")
    page.reload()
    page.locator("#train-progress_bar .progress.running", has_text="运行中").wait_for()
    assert jobs.read_status(folder, with_curves=False).state == "running"
    board.kill()
    board.start()
    open_board(page, board, "?__theme=dark")
    page.locator("#train-progress_bar .progress.running", has_text="运行中").wait_for()
    page.click("#train-stop_btn")
    page.wait_for_selector("#train-progress_bar .progress.stopped", timeout=RUN_MILLISECONDS)
    take_shot(page, "train-stopped-dark-zh")
    context.close()
    status = jobs.read_status(folder)
    assert status.saved_step
    assert list(folder.glob("checkpoint-*"))
    assert not jobs.processes.run_processes(folder)


def test_saved_arguments_come_back_in_another_visit(page: Any, browser: Any, board: Board) -> None:
    fill_form(page, "kept", 7)
    page.click("#train-lora_tab > button")
    page.fill("#train-lora_rank input[type=number]", "24")
    page.keyboard.press("Tab")
    write(page, "train-config_path", "kept.yaml")
    page.click("#train-arg_save_btn")
    page.wait_for_selector("#train-output_box .notice.good")
    text = (board.work / "llamaboard_config" / "kept.yaml").read_text(encoding="utf-8")
    assert "train.lora_rank: 24" in text

    other = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
    other.set_default_timeout(60_000)
    open_board(other, board)
    assert other.input_value("#train-num_train_epochs input, #train-num_train_epochs textarea") == "3.0"
    write(other, "train-config_path", "kept.yaml")
    other.click("#train-arg_load_btn")
    other.wait_for_selector("#train-output_box .notice.good")
    assert other.input_value("#train-num_train_epochs input, #train-num_train_epochs textarea") == "7"
    assert "tiny_alpaca" in other.inner_text("#train-dataset")
    other.click("#train-lora_tab > button")
    assert other.input_value("#train-lora_rank input[type=number]") == "24"
    take_shot(other, "train-phone")
    other.context.close()


def test_what_does_not_go_with_a_choice_is_greyed_out(page: Any) -> None:
    page.click("#train-optimizers > button")
    box = page.locator("#train-use_galore input[type=checkbox]")
    page.wait_for_function("document.querySelector('#train-use_galore input').disabled")
    assert "full or freeze" in page.inner_text("#train-use_galore")
    choose(page, "top-finetuning_type", "full")
    page.wait_for_function("!document.querySelector('#train-use_galore input').disabled")
    page.wait_for_selector("#train-lora_tab", state="hidden")
    assert box.is_enabled()


def test_html_in_a_message_stays_text(shared_page: Any) -> None:
    page = shared_page
    write(page, "train-learning_rate", '<img src=x onerror="document.title=1">')
    write(page, "train-output_dir", "<b>x</b>")
    page.click("#train-cmd_preview_btn")
    page.wait_for_selector("#train-output_box .notice.problem")
    page.wait_for_timeout(500)
    assert page.locator("#train-output_box img, #train-learning_rate img, #train-output_dir b").count() == 0
    assert re.match(r"LLaMA Factory", page.title())


def test_files_of_the_machine_are_not_served(shared_page: Any, board: Board) -> None:
    page = shared_page
    for path in ("/etc/passwd", "../../../etc/passwd", str(board.work / "server.txt")):
        answer = page.request.get(f"{board.url}gradio_api/file={path}")
        assert answer.status in (403, 404), path
