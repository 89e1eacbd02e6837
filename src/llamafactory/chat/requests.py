"""What goes into an engine and what comes out of it; every engine speaks these types.

A request is a `ChatRequest` (a conversation, written by the template) or a `CompletionRequest` (a plain prompt), with
`GenerationOptions` made by `generation_options`. Answers come back as `Response`s, or as `StreamChunk`s of which each
names the answer that it belongs to.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..data.conversation import Message
from ..extras.errors import UserError
from ..extras.registry import did_you_mean
from ..hparams import GeneratingArguments


if TYPE_CHECKING:
    from torch import Tensor


FinishReason = Literal["stop", "length"]
"""`stop`: the model ended the answer, or a stop text or stop id did; `length`: it was cut."""
Messages = Iterable[Message | Mapping[str, Any]]

MAX_LOGPROBS = 20
MAX_ANSWERS = 128


class QueueFullError(UserError):
    """As many requests wait already as may wait; the same request may be tried again later (HTTP 429)."""


class TooLongError(UserError):
    """Prompt and answer do not fit into what the model can read (HTTP 400, `context_length_exceeded`)."""


class UnknownAdapterError(UserError):
    """The request names an adapter that is not on the list of those that are served (HTTP 404)."""


class EngineStoppedError(UserError):
    """The engine was closed before the answer was finished (HTTP 503)."""


class TokenGrammar(Protocol):
    """Decides token by token what one answer may contain; a JSON schema compiled by a grammar library, for example.

    One object serves one answer and is used by one thread.
    """

    def allowed(self) -> "Tensor | None":
        """Return which tokens may come next: bool [V] on the CPU, or None for all.

        It may be shorter than the vocabulary; what lies behind its end is not allowed. The stop ids have to be in it
        where the answer may end, and nothing else once it must end.
        """
        ...

    def accept(self, token: int) -> None:
        """Take the token that was chosen, one of the allowed ones."""
        ...


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How one answer is generated: the run's generating arguments with what the call changed.

    The scores of the next token are changed in this order: logit_bias, repetition, presence and frequency penalty,
    grammar, temperature, top_k, top_p, min_p. Log-probabilities are those of the model, before all of that.
    """

    arguments: GeneratingArguments
    """do_sample, temperature, top_p, top_k, repetition_penalty (over prompt and answer), max_new_tokens, ..."""
    num_return_sequences: int = 1
    """How many answers; answer i of a seeded request draws from seed and i."""
    seed: int | None = None
    """Repeats a sampled answer, whatever runs beside it; None draws a fresh one."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer, besides the template's own."""
    ignore_eos: bool = False
    """Goes on after stop tokens until the cap; for measurements."""
    min_p: float = 0.0
    """Draws only from words that have at least this share of the likeliest one's probability."""
    presence_penalty: float = 0.0
    """OpenAI's: taken off the score of every token that the answer has already."""
    frequency_penalty: float = 0.0
    """OpenAI's: taken off the score of a token once for every time that the answer has it already."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """OpenAI's: (token, number added to its score)."""
    logprobs: int | None = None
    """Return each token's log-probability, with those of this many likeliest tokens (0: its own only)."""
    grammar: Callable[[], TokenGrammar] | None = None
    """Makes the grammar that an answer has to follow; called once for every answer."""
    json_schema: str | None = None
    """The JSON schema that an answer has to follow, as text; the engine makes the grammar of it."""

    @property
    def is_sampled(self) -> bool:
        """Whether the answer is drawn, rather than always the likeliest."""
        return self.arguments.do_sample and self.arguments.temperature > 0


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A conversation that waits for its next answer."""

    messages: Sequence[Message | Mapping[str, Any]]
    system: str | None = None
    tools: str | None = None
    """A JSON list of tool definitions."""
    options: GenerationOptions
    adapter: str | None = None
    """One of the engine's `adapter_names`; None is the model as it was loaded."""
    thinking: bool | None = None
    """Whether the model is to think; None leaves it to the run's `enable_thinking`."""


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A text that is to be continued as it stands, without any template."""

    prompt: str | Sequence[int]
    """Text (special tokens are read as such, as the tokenizer does by default) or token ids."""
    options: GenerationOptions
    adapter: str | None = None


AnyRequest = ChatRequest | CompletionRequest


@dataclass(frozen=True)
class RankedToken:
    """A token that could have been chosen."""

    token_id: int
    text: str
    """Its text alone; a part of a character shows as U+FFFD, `raw` has the bytes."""
    raw: bytes
    logprob: float


@dataclass(frozen=True)
class TokenLogprob(RankedToken):
    """A chosen token with its natural log-probability, and the likeliest ones at its place."""

    top: tuple[RankedToken, ...] = ()


@dataclass(frozen=True)
class Response:
    """One whole answer; lengths are in tokens, the one that stopped it included."""

    response_text: str
    response_length: int
    prompt_length: int
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    """One per token that the text consists of; empty unless asked for."""
    index: int = 0
    """Which of the request's answers this is."""
    cached_length: int = 0
    """How much of the prompt was not computed again, because an earlier request had the same beginning."""


