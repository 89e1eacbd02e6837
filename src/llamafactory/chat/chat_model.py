"""ChatModel: answers for Python code, plain or async. `run_chat` is the same in a terminal."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from typing import Any

from ..extras.registry import Registry
from ..hparams.parser import Args, get_infer_args
from .base_engine import BaseEngine
from .requests import ChatRequest, Messages, Response, generation_options
from .terminal import run_chat


__all__ = ["ENGINES", "ChatModel", "run_chat"]

ENGINES: Registry[type[BaseEngine]] = Registry(
    "infer_backend", {"huggingface": "llamafactory.chat.hf_engine:HuggingfaceEngine"}
)


class ChatModel:
    """A loaded model with its template; safe to call from several threads and event loops.

    The engine lives on one event loop in a thread of its own, so plain and async callers share it.
    """

    def __init__(self, args: Args = None) -> None:
        model_args, data_args, finetuning_args, generating_args = get_infer_args(args)
        make_engine: Any = ENGINES.get(model_args.infer_backend)
        self.engine: BaseEngine = make_engine(model_args, data_args, finetuning_args, generating_args)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="chat-engine", daemon=True).start()

    def chat(
        self, messages: Messages, system: str | None = None, tools: str | None = None, **options: Any
    ) -> list[Response]:
        """Answer a conversation; options such as max_new_tokens, temperature, seed or stop hold for this call."""
        request = self._request(messages, system, tools, options)
        return asyncio.run_coroutine_threadsafe(self.engine.chat(request), self._loop).result()

    async def achat(
        self, messages: Messages, system: str | None = None, tools: str | None = None, **options: Any
    ) -> list[Response]:
        """Answer a conversation without blocking the caller's event loop."""
        request = self._request(messages, system, tools, options)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.engine.chat(request), self._loop))

    def stream_chat(
        self, messages: Messages, system: str | None = None, tools: str | None = None, **options: Any
    ) -> Generator[str, None, None]:
        """Give the answer piece by piece; leaving the loop early stops the model."""
        pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        request = self._request(messages, system, tools, options)
        task = asyncio.run_coroutine_threadsafe(self._pump(request, pieces.put), self._loop)
        is_over = False
        try:
            while (text := pieces.get()) is not None:
                yield text
            is_over = True
            task.result()
        finally:
            task.cancel()
            while not is_over:  # the engine must be idle before the next request
                is_over = pieces.get() is None

    async def astream_chat(
        self, messages: Messages, system: str | None = None, tools: str | None = None, **options: Any
    ) -> AsyncGenerator[str, None]:
        """Give the answer piece by piece on the caller's event loop; closing the generator stops the model."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        request = self._request(messages, system, tools, options)

        def put(text: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, text)

        task = asyncio.run_coroutine_threadsafe(self._pump(request, put), self._loop)
        try:
            while (text := await pieces.get()) is not None:
                yield text
            task.result()
        finally:
            task.cancel()

    async def _pump(self, request: ChatRequest, put: Any) -> None:
        """Run on the engine's loop: hand on every piece of text, and None behind them, whatever happens."""
        try:
            async with aclosing(self.engine.stream_chat(request)) as stream:
                async for chunk in stream:
                    if chunk.text:
                        put(chunk.text)
        finally:
            put(None)

    def _request(
        self, messages: Messages, system: str | None, tools: str | None, options: dict[str, Any]
    ) -> ChatRequest:
        return ChatRequest(
            messages=list(messages),
            system=system,
            tools=tools,
            options=generation_options(self.engine.generating_args, options),
        )
