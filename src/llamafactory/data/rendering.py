"""What every template gives: turns as pieces, turns as ids, and the calls that chat, api and training use.

All ids of an encoded conversation, in order, are the ids of the whole text; label masks follow from the turns.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ..extras.errors import UserError
from .conversation import RESPONSE_ROLES, Conversation, Message, RowDropped, as_conversation
from .encoding import Chunk, TextEncoder, encoder_of
from .formatter import Piece


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Iterable[Message | Mapping[str, Any]]


class RenderedTurn(NamedTuple):
    """What the model reads (source) and the answer it learns, up to and with its end token (target)."""

    source: list[Piece]
    target: list[Piece]
    message: Message | None  # the answer; None when the source is an open prompt


class Rendering(NamedTuple):
    """A conversation as turns; closing is template text after the last end token, which nobody has to learn."""

    turns: list[RenderedTurn]
    closing: list[Piece]


class EncodedTurn(NamedTuple):
    """A RenderedTurn as ids."""

    source: list[int]
    target: list[int]
    message: Message | None


class EncodedConversation(NamedTuple):
    """A Rendering as ids."""

    turns: list[EncodedTurn]
    closing: list[int]


@dataclass(frozen=True, kw_only=True)
class Template(ABC):
    """One way to write conversations; it never changes after it is made."""

    name: str
    default_system: str = ""
    stop_words: tuple[str, ...] = ()
    efficient_eos: bool = False
    """The end-of-text token is not part of an answer; it closes the whole row, once."""
    allow_special_tokens: bool = False
    """Control tokens that stand in the texts of a conversation count as such."""
    enable_thinking: bool | None = True
    """False takes all thoughts away; False and None put an empty thought where the prompt ends."""
    preserve_thinking: bool = False
    """Keeps the thoughts of answers before the last question."""

    @abstractmethod
    def render(self, encoder: TextEncoder, conversation: Conversation) -> Rendering:
        """Return the turns as pieces; a conversation that ends with a user turn ends in an open prompt."""

    @abstractmethod
    def fix_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> Self:
        """Give the tokenizer what the template needs; return the template as it fits that tokenizer."""

    @abstractmethod
    def with_tool_format(self, tool_format: str) -> Self:
        """Return the same template with another syntax for tools and calls."""

    def with_thinking(self, enable_thinking: bool | None, preserve_thinking: bool) -> Self:
        """Return the same template with other rules for the thoughts of reasoning models."""
        return replace(self, enable_thinking=enable_thinking, preserve_thinking=preserve_thinking)

    def encode_conversations(
        self, tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Conversation]
    ) -> list[EncodedConversation | RowDropped]:
        """Encode many conversations at once; one that cannot be rendered gives its reason instead."""
        encoder = encoder_of(tokenizer, self.allow_special_tokens)
        renderings = [self._try_render(encoder, conversation) for conversation in conversations]
        rows = [_chunks_of(rendering) for rendering in renderings if isinstance(rendering, Rendering)]
        encoded = iter(encoder.encode(rows))
        return [
            rendering if isinstance(rendering, RowDropped) else _fold(rendering, next(encoded))
            for rendering in renderings
        ]

    def encode_oneturn(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        messages: Messages,
        system: str | None = None,
        tools: str | None = None,
    ) -> tuple[list[int], list[int]]:
        """Return the ids of everything before the last answer, and of that answer."""
        *history, (source, target) = self.encode_multiturn(tokenizer, messages, system, tools)
        return [number for pair in history for ids in pair for number in ids] + source, target

    def encode_multiturn(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        messages: Messages,
        system: str | None = None,
        tools: str | None = None,
    ) -> list[tuple[list[int], list[int]]]:
        """Return one pair (source ids, target ids) per answer; in order they are the ids of the whole text."""
        (encoded,) = self.encode_conversations(tokenizer, [as_conversation(messages, system, tools)])
        if isinstance(encoded, RowDropped):
            raise UserError(f"This conversation cannot be put into the template {self.name!r}: {encoded}.")
        pairs = [(turn.source, turn.target) for turn in encoded.turns]
        return [*pairs[:-1], (pairs[-1][0], pairs[-1][1] + encoded.closing)]

    def encode_prompt(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        messages: Messages,
        system: str | None = None,
        tools: str | None = None,
    ) -> list[int]:
        """Return the ids after which the model writes its next answer; the last message is not an answer."""
        conversation = as_conversation(messages, system, tools)
        if not conversation.messages or conversation.messages[-1].role in RESPONSE_ROLES:
            raise ValueError("A prompt ends with a user or tool message; here is nothing to answer.")
        return self.encode_oneturn(tokenizer, conversation.messages, conversation.system, conversation.tools)[0]

    def get_stop_token_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Return the ids that end an answer: end-of-text first, then the stop words."""
        vocabulary = tokenizer.get_vocab()
        words = (tokenizer.eos_token, *self.stop_words)
        return list(dict.fromkeys(vocabulary[word] for word in words if word in vocabulary))

    def get_ollama_modelfile(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the text of an Ollama Modelfile; only named templates can be written as one."""
        raise UserError("An Ollama Modelfile is written from a named template; name one, for instance chatml.")

    def _try_render(self, encoder: TextEncoder, conversation: Conversation) -> Rendering | RowDropped:
        try:
            return self.render(encoder, conversation)
        except RowDropped as reason:
            return reason


def _chunks_of(rendering: Rendering) -> list[Chunk]:
    """Lay the chunks of a conversation in a row: source, target, source, target, ..., closing."""
    chunks: list[Chunk] = [part for turn in rendering.turns for part in (turn.source, turn.target)]
    return [*chunks, rendering.closing]


def _fold(rendering: Rendering, ids: list[list[int]]) -> EncodedConversation:
    """Put the ids of the chunks back into turns."""
    turns = [
        EncodedTurn(ids[2 * index], ids[2 * index + 1], turn.message) for index, turn in enumerate(rendering.turns)
    ]
    return EncodedConversation(turns, ids[-1])
