"""Fixtures of the training tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_trainer import TrainerMaker, with_lora


@pytest.fixture
def make_trainer(tmp_path: Path) -> TrainerMaker:
    return TrainerMaker(tmp_path / "out")


@pytest.fixture(scope="session")
def make_model(tiny_llama: Callable[[], Any]) -> Callable[..., Any]:
    """Makes a fresh tiny model, "full" or under "lora"; equal at each call."""

    def make(method: str = "full", dropout: float = 0.0) -> Any:
        return with_lora(tiny_llama(), dropout) if method == "lora" else tiny_llama()

    return make
