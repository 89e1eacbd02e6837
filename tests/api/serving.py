"""A server in a thread of the test process, and an engine that says what a test wants."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from openai import OpenAI

from llamafactory.api.server import make_server, open_socket
from llamafactory.api.settings import Settings
from llamafactory.chat.base_engine import BaseEngine
from llamafactory.chat.requests import AnyRequest, EngineStats, QueueFullError, Response, StreamChunk
from llamafactory.data.template import TEMPLATES
from llamafactory.hparams import GeneratingArguments


MODEL = "gpt-3.5-turbo"
START_SECONDS = 10


class FakeEngine(BaseEngine):
    """Gives the text of `answer` a few characters at a time, and notes what it was asked and what was cancelled."""

    def __init__(self, tokenizer: Any, answer: str = "Hello there.", *, template: str = "chatml") -> None:
        self.tokenizer = tokenizer
        self.template = TEMPLATES.get(template)
        self.generating_args = GeneratingArguments()
        self.answer = answer
        self.size = 4
        self.seconds = 0.0
        """How long each piece takes."""
        self.max_running = 100
        self.error: Exception | None = None
        self.asked: list[Any] = []
        self.num_running = 0
        self.num_cancelled = 0
        self.is_closed = False

    async def chat(self, request: AnyRequest) -> list[Response]:
        texts = [""] * request.options.num_return_sequences
        last: StreamChunk | None = None
        async for chunk in self.stream_chat(request):
            texts[chunk.index] += chunk.text
            last = chunk
        assert last is not None
        return [
            Response(text, last.response_length, last.prompt_length, "stop", index=index)
            for index, text in enumerate(texts)
        ]

    async def stream_chat(self, request: AnyRequest) -> AsyncGenerator[StreamChunk, None]:
        self.check_adapter(request)
        self.asked.append(request)
        prompt = self.encode_prompt(request)
        if self.error is not None:
            raise self.error
        if self.num_running >= self.max_running:
            raise QueueFullError("As many answers wait already as may wait; try again later.")
        self.num_running += 1
        is_over = False
        try:
            pieces = [self.answer[place : place + self.size] for place in range(0, len(self.answer), self.size)]
            chunks = [StreamChunk(piece, number, len(prompt)) for number, piece in enumerate(pieces, 1)]
            chunks[-1] = replace(chunks[-1], finish_reason="stop")
            for chunk in chunks:
                await asyncio.sleep(self.seconds)
                for index in range(request.options.num_return_sequences):
                    yield replace(chunk, index=index)
            is_over = True
        finally:
            self.num_running -= 1
            self.num_cancelled += not is_over

    def stats(self) -> EngineStats:
        return EngineStats(num_running=self.num_running, num_cancelled=self.num_cancelled)

    def close(self) -> None:
        self.is_closed = True


class RewardEngine(FakeEngine):
    """Scores a text by its length."""

    can_generate = False

    async def get_scores(self, texts: Any, max_length: int | None = None) -> list[float]:
        return [float(min(len(text), max_length or len(text))) for text in texts]


class Running:
    """A server that runs in a thread."""

    def __init__(self, engine: BaseEngine, settings: Settings) -> None:
        self.settings = settings
        self.listener = open_socket(settings)
        self.host, self.port = self.listener.getsockname()[:2]
        self.server = make_server(engine, settings)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()
        wait_until(lambda: self.server.started or not self.thread.is_alive())
        assert self.server.started

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def client(self, **options: Any) -> OpenAI:
        given = {"api_key": self.settings.key or "none", "max_retries": 0, "timeout": 30}
        return OpenAI(base_url=f"{self.url}/v1", **{**given, **options})

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


@contextmanager
def serve(engine: BaseEngine, **settings: Any) -> Iterator[Running]:
    running = Running(engine, Settings(**{"port": 0, "is_verbose": False, **settings}))
    try:
        yield running
    finally:
        running.stop()


def wait_until(is_so: Any, seconds: float = START_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
