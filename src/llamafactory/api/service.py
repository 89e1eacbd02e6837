"""What every route needs: the engine, who may be asked for, and options in the engine's words."""

import asyncio
import functools
import json
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request

from ..chat.answer_syntax import find_syntax
from ..chat.requests import AnyRequest, GenerationOptions, Response, StreamChunk, generation_options
from .errors import ApiError, bad_request
from .metrics import Metrics
from .protocol import GenerationRequest, ResponseFormat
from .settings import Settings
from .sse import wait_for_disconnect


if TYPE_CHECKING:
    from ..chat.base_engine import BaseEngine

Value = TypeVar("Value")


class ClientGone(Exception):  # noqa: N818  (nobody's mistake)
    """The client left before there was anything to send."""


def response_schema(wanted: ResponseFormat | None) -> str | None:
    """Return the JSON schema that an answer has to follow, or None."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return json.dumps({"type": "object"})
    if wanted.json_schema is None or wanted.json_schema.json_schema is None:
        raise bad_request("response_format.json_schema.schema is missing.", "response_format.json_schema")
    return json.dumps(wanted.json_schema.json_schema)


class Service:
    """One engine behind one server."""

    def __init__(self, engine: "BaseEngine", settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(engine)
        self.syntax = find_syntax(engine.template, engine.tokenizer)

    @property
    def model_names(self) -> dict[str, str | None]:
        """The names that requests may use, each with the adapter it stands for."""
        base = self.settings.model_name
        return {base: None} | {f"{base}:{adapter}": adapter for adapter in self.engine.adapter_names}

    def find_adapter(self, model: str) -> str | None:
        """Return the adapter that a request's `model` names; an unknown name is a 404."""
        names = self.model_names
        if model not in names:
            message = f"The model {model!r} does not exist; this server has: {', '.join(names)}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return names[model]

    def check_generates(self) -> None:
        """Refuse to chat with a reward model."""
        if not self.engine.can_generate:
            message = (
                "This server holds a reward model: it scores texts (POST /v1/score/evaluation), it does not write."
            )
            raise ApiError(405, message, code="not_a_chat_model")

    def options(self, body: GenerationRequest, **more: Any) -> GenerationOptions:
        """Translate the options that both kinds of completions share."""
        arguments = self.engine.generating_args
        greedy = body.temperature == 0 or body.top_p == 0
        do_sample = body.do_sample
        if do_sample is None and (greedy or body.temperature is not None):
            do_sample = not greedy
        options: dict[str, Any] = {
            "do_sample": do_sample,
            "temperature": body.temperature if body.temperature else None,
            "top_p": body.top_p if body.top_p else None,
            "top_k": max(body.top_k, 0) if body.top_k is not None else None,
            "max_new_tokens": body.max_tokens,
            "repetition_penalty": body.repetition_penalty,
            "n": body.n,
            "seed": body.seed,
            "stop": body.stop,
            "stop_token_ids": body.stop_token_ids,
            "ignore_eos": body.ignore_eos,
            "min_p": body.min_p,
            "presence_penalty": body.presence_penalty,
            "frequency_penalty": body.frequency_penalty,
            "logit_bias": self._read_bias(body.logit_bias),
        }
        return generation_options(arguments, {**options, **more})

    async def answers(self, request: Request, asked: Sequence[AnyRequest]) -> list[list[Response]]:
        """Get the whole answers of one or more requests; when one fails or the client leaves, all end."""

        async def gather() -> list[list[Response]]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.engine.chat(item)) for item in asked]
            return [task.result() for task in tasks]

        try:
            return await while_connected(request, gather())
        except BaseExceptionGroup as group:
            raise first_error(group) from None

    async def scores(self, request: Request, texts: Sequence[str], max_length: int | None) -> list[float]:
        """Get the scores of texts."""
        return await while_connected(request, self.engine.get_scores(texts, max_length))

    @functools.cached_property
    def vocabulary_size(self) -> int:
        """The number of tokens that exist."""
        return len(self.engine.tokenizer)

    def _read_bias(self, bias: dict[str, float] | None) -> dict[int, float] | None:
        read: dict[int, float] = {}
        for token, value in (bias or {}).items():
            if not (token.isascii() and token.isdigit()) or int(token[:10]) >= self.vocabulary_size:
                limit = self.vocabulary_size - 1
                raise bad_request(
                    f"logit_bias has the token {token[:20]!r}; tokens go from 0 to {limit}.", "logit_bias"
                )
            read[int(token)] = value
        return read or None


async def while_connected(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """Do the work; stop it and raise ClientGone when the client leaves first."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(wait_for_disconnect(request.receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def next_chunk(chunks: Any) -> StreamChunk:
    """Return the first chunk of a stream, which raises what is wrong with the request."""
    return await anext(chunks)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first plain exception of a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
