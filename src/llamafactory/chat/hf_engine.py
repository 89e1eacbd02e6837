"""The default engine: the model runs in this process; answers that are asked for at the same time share its steps."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ..data.template import get_template_and_fix_tokenizer
from ..extras.env import read_env
from ..extras.errors import UserError
from ..model import load_model, load_tokenizer
from ..model.request import Head
from .adapters import load_adapters
from .answer import Event, Job
from .base_engine import BaseEngine
from .batch import Limits
from .page_memory import paged_model
from .requests import (
    AnyRequest,
    EngineStats,
    GenerationOptions,
    Response,
    StreamChunk,
    TooLongError,
)
from .scheduler import Scheduler
from .scores import score_rows
from .solo import SoloWriter


if TYPE_CHECKING:
    from ..hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments


class HuggingfaceEngine(BaseEngine):
    """Continuous batching over transformers' models; adapters of the run are merged, so they cost nothing."""

    def __init__(
        self,
        model_args: "ModelArguments",
        data_args: "DataArguments",
        finetuning_args: "FinetuningArguments",
        generating_args: "GeneratingArguments",
    ) -> None:
        self.tokenizer = load_tokenizer(model_args)["tokenizer"]
        self.template = get_template_and_fix_tokenizer(self.tokenizer, data_args)
        self.generating_args = generating_args
        self.can_generate = finetuning_args.stage != "rm"
        head: Head = "words" if self.can_generate else "score"
        self.model = load_model(self.tokenizer, model_args, finetuning_args, head=head)
        self.stop_ids = self.template.get_stop_token_ids(self.tokenizer)
        env = read_env()
        limits = Limits(max_running=env.max_concurrent, max_waiting=env.max_queue)
        pad: Any = self.tokenizer.pad_token_id
        adapters = load_adapters(self.model, model_args)
        self.adapter_names = adapters.names if adapters else ()
        solo = SoloWriter(self.model, self.stop_ids[0] if pad is None else pad, adapters)
        is_paged = self.can_generate and model_args.use_kv_cache
        paged = paged_model(self.model, limits.max_running, adapters) if is_paged else None
        self.scheduler = Scheduler(self.tokenizer, paged, solo, limits)

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

    async def get_scores(self, texts: Sequence[str], max_length: int | None = None) -> list[float]:
        """Return a reward model's score of each text, made between two steps of whatever else runs."""
        if self.can_generate:
            return await super().get_scores(texts, max_length)
        rows = [self._encode_text(text)[:max_length] for text in texts]
        loop = asyncio.get_running_loop()
        result: asyncio.Future[list[float]] = loop.create_future()

        def task() -> None:
            scores = score_rows(self.model, rows)
            loop.call_soon_threadsafe(result.set_result, scores)

        self.scheduler.call(task)
        return await result

    def stats(self) -> EngineStats:
        """Return the counters of now."""
        return self.scheduler.stats()

    def close(self) -> None:
        """Stop the engine's thread."""
        self.scheduler.close()

    async def _answers(self, request: AnyRequest, *, is_streamed: bool) -> AsyncGenerator[StreamChunk, None]:
        """Give the chunks until every answer has its last one; leaving early cancels the request."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def put(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = self._job(request, put, is_streamed)
        self.scheduler.submit(job)
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
                self.scheduler.cancel(job)

    def _job(self, request: AnyRequest, sink: Any, is_streamed: bool) -> Job:
        if not self.can_generate:
            raise UserError("This is a reward model: it gives scores, not answers; load it without `stage: rm`.")
        self.check_adapter(request)
        prompt = self.encode_prompt(request)
        options = request.options
        stop_ids = frozenset() if options.ignore_eos else frozenset((*self.stop_ids, *options.stop_token_ids))
        room = self._room_for_answer(len(prompt), options)
        return Job(prompt, options, sink, stop_ids, room, request.adapter, is_streamed)

    def _room_for_answer(self, prompt_length: int, options: GenerationOptions) -> int:
        """How many tokens the answer may have, within what was asked for and what the model can read."""
        arguments = options.arguments
        asked = arguments.max_new_tokens or arguments.max_length - prompt_length
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        room = asked if limit is None else min(asked, limit - prompt_length)
        if room < 1:
            bound = f"max_length {arguments.max_length}" if asked < 1 else f"the model's limit of {limit}"
            raise TooLongError(f"The conversation has {prompt_length} tokens, which leaves no room within {bound}.")
        return room
