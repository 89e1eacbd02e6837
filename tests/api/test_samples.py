"""The samples of scripts/api_example as a user runs them: a program of their own against a real server."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from serving import FakeEngine, serve

from llamafactory.chat.requests import AnyRequest, ChatRequest, StreamChunk
from llamafactory.data.conversation import Role, as_conversation


SAMPLES = Path(__file__).resolve().parents[2] / "scripts" / "api_example"
CALL = {"name": "grade_point_average", "arguments": {"grades": ["A", "A", "B", "C"], "hours": [3, 4, 3, 2]}}


class CallingEngine(FakeEngine):
    """Calls the tool, and tells what it answered."""

    async def stream_chat(self, request: AnyRequest) -> AsyncGenerator[StreamChunk, None]:
        assert isinstance(request, ChatRequest)
        last = as_conversation(request.messages).messages[-1]
        is_told = last.role is Role.OBSERVATION
        self.answer = f"It is {last.content}." if is_told else f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
        async for chunk in super().stream_chat(request):
            yield chunk


def test_the_tool_sample_calls_and_tells(tiny_tokenizer: Any) -> None:
    engine = CallingEngine(tiny_tokenizer, template="qwen3")
    with serve(engine) as running:
        place = {"API_HOST": str(running.host), "API_PORT": str(running.port), "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, str(SAMPLES / "test_toolcall.py")],
            env=os.environ | place,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    assert done.returncode == 0, done.stderr
    called, told = done.stdout.splitlines()
    assert called.startswith("grade_point_average(")
    assert called.endswith(" = 3.42")
    assert told == "It is 3.42."
    assert '"grade_point_average"' in engine.asked[0].tools
    assert len(engine.asked) == 2