@dataclass(frozen=True)
class StreamChunk:
    """A piece of one answer; the last one of each answer says why it ended.

    Lengths are those up to here. The texts of all chunks with one index, joined, are the text of the answer. A chunk
    may have no text: a token can be a part of a character, or the beginning of what may become a stop text.
    """

    text: str
    response_length: int
    prompt_length: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    """Those of the tokens that came since the last chunk of this answer."""
    index: int = 0
    cached_length: int = 0


@dataclass(frozen=True)
class EngineStats:
    """Counters of an engine since it was started, for /health and /metrics."""

    num_running: int = 0
    """Answers that are being written now."""
    num_waiting: int = 0
    """Answers that wait for their turn."""
    max_running: int = 1
    max_waiting: int = 0
    num_requests: int = 0
    """Requests that were accepted."""
    num_refused: int = 0
    """Requests refused because the queue was full."""
    num_cancelled: int = 0
    """Answers whose reader left."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Those of the prompt tokens that did not have to be computed."""
    num_answer_tokens: int = 0


def generation_options(arguments: GeneratingArguments, changes: Mapping[str, Any]) -> GenerationOptions:
    """Put a call's own options over the run's; None means "as the run has it", an unknown name is a UserError.

    The names are those of GeneratingArguments and of GenerationOptions, and `n` for num_return_sequences. A call that
    gives only `max_length` means prompt and answer together, so the run's `max_new_tokens` yields to it.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if "n" in given:
        given["num_return_sequences"] = given.pop("n")
    if "max_length" in given and "max_new_tokens" not in given:
        given["max_new_tokens"] = 0
    names = [item.name for item in fields(GenerationOptions) if item.name != "arguments"]
    own = {name: given.pop(name) for name in names if name in given}
    known = [item.name for item in fields(arguments)]
    for name in given:
        if name not in known:
            raise UserError(f"Unknown generation option {name!r}.{did_you_mean(name, [*known, *names])}")
    if isinstance(own.get("stop"), str):
        own["stop"] = (own["stop"],)
    for name in ("stop", "stop_token_ids"):
        if name in own:
            own[name] = tuple(own[name])
    if "json_schema" in own and not isinstance(own["json_schema"], str):
        own["json_schema"] = json.dumps(own["json_schema"])
    if isinstance(bias := own.get("logit_bias"), Mapping):
        pairs: Iterable[tuple[Any, Any]] = bias.items()
        own["logit_bias"] = tuple((int(token), float(value)) for token, value in pairs)
    options = GenerationOptions(arguments=replace(arguments, **given), **own)
    check_options(options)
    return options


def check_options(options: GenerationOptions) -> None:
    """Refuse numbers that mean nothing."""
    limits: tuple[tuple[str, float, float], ...] = (
        ("min_p", 0, 1),
        ("presence_penalty", -2, 2),
        ("frequency_penalty", -2, 2),
    )
    for name, low, high in limits:
        value: float = getattr(options, name)
        if not low <= value <= high:
            raise UserError(f"{name} is {value}; it goes from {low} to {high}.")
    if options.num_return_sequences < 1:
        raise UserError(f"num_return_sequences is {options.num_return_sequences}; ask for at least one answer.")
    if options.num_return_sequences > MAX_ANSWERS:
        raise UserError(f"num_return_sequences is {options.num_return_sequences}; at most {MAX_ANSWERS} are possible.")
    if options.logprobs is not None and not 0 <= options.logprobs <= MAX_LOGPROBS:
        raise UserError(f"logprobs is {options.logprobs}; it goes from 0 to {MAX_LOGPROBS}.")
