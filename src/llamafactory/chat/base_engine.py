"""What every engine can do. The prompt is always built by the template, as in training.

This is the interface that the HTTP server, the web page, the terminal and ChatModel are written against.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..extras.errors import UserError
from .requests import AnyRequest, ChatRequest, EngineStats, Response, StreamChunk, UnknownAdapterError


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..data.template import Template
    from ..hparams import GeneratingArguments


class BaseEngine(ABC):
    """A loaded model that answers. Every method may be called from any thread and any event loop, at any time.

    Errors of a request are raised by the call (of a stream: by its first step), before any text is given out:
    UserError and its kinds in requests.py (QueueFullError, TooLongError, UnknownAdapterError, EngineStoppedError).
    """

    tokenizer: "PreTrainedTokenizerBase"
    template: "Template"
    generating_args: "GeneratingArguments"
    adapter_names: tuple[str, ...] = ()
    """What a request may name as its `adapter`."""
    can_generate: bool = True
    """False for a reward model, which only has `get_scores`."""

    @abstractmethod
    async def chat(self, request: AnyRequest) -> list[Response]:
        """Return the whole answers, in order, as many as the request asks for; cancelling the call stops the model.

        Raises QueueFullError at once, rather than waiting, when as many answers wait as may wait.
        """

    @abstractmethod
    def stream_chat(self, request: AnyRequest) -> AsyncGenerator[StreamChunk, None]:
        """Give the answers piece by piece, those of several answers mixed, each chunk with the index of its answer.

        Each answer ends with one chunk that has a finish reason. Closing the generator early (aclose, or cancelling
        the task that reads it) takes the answers out of the running batch at once.
        """

    async def get_scores(self, texts: Sequence[str], max_length: int | None = None) -> list[float]:
        """Return a reward model's score of each text, which is read as it stands and cut to `max_length` tokens."""
        raise UserError(
            f"This model has no score ({len(texts)} texts to judge, at most {max_length or 'all'} tokens each); "
            "load a reward model with `stage: rm`."
        )

    def stats(self) -> EngineStats:
        """Return the counters of now; cheap."""
        return EngineStats()

    @abstractmethod
    def close(self) -> None:
        """Stop the engine and free its threads; answers that are still running get EngineStoppedError."""

    def encode_prompt(self, request: AnyRequest) -> list[int]:
        """Return the ids that the model reads, from the one place that also writes training data."""
        if not isinstance(request, ChatRequest):
            return self._encode_text(request.prompt)
        template = self.template
        if request.thinking is not None:
            template = replace(template, enable_thinking=request.thinking)
        return template.encode_prompt(self.tokenizer, request.messages, request.system, request.tools)

    def check_adapter(self, request: AnyRequest) -> None:
        """Refuse an adapter that is not served."""
        if request.adapter is not None and request.adapter not in self.adapter_names:
            known = ", ".join(self.adapter_names) or "none"
            raise UnknownAdapterError(f"The adapter {request.adapter!r} is not served; those that are: {known}.")

    def _encode_text(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            ids: list[int] = self.tokenizer(prompt).input_ids
        else:
            ids = list(prompt)
        size = len(self.tokenizer)
        if not ids:
            raise UserError("The prompt is empty; there is nothing to continue.")
        wrong = [token for token in ids if not 0 <= token < size]
        if wrong:
            raise UserError(f"The prompt has the token {wrong[0]}; this model's tokens go from 0 to {size - 1}.")
        return ids
