"""Whatever the server's own description allows, and what it does not, is answered without a 500."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from serving import MODEL, Running, serve

from llamafactory.chat import ChatModel


@pytest.fixture(scope="module")
def running(tiny_llama_dir: Path) -> Iterator[Running]:
    arguments = {"model_name_or_path": str(tiny_llama_dir), "infer_dtype": "float32", "max_new_tokens": 2}
    model = ChatModel(arguments)
    with serve(model.engine) as server:
        yield server
    model.close()


def operations(running: Running, mode: schemathesis.GenerationMode) -> Iterator[Any]:
    """All routes; for requests that do not fit the description, those that take a body."""
    description = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    for result in description.get_all_operations():
        if mode.is_positive or result.ok().method == "post":
            yield result.ok()


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_no_request_is_a_500(running: Running, mode: schemathesis.GenerationMode) -> None:
    seen: set[tuple[str, int]] = set()
    for operation in operations(running, mode):

        @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict) and "model" in case.body and mode.is_positive:
                case.body |= {"model": MODEL} | ({} if "max_length" in case.body else {"max_tokens": 1})
            response = case.call()
            seen.add((case.path, response.status_code))
            assert response.status_code < 500, response.text
            assert response.content
            if response.status_code >= 400:
                assert response.json()["error"]["message"]

        ask()
    assert len({path for path, _ in seen}) >= (7 if mode.is_positive else 3)
    if mode.is_positive:
        assert ("/v1/models", 200) in seen
