"""ChatModel: answers for Python code, plain or async. `run_chat` is the same in a terminal."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from ..data.conversation import as_conversation
from ..data.media.medium import MEDIA_KINDS, MediaKind
from ..data.media.placing import place_media
from ..extras.registry import Registry
from ..hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments
from ..hparams.config import RunConfig
from ..hparams.parser import Args, load_run_config
from .base_engine import BaseEngine
from .requests import AnyRequest, ChatRequest, CompletionRequest, Messages, Response, StreamChunk, generation_options
from .terminal import run_chat


__all__ = ["ENGINES", "ChatModel", "run_chat"]

ENGINES: Registry[type[BaseEngine]] = Registry(
    "infer_backend",
    {
        "huggingface": "llamafactory.chat.hf_engine:HuggingfaceEngine",
        "vllm": "llamafactory.chat.vllm_engine:VllmEngine",
        "sglang": "llamafactory.chat.sglang_engine:SglangEngine",
    },
)
Value = TypeVar("Value")


class ChatModel:
    """A loaded model with its template; safe to call from several threads and event loops.

    A server makes requests with `chat_request` and `completion_request` and gives them to `engine.chat` or
    `engine.stream_chat` on its own event loop; the methods here are for everybody else.
    """

    def __init__(self, args: Args = None) -> None:
        config = load_run_config(args, "chat")
        model_args = config.get(ModelArguments)
        make_engine: Any = ENGINES.get(model_args.infer_backend)
        self.engine: BaseEngine = make_engine(
            model_args, with_saved_thinking(config), config.get(FinetuningArguments), config.get(GeneratingArguments)
        )
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="chat-calls", daemon=True).start()

    def chat(
        self, messages: Messages, system: str | None = None, tools: str | None = None, **options: Any
    ) -> list[Response]:
        """Answer a conversation; options such as max_new_tokens, temperature, seed or stop hold for this call.

        `adapter` and `thinking` (see ChatRequest) are options too.
        """
        return self._wait(self.engine.chat(self.chat_request(messages, system, tools, **options)))

    async def achat(
        self, messages: Messages, system: str | None = None, tools: str | None = None, **options: Any
    ) -> list[Response]:
        """Answer a conversation without blocking the caller's event loop."""
        return await self.engine.chat(self.chat_request(messages, system, tools, **options))

    def stream_chat(
        self, messages: Messages, system: str | None = None, tools: str | None = None, **options: Any
    ) -> Generator[str, None, None]:
        """Give the answer piece by piece; leaving the loop early stops the model."""
        request = self.chat_request(messages, system, tools, **_one_answer(options))
        for chunk in self.stream_chunks(request):
            if chunk.text:
                yield chunk.text

    async def astream_chat(
        self, messages: Messages, system: str | None = None, tools: str | None = None, **options: Any
    ) -> AsyncGenerator[str, None]:
        """Give the answer piece by piece on the caller's event loop; closing the generator stops the model."""
        request = self.chat_request(messages, system, tools, **_one_answer(options))
        async with aclosing(self.engine.stream_chat(request)) as stream:
            async for chunk in stream:
                if chunk.text:
                    yield chunk.text

    def stream_chunks(self, request: AnyRequest) -> Generator[StreamChunk, None, None]:
        """Give the chunks of all answers of a request; leaving the loop early stops the model."""
        chunks: queue.SimpleQueue[StreamChunk | None] = queue.SimpleQueue()
        task = asyncio.run_coroutine_threadsafe(self._pump(request, chunks), self._loop)
        is_over = False
        try:
            while (chunk := chunks.get()) is not None:
                yield chunk
            is_over = True
            task.result()
        finally:
            task.cancel()
            while not is_over:  # the rows are out of the batch when this returns
                is_over = chunks.get() is None

    def get_scores(self, batch_input: Sequence[str], max_length: int | None = None) -> list[float]:
        """Return a reward model's score of each text."""
        return self._wait(self.engine.get_scores(batch_input, max_length))

    async def aget_scores(self, batch_input: Sequence[str], max_length: int | None = None) -> list[float]:
        """Return a reward model's score of each text without blocking the caller's event loop."""
        return await self.engine.get_scores(batch_input, max_length)

    def chat_request(
        self,
        messages: Messages,
        system: str | None = None,
        tools: str | None = None,
        *,
        adapter: str | None = None,
        thinking: bool | None = None,
        **options: Any,
    ) -> ChatRequest:
        """Make the request of a conversation; the options are checked here.

        `images`, `videos` and `audios` are lists of files, their bytes or decoded media. They stand where the texts
        have <image>, <video> or <audio>; where these have none, in front of the last question.
        """
        media: dict[MediaKind, Any] = {kind: options.pop(f"{kind}s", None) or () for kind in MEDIA_KINDS}
        turns = list(messages)
        if any(media.values()):
            conversation = as_conversation(turns, system, tools)
            turns, system = place_media(conversation.messages, media), conversation.system
        return ChatRequest(
            messages=turns,
            system=system,
            tools=tools,
            options=generation_options(self.engine.generating_args, options),
            adapter=adapter,
            thinking=thinking,
        )

    def completion_request(
        self, prompt: str | Sequence[int], *, adapter: str | None = None, **options: Any
    ) -> CompletionRequest:
        """Make the request of a plain prompt; the options are checked here."""
        return CompletionRequest(
            prompt=prompt, options=generation_options(self.engine.generating_args, options), adapter=adapter
        )

    def close(self) -> None:
        """Stop the engine; calls that are still running raise EngineStoppedError."""
        self.engine.close()

    def _wait(self, call: Coroutine[Any, Any, Value]) -> Value:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    async def _pump(self, request: AnyRequest, chunks: "queue.SimpleQueue[StreamChunk | None]") -> None:
        """Hand on every chunk, and None behind them, whatever happens."""
        try:
            async with aclosing(self.engine.stream_chat(request)) as stream:
                async for chunk in stream:
                    chunks.put(chunk)
        finally:
            chunks.put(None)


def with_saved_thinking(config: RunConfig) -> DataArguments:
    """Return the data arguments; where nobody sets `enable_thinking`, an export thinks as it was trained to."""
    data_args = config.get(DataArguments)
    if config.sources["enable_thinking"] != "default":
        return data_args
    from ..model.loader import load_generation_config  # torch is imported only when a model is loaded

    saved = getattr(load_generation_config(config.get(ModelArguments)), "enable_thinking", None)
    return replace(data_args, enable_thinking=saved) if isinstance(saved, bool) else data_args


def _one_answer(options: dict[str, Any]) -> dict[str, Any]:
    """A stream of text alone could not tell several answers apart."""
    return {name: min(value, 1) if name in ("n", "num_return_sequences") else value for name, value in options.items()}
