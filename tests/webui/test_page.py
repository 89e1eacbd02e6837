"""The page in a real browser."""

from typing import Any

import pytest
from browsing import take_shot


pytestmark = pytest.mark.slow


def test_the_page_opens_with_its_form(page: Any) -> None:
    assert page.title().startswith("LLaMA Factory (")
    assert page.locator("#top-finetuning_type").is_visible()
    take_shot(page, "train-light")
