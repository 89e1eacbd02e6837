"""POST /v1/completions: texts that are continued as they stand."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, NamedTuple

from starlette.requests import Request

from ..chat.requests import CompletionRequest, StreamChunk
from ..extras.errors import UserError
from .errors import bad_request, from_user_error
from .objects import JsonObject, count_usage, new_id, now, text_logprobs, usage
from .protocol import CompletionBody
from .service import Service, next_chunk, while_connected
from .sse import EventResponse


MAX_PROMPTS = 64


class Arrival(NamedTuple):
    """A chunk and the prompt that it belongs to; without a chunk, that prompt has no more."""

    prompt: int
    chunk: StreamChunk | None
    error: UserError | None = None


async def text_completion(service: Service, body: CompletionBody, request: Request) -> JsonObject | EventResponse:
    """Continue one or more texts, at once or piece by piece."""
    service.check_generates()
    adapter = service.find_adapter(body.model)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise bad_request("best_of is not supported beyond n; leave it out.", "best_of")
    options = service.options(body, logprobs=body.logprobs)
    asked = [
        CompletionRequest(prompt=prompt, options=options, adapter=adapter) for prompt in read_prompts(body.prompt)
    ]
    if body.stream:
        return await stream_completion(service, body, asked, request)
    answers = await service.answers(request, asked)
    num_answers = options.num_return_sequences
    choices = [
        {
            "index": place * num_answers + answer.index,
            "text": answer.response_text,
            "logprobs": text_logprobs(answer.logprobs) if body.logprobs is not None else None,
            "finish_reason": answer.finish_reason,
        }
        for place, group in enumerate(answers)
        for answer in group
    ]
    counts = usage((answer for group in answers for answer in group), len(answers))
    return {**new_head(body.model), "choices": choices, "usage": counts}


async def stream_completion(
    service: Service, body: CompletionBody, asked: Sequence[CompletionRequest], request: Request
) -> EventResponse:
    """Start all streams; what is wrong with the first prompt is an error before anything is sent."""
    start = time.perf_counter()
    streams = [service.engine.stream_chat(item) for item in asked]
    first = await while_connected(request, next_chunk(streams[0]))
    service.metrics.first_token.observe(time.perf_counter() - start)
    events = stream(body, streams, first, asked[0].options.num_return_sequences)
    return EventResponse(events, streams, ping_seconds=service.settings.ping_seconds)


async def stream(
    body: CompletionBody,
    streams: Sequence[AsyncGenerator[StreamChunk, None]],
    first: StreamChunk,
    num_answers: int,
) -> AsyncGenerator[Mapping[str, Any], None]:
    """Give the chunks of all prompts as they come."""
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    head = new_head(body.model) | ({"usage": None} if with_usage else {})
    lasts: dict[int, StreamChunk] = {}
    lengths: dict[int, int] = {}
    async with aclosing(merge(streams, first)) as arrivals:
        async for prompt, chunk, error in arrivals:
            if error is not None:
                yield from_user_error(error).as_dict()
                return
            if chunk is None:
                continue
            index = prompt * num_answers + chunk.index
            lasts[index] = chunk
            logprobs = None
            if body.logprobs is not None and chunk.logprobs:
                logprobs = text_logprobs(chunk.logprobs, lengths.get(index, 0))
                lengths[index] = lengths.get(index, 0) + sum(len(token.text) for token in chunk.logprobs)
            choice = {"index": index, "text": chunk.text, "logprobs": logprobs, "finish_reason": chunk.finish_reason}
            yield head | {"choices": [choice]}
    if with_usage:
        firsts = [last for index, last in lasts.items() if index % num_answers == 0]
        counts = count_usage(
            sum(last.prompt_length for last in firsts),
            sum(last.response_length for last in lasts.values()),
            sum(last.cached_length for last in firsts),
        )
        yield head | {"choices": [], "usage": counts}


async def merge(
    streams: Sequence[AsyncGenerator[StreamChunk, None]], first: StreamChunk
) -> AsyncGenerator[Arrival, None]:
    """Give the chunks of several streams in the order in which they come."""
    arrivals: asyncio.Queue[Arrival] = asyncio.Queue(maxsize=1)

    async def pump(prompt: int, chunks: AsyncGenerator[StreamChunk, None]) -> None:
        async with aclosing(chunks):
            try:
                async for chunk in chunks:
                    await arrivals.put(Arrival(prompt, chunk))
            except UserError as error:
                await arrivals.put(Arrival(prompt, None, error))
            await arrivals.put(Arrival(prompt, None))

    yield Arrival(0, first)
    async with AsyncExitStack() as stack:
        tasks = [asyncio.create_task(pump(place, chunks)) for place, chunks in enumerate(streams)]
        stack.push_async_callback(stop_all, tasks)
        num_left = len(tasks)
        while num_left:
            arrival = await next_of(arrivals, tasks)
            num_left -= arrival.chunk is None and arrival.error is None
            yield arrival


async def next_of(arrivals: "asyncio.Queue[Arrival]", tasks: Sequence["asyncio.Task[None]"]) -> Arrival:
    """Wait for the next chunk; a pump that broke raises here instead of leaving us waiting."""
    step = asyncio.ensure_future(arrivals.get())
    try:
        waiting: set[asyncio.Future[Any]] = {step, *(task for task in tasks if not task.done())}
        while not step.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {step}:
                task.result()
        return step.result()
    finally:
        step.cancel()


async def stop_all(tasks: Sequence["asyncio.Task[None]"]) -> None:
    """Cancel tasks and wait until they are over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def read_prompts(prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> list[str | list[int]]:
    """Return the prompts one by one, each a text or a list of token ids."""
    prompts: list[Any] = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else [*prompt]
    if not prompts or any(not item for item in prompts):
        raise bad_request("prompt is empty; there is nothing to continue.", "prompt")
    if len(prompts) > MAX_PROMPTS:
        raise bad_request(f"There are {len(prompts)} prompts; at most {MAX_PROMPTS} fit into one request.", "prompt")
    return prompts


def new_head(model: str) -> JsonObject:
    """Return what all objects of one completion begin with."""
    return {"id": new_id("cmpl-"), "object": "text_completion", "created": now(), "model": model}
