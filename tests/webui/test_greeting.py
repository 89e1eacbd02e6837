"""The language that a page opens in, in a real browser: the visitor's own choice is never taken back."""

from collections.abc import Iterator
from typing import Any

import pytest
from browsing import Board, open_board


pytestmark = pytest.mark.slow


@pytest.fixture
def chinese(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="zh-CN")
    visitor = context.new_page()
    visitor.set_default_timeout(60_000)
    yield visitor
    context.close()


def choose_language(page: Any, name: str) -> None:
    page.click("#top-lang input")
    page.get_by_role("option", name=name, exact=True).click()


def language(page: Any) -> str:
    return str(page.input_value("#top-lang input"))


@pytest.mark.parametrize(("name", "label"), [("日本語", "エポック数"), ("English", "Epochs")])
def test_a_choice_made_before_the_greeting_arrives_stays(chinese: Any, board: Board, name: str, label: str) -> None:
    held: list[Any] = []
    is_chosen = False
    chinese.route("**/queue/join*", lambda route: route.continue_() if is_chosen else held.append(route))
    open_board(chinese, board)
    chinese.wait_for_timeout(500)
    choose_language(chinese, name)
    is_chosen = True
    assert held, "the page has asked for nothing"
    for route in held:
        route.continue_()

    chinese.locator("#train-num_train_epochs", has_text=label).wait_for()
    chinese.wait_for_timeout(1500)  # whatever is still under way arrives
    assert language(chinese) == name
    assert label in chinese.inner_text("#train-num_train_epochs")
    assert "训练轮数" not in chinese.inner_text("body")
