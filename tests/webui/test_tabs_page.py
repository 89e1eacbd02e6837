"""Journeys through the tabs in a real browser: data, chat, evaluation, export, runs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from browsing import Board, open_board, take_shot
from model_making import save_adapter


pytestmark = pytest.mark.slow
JOB_MILLISECONDS = 240_000


def choose_model(page: Any, path: str = "models/tiny") -> None:
    page.locator("#top-model_path textarea, #top-model_path input").first.fill(path)


def turn_to(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()


def pick(page: Any, element: str, word: str) -> None:
    field = page.locator(f"{element} input").first
    field.click()
    field.fill(word)
    page.get_by_role("option", name=word, exact=True).first.click()
    field.press("Escape")


def test_rows_are_shown_as_the_model_sees_them(page: Any) -> None:
    choose_model(page)
    pick(page, "#train-dataset", "tiny_alpaca")

    page.get_by_role("button", name="Look at the data").locator("visible=true").click()

    row = page.locator(".rows .row").locator("visible=true").first
    row.wait_for()
    assert row.locator(".text.learned").count()
    assert "<|im_start|>" in row.inner_text()
    take_shot(page, "tabs-data")


def test_talk_is_streamed_stopped_and_never_html(page: Any) -> None:
    choose_model(page)
    turn_to(page, "Chat")
    page.locator("#infer-load_btn").click()
    page.locator("#infer-query").wait_for(state="visible", timeout=JOB_MILLISECONDS)
    temperature = page.locator("#infer-temperature input[type=number]")
    temperature.fill("2")
    temperature.press("Tab")

    page.locator("#infer-query textarea").fill("Hello <b id=evil>you</b> <img src=x onerror=alert(1)>")
    page.locator("#infer-query textarea").press("Enter")

    bot = page.locator("#infer-chatbot .bot").last
    bot.wait_for()
    page.evaluate("document.querySelector('#infer-stop_btn')?.click()")  # the tiny model may have come to its own end
    page.locator("#infer-submit_btn").wait_for(state="visible")
    assert page.locator("#infer-chatbot img[src=x], #infer-chatbot #evil").count() == 0
    assert "<b id=evil>" in page.locator("#infer-chatbot .user").first.inner_text()
    take_shot(page, "tabs-chat")
    page.locator("#infer-unload_btn").click()
    page.locator("#infer-query").wait_for(state="hidden")


def test_answers_stand_beside_what_was_expected(page: Any, board: Board) -> None:
    choose_model(page)
    turn_to(page, "Evaluate & Predict")
    pick(page, "#eval-dataset", "tiny_alpaca")
    page.locator("#eval-max_samples textarea, #eval-max_samples input").first.fill("3")
    page.locator("#eval-max_new_tokens input[type=number]").fill("8")
    page.locator("#eval-max_new_tokens input[type=number]").press("Tab")

    page.locator("#eval-start_btn").click()

    page.locator(".predictions").wait_for(timeout=JOB_MILLISECONDS)
    assert page.locator(".predictions tbody tr").count() == 3
    assert "predict_rouge-l" in page.locator("#eval-metrics_box").inner_text()
    take_shot(page, "tabs-eval")
    with page.expect_download() as download:
        page.locator("#eval-download_btn").click()
    rows = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert [set(json.loads(row)) >= {"prompt", "predict", "label"} for row in rows] == [True] * 3


def test_an_export_ends_with_a_verified_folder(page: Any, board: Board) -> None:
    save_adapter(board.work / "models" / "tiny", board.work / "models" / "adapter")
    choose_model(page)
    field = page.locator("#top-checkpoint_path input").first
    field.fill("models/adapter")
    field.press("Enter")
    turn_to(page, "Export")
    page.locator("#export-export_dir textarea, #export-export_dir input").first.fill("exports/tiny")

    page.locator("#export-export_btn").click()

    page.locator("#export-status_box").get_by_text("Verified").wait_for(timeout=JOB_MILLISECONDS)
    assert (board.work / "exports" / "tiny" / "model.safetensors").is_file()
    take_shot(page, "tabs-export")


def write_run(board: Board, name: str, rate: float) -> None:
    folder = board.work / "saves" / "tiny" / "lora" / name
    folder.mkdir(parents=True)
    (folder / "training_args.yaml").write_text(f"do_train: true\nstage: sft\nlearning_rate: {rate}\n")
    lines = [
        {"current_steps": step, "loss": 2 * math.exp(-step * rate), "lr": rate, "percentage": step * 2}
        for step in range(1, 51)
    ]
    (folder / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "all_results.json").write_text('{"train_loss": 1.0}')


def test_runs_are_compared_and_copied_into_the_form(page: Any, board: Board) -> None:
    for name, rate in (("one", 0.01), ("two", 0.05)):
        write_run(board, name, rate)
    open_board(page, board)
    turn_to(page, "Runs")
    for name in ("one", "two"):
        page.locator("#runs-run_table").get_by_text(f"tiny/lora/{name}").last.click()
        page.locator("#runs-chosen").get_by_text(f"tiny/lora/{name}").first.wait_for()

    page.locator("#runs-compare_btn").click()

    table = page.locator("#runs-comparison table").first
    table.wait_for()
    assert "0.05" in table.inner_text()
    page.locator("#runs-plot_0 canvas, #runs-plot_0 svg").first.wait_for()
    take_shot(page, "tabs-runs")
    page.locator("#runs-run_table").get_by_text("tiny/lora/one").last.click()
    page.locator("#runs-chosen").get_by_text("tiny/lora/one").first.wait_for(state="detached")
    page.locator("#runs-clone_btn").click()
    rate = page.locator("#train-learning_rate textarea, #train-learning_rate input").first
    rate.wait_for(state="visible")
    assert rate.input_value() == "0.05"
