"""Golden ids and masks of eight dialogues in every template; `python scripts/make_golden.py` writes them again."""

import json

import pytest
from golden_cases import HASHES, SHOWN, TEXTS, golden_cases

from llamafactory.data import TEMPLATES


@pytest.mark.parametrize("name", TEMPLATES.names())
def test_golden_ids_and_masks(name: str) -> None:
    cases = golden_cases(name)

    if name in SHOWN:  # first, because it says what is different
        assert {key: case.text for key, case in cases.items()} == json.loads(TEXTS.read_text(encoding="utf-8"))[name]
    assert {key: case.hash for key, case in cases.items()} == json.loads(HASHES.read_text(encoding="utf-8"))[name]
