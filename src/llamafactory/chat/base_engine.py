"""What every engine can do. The prompt is always built by the template, as in training."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from .requests import ChatRequest, Response, StreamChunk


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..data.template import Template
    from ..hparams import GeneratingArguments


class BaseEngine(ABC):
    """A loaded model that answers; all calls come from one event loop."""

    tokenizer: "PreTrainedTokenizerBase"
    template: "Template"
    generating_args: "GeneratingArguments"

    @abstractmethod
    async def chat(self, request: ChatRequest) -> list[Response]:
        """Return the whole answers: as many as the request asks for."""

    @abstractmethod
    def stream_chat(self, request: ChatRequest) -> AsyncGenerator[StreamChunk, None]:
        """Give one answer piece by piece; closing the generator early stops the model."""

    def encode_prompt(self, request: ChatRequest) -> list[int]:
        """Return the ids that the model reads, from the one place that also writes training data."""
        return self.template.encode_prompt(self.tokenizer, request.messages, request.system, request.tools)
