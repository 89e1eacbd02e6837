"""What all engines share that generate: a request becomes a job, and the job's chunks become answers."""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from ..extras.errors import UserError
from .answer import Event, Job
from .base_engine import BaseEngine
from .media_prompt import has_media
from .requests import AnyRequest, GenerationOptions, Response, StreamChunk, TooLongError


class JobEngine(BaseEngine):
    """An engine that takes jobs and tells each job's sink what comes of it."""

    stop_ids: list[int]
    """The tokens that end an answer, unless the request says otherwise."""
    max_length: int | None = None
    """The most tokens that prompt and answer may have together."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Take a job, or raise what is wrong with it; returns at once."""

    @abstractmethod
    def cancel(self, job: Job) -> None:
        """Forget a job whose reader has left."""

    async def chat(self, request: AnyRequest) -> list[Response]:
        """Return all answers of the request."""
        responses: list[Response] = []
        async with aclosing(self._answers(request, is_streamed=False)) as chunks:
            async for chunk in chunks:
                reason = chunk.finish_reason or "length"
                lengths = chunk.response_length, chunk.prompt_length
                responses.append(
                    Response(chunk.text, *lengths, reason, chunk.logprobs, chunk.index, chunk.cached_length)
                )
        return sorted(responses, key=lambda response: response.index)

    async def stream_chat(self, request: AnyRequest) -> AsyncGenerator[StreamChunk, None]:
        """Give the answers as they are made; beams are followed to their end first, so they come in one piece."""
        async with aclosing(self._answers(request, is_streamed=True)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _answers(self, request: AnyRequest, *, is_streamed: bool) -> AsyncGenerator[StreamChunk, None]:
        """Submit a request and give what comes of it; a reader that leaves takes it out again."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def put(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = await asyncio.to_thread(self.make_job, request, put, is_streamed)  # a long text takes seconds
        self.submit(job)
        num_left = request.options.num_return_sequences
        try:
            while num_left:
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                num_left -= event.finish_reason is not None
                yield event
        finally:
            if num_left:
                self.cancel(job)

    def make_job(self, request: AnyRequest, sink: Any, is_streamed: bool) -> Job:
        """Check a request and write its prompt."""
        if not self.can_generate:
            raise UserError("This is a reward model: it gives scores, not answers; load it without `stage: rm`.")
        self.check_adapter(request)
        prompt, inputs = self.make_prompt(request)
        options = request.options
        stop_ids = frozenset() if options.ignore_eos else frozenset((*self.stop_ids, *options.stop_token_ids))
        room = self._room_for_answer(len(prompt), options)
        return Job(prompt, options, sink, stop_ids, room, request.adapter, is_streamed, inputs)

    def make_prompt(self, request: AnyRequest) -> tuple[list[int], Mapping[str, Any] | None]:
        """Return the ids that the model reads, and what it reads besides."""
        if has_media(request):
            raise UserError("This engine takes text only; images, sound and video need infer_backend: huggingface.")
        return self.encode_prompt(request), None

    def _room_for_answer(self, prompt_length: int, options: GenerationOptions) -> int:
        """How many tokens the answer may have, within what was asked for and what the model can read."""
        arguments, limit = options.arguments, self.max_length
        asked = arguments.max_new_tokens or arguments.max_length - prompt_length
        room = asked if limit is None else min(asked, limit - prompt_length)
        if room < 1:
            bound = f"max_length {arguments.max_length}" if asked < 1 else f"the model's limit of {limit}"
            raise TooLongError(f"The conversation has {prompt_length} tokens, which leaves no room within {bound}.")
        return room
