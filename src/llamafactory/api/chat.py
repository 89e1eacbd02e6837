"""POST /v1/chat/completions."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from ..chat.answer_parts import AnswerReader, Part, read_answer
from ..chat.answer_syntax import Marks, find_opened
from ..chat.requests import ChatRequest, Response, StreamChunk
from ..data.tools import Tool as ToolSpec
from ..data.tools import parse_tools
from ..extras.errors import UserError
from .conversation import read_dialogue, write_tools
from .errors import bad_request, from_user_error
from .objects import (
    JsonObject,
    chat_choice,
    chat_logprobs,
    chat_message,
    count_usage,
    new_id,
    now,
    tool_call,
    usage,
)
from .protocol import ChatCompletionRequest, Tool, ToolChoice
from .service import Service, next_chunk, response_schema, while_connected
from .sse import EventResponse


QUIET_EFFORTS = ("none", "minimal")


@dataclass(frozen=True)
class ChatPlan:
    """A request that is understood: what goes to the engine, and how its answer is read."""

    request: ChatRequest
    tools: tuple[ToolSpec, ...]
    opened: Marks | None
    """The thought that the prompt ends in."""
    model: str
    with_usage: bool
    """A stream ends with a chunk that counts the tokens."""


async def chat_completion(
    service: Service, body: ChatCompletionRequest, request: Request
) -> JsonObject | EventResponse:
    """Answer a conversation, at once or piece by piece."""
    service.check_generates()
    adapter = service.find_adapter(body.model)
    plan = await asyncio.to_thread(plan_chat, service, body, adapter)
    if not body.stream:
        (answers,) = await service.answers(request, [plan.request])
        return completion(service, plan, answers)
    start = time.perf_counter()
    chunks = service.engine.stream_chat(plan.request)
    first = await while_connected(request, next_chunk(chunks))
    service.metrics.first_token.observe(time.perf_counter() - start)
    return EventResponse(stream(service, plan, first, chunks), [chunks], ping_seconds=service.settings.ping_seconds)


def plan_chat(service: Service, body: ChatCompletionRequest, adapter: str | None) -> ChatPlan:
    """Check a request and translate it."""
    dialogue = read_dialogue(body.messages, service.syntax, service.settings.media)
    tools = choose_tools(service, body)
    written = write_tools(tools) if tools else None
    schema = response_schema(body.response_format)
    if schema is not None and tools:
        raise bad_request("response_format and tools exclude each other here; send one of them.", "response_format")
    thinking = wants_thinking(body)
    options = service.options(
        body,
        max_new_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        json_schema=schema,
        skip_special_tokens=False if service.syntax.needs_control_tokens else None,
    )
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs: true.", "top_logprobs")
    if schema is not None and thinking is None and service.syntax.thought_marks:
        thinking = False  # a thought is no JSON
    request = ChatRequest(
        messages=dialogue.messages,
        system=dialogue.system,
        tools=written,
        options=options,
        adapter=adapter,
        thinking=thinking,
    )
    opened = find_opened(service.engine, service.syntax, request)
    if schema is not None and opened is not None:
        raise bad_request(
            "This model begins its answers with a thought, which a JSON schema does not allow; send one of "
            "`enable_thinking: false` and no response_format.",
            "response_format",
        )
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    return ChatPlan(request, parse_tools(written) if written else (), opened, body.model, with_usage)


def choose_tools(service: Service, body: ChatCompletionRequest) -> list[Tool]:
    """Return the tools that the model is shown."""
    tools = list(body.tools or ())
    choice = body.tool_choice
    if not tools:
        if choice is not None and choice not in ("none", "auto"):
            raise bad_request("tool_choice asks for a call, but there are no tools.", "tool_choice")
        return []
    if choice == "none":
        return []
    if choice == "required" or isinstance(choice, ToolChoice):
        raise bad_request(
            "tool_choice can be 'auto' or 'none' here: this server cannot force a model to call a tool.", "tool_choice"
        )
    if body.parallel_tool_calls is False:
        raise bad_request("parallel_tool_calls cannot be switched off here; leave it out.", "parallel_tool_calls")
    if service.syntax.tool_format is None:
        raise bad_request("This model's chat template has no place for tools; name a template when serving.", "tools")
    return tools


def wants_thinking(body: ChatCompletionRequest) -> bool | None:
    """Return whether the request says that the model is to think, or not to; None when it says nothing."""
    options = body.chat_template_kwargs
    for wish in (body.enable_thinking, options.enable_thinking if options else None):
        if wish is not None:
            return wish
    return None if body.reasoning_effort is None else body.reasoning_effort not in QUIET_EFFORTS


def completion(service: Service, plan: ChatPlan, answers: list[Response]) -> JsonObject:
    """Write the whole answer."""
    return {
        "id": new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": now(),
        "model": plan.model,
        "choices": [whole_choice(service, plan, answer) for answer in answers],
        "usage": usage(answers),
    }


def whole_choice(service: Service, plan: ChatPlan, answer: Response) -> JsonObject:
    """Write one choice."""
    parts = read_answer(service.syntax, answer.response_text, plan.tools, plan.opened)
    reason = "tool_calls" if parts.calls and answer.finish_reason == "stop" else answer.finish_reason
    logprobs = chat_logprobs(answer.logprobs) if plan.request.options.logprobs is not None else None
    return {
        "index": answer.index,
        "message": chat_message(parts),
        "logprobs": logprobs,
        "finish_reason": reason,
    }


async def stream(
    service: Service, plan: ChatPlan, first: StreamChunk, chunks: AsyncGenerator[StreamChunk, None]
) -> AsyncGenerator[Mapping[str, Any], None]:
    """Give the chunks of all answers as events; an error behind the first chunk is an event too."""
    head: JsonObject = {"id": new_id("chatcmpl-"), "object": "chat.completion.chunk", "created": now()}
    head["model"] = plan.model
    head |= {"usage": None} if plan.with_usage else {}
    writers = [ChoiceWriter(service, plan, index) for index in range(plan.request.options.num_return_sequences)]
    lengths = [first] * len(writers)
    async with aclosing(chunks):
        for writer in writers:
            yield head | {"choices": [chat_choice(writer.index, {"role": "assistant", "content": ""}, None)]}
        chunk: StreamChunk | None = first
        try:
            while chunk is not None:
                lengths[chunk.index] = chunk
                for choice in writers[chunk.index].write(chunk):
                    yield head | {"choices": [choice]}
                chunk = await anext(chunks, None)
        except UserError as error:
            yield from_user_error(error).as_dict()
            return
    if plan.with_usage:
        counts = (first.prompt_length, sum(last.response_length for last in lengths), first.cached_length)
        yield head | {"choices": [], "usage": count_usage(*counts)}


class ChoiceWriter:
    """Turns the chunks of one answer into choices of events."""

    def __init__(self, service: Service, plan: ChatPlan, index: int) -> None:
        self.index = index
        self.reader = AnswerReader(service.syntax, plan.tools, plan.opened)
        self.has_logprobs = plan.request.options.logprobs is not None
        self.num_calls = 0

    def write(self, chunk: StreamChunk) -> list[JsonObject]:
        """Return what a chunk makes known; log-probabilities go with the first piece."""
        parts = self.reader.add(chunk.text)
        if chunk.finish_reason is not None:
            parts += self.reader.finish()
        deltas = [self._delta(part) for part in parts]
        logprobs = chat_logprobs(chunk.logprobs) if self.has_logprobs and chunk.logprobs else None
        if logprobs and not deltas:
            deltas = [{"content": ""}]
        choices = [chat_choice(self.index, delta, None) for delta in deltas]
        if logprobs:
            choices[0]["logprobs"] = logprobs
        if chunk.finish_reason is not None:
            reason = "tool_calls" if self.num_calls and chunk.finish_reason == "stop" else chunk.finish_reason
            choices.append(chat_choice(self.index, {}, reason))
        return choices

    def _delta(self, part: Part) -> JsonObject:
        if part.call is None:
            return {"reasoning_content" if part.kind == "thought" else "content": part.text}
        call = {"index": self.num_calls, **tool_call(part.call)}
        self.num_calls += 1
        return {"tool_calls": [call]}
