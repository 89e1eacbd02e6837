"""What goes into an engine and what comes out of it; every engine speaks these types."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ..data.conversation import Message
from ..extras.errors import UserError
from ..extras.registry import did_you_mean
from ..hparams import GeneratingArguments


FinishReason = Literal["stop", "length"]
Messages = Iterable[Message | Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How one answer is generated: the run's generating arguments with what the call changed."""

    arguments: GeneratingArguments
    num_return_sequences: int = 1
    seed: int | None = None
    """Repeats a sampled answer; None draws a fresh one."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""

    @property
    def is_sampled(self) -> bool:
        return self.arguments.do_sample and self.arguments.temperature > 0


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A conversation that waits for its next answer."""

    messages: Sequence[Message | Mapping[str, Any]]
    system: str | None = None
    tools: str | None = None
    options: GenerationOptions


@dataclass(frozen=True)
class Response:
    """One whole answer; lengths are in tokens, the one that stopped it included."""

    response_text: str
    response_length: int
    prompt_length: int
    finish_reason: FinishReason


@dataclass(frozen=True)
class StreamChunk:
    """A piece of an answer; the last one of a stream says why it ended."""

    text: str
    response_length: int
    prompt_length: int
    finish_reason: FinishReason | None = None


def generation_options(arguments: GeneratingArguments, changes: Mapping[str, Any]) -> GenerationOptions:
    """Put a call's own options over the run's; None means "as the run has it", an unknown name is a UserError.

    A call that gives only `max_length` means prompt and answer together, so the run's `max_new_tokens` yields to it.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if "max_length" in given and "max_new_tokens" not in given:
        given["max_new_tokens"] = 0
    own = {name: given.pop(name) for name in ("num_return_sequences", "seed", "stop") if name in given}
    known = [item.name for item in fields(arguments)]
    for name in given:
        if name not in known:
            raise UserError(f"Unknown generation option {name!r}.{did_you_mean(name, [*known, *own])}")
    if isinstance(own.get("stop"), str):
        own["stop"] = (own["stop"],)
    options = GenerationOptions(
        arguments=replace(arguments, **given),
        num_return_sequences=int(own.get("num_return_sequences", 1)),
        seed=own.get("seed"),
        stop=tuple(own.get("stop", ())),
    )
    if options.num_return_sequences < 1:
        raise UserError(f"num_return_sequences is {options.num_return_sequences}; ask for at least one answer.")
    return options
