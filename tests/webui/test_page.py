"""The page in a real browser."""

from typing import Any

import pytest
from browsing import Board, open_board, take_shot


pytestmark = pytest.mark.slow


def test_the_page_opens_with_its_form(shared_page: Any) -> None:
    page = shared_page
    assert page.title().startswith("LLaMA Factory (")
    assert page.locator("#top-finetuning_type").is_visible()
    take_shot(page, "train-light")


def test_the_language_is_changed_on_a_phone_and_nothing_sticks_out(browser: Any, board: Board) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.set_default_timeout(60_000)
    open_board(page, board)
    page.locator("#top-lang input").tap()
    page.get_by_role("option", name="中文").first.tap()
    page.get_by_role("tab", name="训练", exact=True).wait_for()
    page.locator("#train-num_train_epochs", has_text="训练轮数").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    take_shot(page, "train-phone-zh")
    page.locator(".overflow-menu > button").first.tap()
    page.locator(".overflow-dropdown button").last.tap()
    page.locator("#runs-run_table", has_text="最后更新").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    take_shot(page, "runs-phone-zh")
    context.close()
