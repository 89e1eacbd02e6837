"""A board in a process of its own, and a page of a real browser in front of it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Board, free_port, open_board
from job_making import Acts, end_everything, make_places

from llamafactory.webui.places import Places


PAGE_MILLISECONDS = 60_000


@pytest.fixture(scope="session")
def board_dir(tmp_path_factory: pytest.TempPathFactory, demo_dataset_dir: Path, tiny_llama_dir: Path) -> Path:
    """A folder to start a board in: data/, and the tiny model under models/tiny."""
    work = tmp_path_factory.mktemp("board")
    shutil.copytree(demo_dataset_dir, work / "data")
    shutil.copytree(tiny_llama_dir, work / "models" / "tiny")
    return work


@pytest.fixture(scope="session")
def board(board_dir: Path) -> Iterator[Board]:
    """One board for all browser tests of the session."""
    running = Board(board_dir, free_port())
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium without a window; in CI it must be there."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    playwright = pytest.importorskip("playwright.sync_api") if not os.environ.get("CI") else None
    if executable is None and not os.environ.get("CI"):
        pytest.skip("no Chromium: `apt-get install chromium`")
    if playwright is None:
        import playwright.sync_api as playwright
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, board: Board) -> Iterator[Any]:
    """A fresh visitor on a laptop-sized page of the board; errors of the page's own script fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    visitor = context.new_page()
    visitor.set_default_timeout(PAGE_MILLISECONDS)
    errors: list[str] = []
    visitor.on("pageerror", lambda error: errors.append(str(error)))
    open_board(visitor, board)
    yield visitor
    context.close()
    assert not errors, errors


@pytest.fixture(scope="module")
def shared_page(browser: Any, board: Board) -> Iterator[Any]:
    """One page for tests of a module that leave nothing behind which the next would trip over."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    visitor = context.new_page()
    visitor.set_default_timeout(PAGE_MILLISECONDS)
    open_board(visitor, board)
    yield visitor
    context.close()


@pytest.fixture
def places(tmp_path: Path, tiny_llama_dir: Path, demo_dataset_dir: Path) -> Iterator[Places]:
    """A folder to start runs in; whatever still runs there after a test is ended."""
    places = make_places(tmp_path, tiny_llama_dir, demo_dataset_dir)
    yield places
    end_everything(places)


@pytest.fixture
def acts(tmp_path: Path) -> Iterator[Acts]:
    """Runs that do what a few lines say; they need no model."""
    places = make_places(tmp_path)
    yield Acts(places)
    end_everything(places)
