"""The data panel in a real browser: a file is uploaded, looked at and counted, a broken one refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from browsing import Board, take_shot


pytestmark = pytest.mark.slow
ROWS = [
    {"instruction": f"What is {number} and {number}?", "input": "", "output": f"It is {2 * number}, <b>surely</b>."}
    for number in range(1, 6)
]
COUNT_MILLISECONDS = 120_000


def upload(page: Any, file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click("#train-upload_btn")
    chooser.value.set_files(file)


def test_a_file_is_uploaded_looked_at_and_counted_and_a_broken_one_refused(
    page: Any, board: Board, tmp_path: Path
) -> None:
    good, broken = tmp_path / "my sums.json", tmp_path / "broken.json"
    good.write_text(json.dumps(ROWS), encoding="utf-8")
    broken.write_text(json.dumps(ROWS)[:-14], encoding="utf-8")
    page.fill("#top-model_path input, #top-model_path textarea", "models/tiny")

    upload(page, good)
    page.wait_for_selector("#train-data_message .notice.good")
    assert "Registered as my_sums: 5 of 5 rows can be used." in page.inner_text("#train-data_message")
    assert "my_sums" in page.inner_text("#train-dataset")
    assert "my_sums" in json.loads((board.work / "data" / "dataset_info.json").read_text(encoding="utf-8"))

    page.click("#train-data_preview_btn")
    rows = page.locator("#train-preview_samples .row")
    rows.nth(1).wait_for()
    learned = rows.first.locator(".text.learned")
    assert "It is 2, <b>surely</b>." in learned.inner_text()
    assert "What is 1 and 1?" in rows.first.locator(".text.read").first.inner_text()
    colours = "element => getComputedStyle(element).backgroundColor"
    assert learned.evaluate(colours) != rows.first.locator(".text.read").first.evaluate(colours)
    take_shot(page, "data-rows")
    page.click("#train-next_btn")
    page.locator("#train-preview_samples", has_text="What is 3 and 3?").wait_for()
    assert page.input_value("#train-page_index input") == "2"

    page.click("#train-stats_btn")
    figures = page.locator("#train-preview_samples .figures")
    figures.wait_for(timeout=COUNT_MILLISECONDS)
    cells = figures.locator("table").first.locator("tbody td").all_inner_texts()
    assert cells[:3] == ["my_sums", "5", "5"]
    take_shot(page, "data-figures")

    page.click("#train-close_btn")
    page.wait_for_selector("#train-data_box", state="hidden")
    upload(page, broken)
    page.wait_for_selector("#train-data_message .notice.problem")
    told = 'broken.json, line 1: Unterminated string starting at "It is 10, <b>"; mend the JSON of this row.'
    assert page.inner_text("#train-data_message").strip() == told
    take_shot(page, "data-refused")
    assert not (board.work / "data" / "broken.json").exists()
