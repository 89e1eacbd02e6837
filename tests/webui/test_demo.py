"""The page as a demonstration: what it shows, and that its visitors can neither start, load, upload nor write."""

from typing import Any

import pytest

from llamafactory.webui.engine import Engine
from llamafactory.webui.interface import build_page
from llamafactory.webui.places import Places


gr = pytest.importorskip("gradio")
CHANGING = {"start", "queue", "abort", "stop", "save", "load", "unload", "pick_folder", "upload", "delete", "resume"}


def handler_names(page: Any) -> set[str]:
    """Return what a visitor's browser can call, apart from talking with the model."""
    handlers = [fn.fn for fn in page.fns.values() if fn.fn is not None]
    return {fn.__name__ for fn in handlers if not fn.__module__.endswith("chat.handlers")}


def test_a_demonstration_says_what_it_is_and_changes_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("SPACE_ID", "someone/board")
    engine = Engine(demo_mode=True, places=Places(work=tmp_path))
    page = build_page(engine)

    button = engine.manager.get_elem_by_id("head.duplicate_btn")
    assert isinstance(button, gr.DuplicateButton)
    assert button.interactive
    clicked = [fn.js for fn in page.fns.values() if (button._id, "click") in fn.targets]
    assert any("spaces/someone/board?duplicate=true" in str(js) for js in clicked)
    assert engine.change_lang("zh")[button]["value"] != button.value
    assert "head.demo_note" in engine.manager
    assert "tabs.export" not in engine.manager
    assert "tabs.runs" not in engine.manager
    assert not CHANGING & handler_names(page)


def test_the_board_itself_has_none_of_it(tmp_path: Any) -> None:
    engine = Engine(places=Places(work=tmp_path))
    page = build_page(engine)

    assert "head.duplicate_btn" not in engine.manager
    assert not any(isinstance(element, gr.DuplicateButton) for element in page.blocks.values())
    assert "tabs.export" in engine.manager
    assert handler_names(page) >= CHANGING
