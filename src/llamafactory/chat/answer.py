"""One answer that is being written: its tokens, its text, and the chunks that its reader gets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .answer_text import AnswerText
from .requests import FinishReason, GenerationOptions, RankedToken, StreamChunk, TokenLogprob
from .sampling import Ranking, TokenChooser
from .token_bytes import token_bytes


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Event = StreamChunk | BaseException
Sink = Callable[[Event], None]
"""Takes the chunks of all answers of a request, or what went wrong; called from the engine's thread."""


@dataclass(eq=False)
class Job:
    """A request with its prompt, on its way through the engine."""

    prompt: Sequence[int]
    options: GenerationOptions
    sink: Sink
    stop_ids: frozenset[int]
    room: int
    """The most tokens that an answer may have."""
    adapter: str | None = None
    is_streamed: bool = True
    """False: every answer comes as one chunk."""
    inputs: Mapping[str, Any] | None = None
    """Pixels and features that belong to the prompt; such a job is written alone."""
    is_cancelled: bool = False
    is_read: bool = False
    """The prompt was computed once, so that further answers share its pages."""


@dataclass(eq=False)
class Answer:
    """A row of the running batch, or one that waits to become that."""

    job: Job
    index: int
    tokenizer: "PreTrainedTokenizerBase"
    pages: list[int] = field(default_factory=list[int])
    num_stored: int = 0
    """Tokens of prompt and answer whose keys and values are in the pages."""
    num_cached: int = 0
    """Those of them that came from an earlier prompt."""
    last: int = -1
    """The newest token, which the model has not read yet."""
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])

    def __post_init__(self) -> None:
        options = self.job.options
        self.text = AnswerText(
            self.tokenizer,
            self.job.stop_ids,
            options.stop,
            skip_special_tokens=options.arguments.skip_special_tokens,
        )
        self.chooser = TokenChooser(options, self.job.prompt, self.index)
        self.parts: list[str] = []

    @property
    def is_reading(self) -> bool:
        """Whether a part of the prompt is still to be computed."""
        return self.num_stored < len(self.job.prompt)

    @property
    def length(self) -> int:
        """The most tokens that prompt and answer can have; the last one is never read."""
        return len(self.job.prompt) + self.job.room - 1

    def add(self, token: int, ranking: Ranking | None) -> bool:
        """Take the next token and tell the reader; returns whether the answer is finished."""
        self.last = token
        text = self.text.add(token)
        if ranking is not None and not (self.text.is_stopped and token in self.job.stop_ids):
            self.logprobs.append(self._named(token, ranking))
        is_done = self.text.is_stopped or self.text.num_tokens >= self.job.room
        if is_done:
            text += self.text.finish()
        self.parts.append(text)
        if is_done or (self.job.is_streamed and (text or ranking is not None)):
            self.job.sink(self._chunk(is_done))
        return is_done

    def end(self, reason: FinishReason) -> None:
        """Finish the answer where its writer, not its text, says that it is over."""
        self.text.end(reason)
        self.parts.append(self.text.finish())
        self.job.sink(self._chunk(True))

    def _chunk(self, is_last: bool) -> StreamChunk:
        text, logprobs = "".join(self.parts), tuple(self.logprobs)
        self.parts, self.logprobs = [], []
        return StreamChunk(
            text,
            self.text.num_tokens,
            len(self.job.prompt),
            self.text.finish_reason if is_last else None,
            logprobs,
            self.index,
            self.num_cached,
        )

    def _named(self, token: int, ranking: Ranking) -> TokenLogprob:
        top = tuple(RankedToken(other, *self._written(other), logprob) for other, logprob in ranking.top)
        return TokenLogprob(token, *self._written(token), ranking.chosen, top)

    def _written(self, token: int) -> tuple[str, bytes]:
        text = self.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text), token_bytes(self.tokenizer, token)
