"""docs/performance.md holds no figure that was typed: its tables come from a result file."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest


ROOT = Path(__file__).resolve().parents[2]
PAGE = "before\n<!-- results: r.json -->\nold\n<!-- end of results -->\nafter\n"


@pytest.fixture
def make_docs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_the_tables_are_those_of_the_file(make_docs: Any, tmp_path: Path) -> None:
    result = {
        "schema": 1,
        "date": "2026-01-02",
        "settings": {"model": "m", "rounds": 2, "warmup_steps": 1},
        "environment": {"cpu": "a processor", "cores": "2", "torch": "2.13"},
        "tasks": {"dpo": {"title": "DPO", "error": "no such stage"}},
    }
    (tmp_path / "r.json").write_text(json.dumps(result), encoding="utf-8")

    page = make_docs.render_performance(PAGE)

    assert "old" not in page
    assert "a processor" in page
    assert "Not measured: no such stage" in page
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert make_docs.render_performance(page) == page


def test_a_missing_result_is_said(make_docs: Any) -> None:
    assert "Not measured yet." in make_docs.render_performance(PAGE)


def test_the_page_names_a_result_file() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")

    assert "<!-- results: benchmarks/results/" in page
