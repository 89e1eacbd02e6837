"""Templates written as slots; template_files.py reads them from templates/*.toml."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Self

from .conversation import RESPONSE_ROLES, Conversation, Message, Role
from .encoding import TextEncoder
from .formatter import (
    EmptyFormatter,
    Formatter,
    FunctionFormatter,
    Piece,
    Place,
    StringFormatter,
    ToolFormatter,
    fill_places,
)
from .jinja_writer import write_jinja
from .modelfile_writer import write_modelfile
from .rendering import RenderedTurn, Rendering, Template
from .special_tokens import adds_bos, fill_special_tokens
from .thinking import Standing, Thinking, strip_lead


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT = StringFormatter(("{{content}}",))
ANSWER = StringFormatter(("{{content}}", {"special": "eos_token"}))
CALLS = FunctionFormatter(ANSWER.slots)


@dataclass(frozen=True, kw_only=True)
class SlotTemplate(Template):
    """A template as slots for each role; `generation` is what stands between a prompt and its answer."""

    prefix: EmptyFormatter = field(default_factory=EmptyFormatter)
    system: StringFormatter = TEXT
    user: StringFormatter = TEXT
    generation: EmptyFormatter = field(default_factory=EmptyFormatter)
    assistant: StringFormatter = ANSWER
    observation: StringFormatter = TEXT
    function: FunctionFormatter = CALLS
    tools: ToolFormatter = field(default_factory=ToolFormatter)
    observation_join: str = "\n"
    """What stands between the answers of tools that were called together."""
    thinking: Thinking | None = None
    """How thoughts are written; None for models that do not reason."""
    system_thinking: StringFormatter | None = None
    """The system turn when the model is to think, where it differs."""
    system_in_user: bool = False
    """The system prompt is part of the first user turn."""
    replace_eos: bool = False
    """The first stop word becomes the tokenizer's end-of-text token."""

    def render(self, encoder: TextEncoder, conversation: Conversation) -> Rendering:
        """Fill the slots, turn by turn."""
        source = self.prefix.pieces()
        lead = self.render_system(conversation)
        if not self.system_in_user:
            source, lead = source + lead, []

        turns: list[RenderedTurn] = []
        groups = group_observations(conversation.messages)
        question = max((index for index, group in enumerate(groups) if group[-1].role is Role.USER), default=-1)
        for index, group in enumerate(groups):
            message = group[-1]
            if message.role in RESPONSE_ROLES:
                is_history = index < question and not self.preserve_thinking
                standing = Standing(is_history, is_last=index == len(groups) - 1)
                head, target, rest = self._render_answer(message, conversation.tools, standing)
                turns.append(RenderedTurn(source + self.generation.pieces() + head, target, message))
                source = rest
            else:
                source, lead = source + self._render_prompt(group, index // 2, lead), []
        if groups and groups[-1][-1].role in RESPONSE_ROLES:
            return Rendering(turns, source)
        return Rendering([*turns, RenderedTurn(source + self.opening, [], None)], [])

    def render_system(self, conversation: Conversation) -> list[Piece]:
        """Return the system prompt with the tools; nothing when there is neither."""
        system = conversation.system or self.default_system
        tools = self.tools.pieces(content=conversation.tools, system=system)
        if tools and not system:
            tools[0] = tools[0]._replace(text=tools[0].text.lstrip("\n"))
        content = [Piece(system, "content"), *tools] if system else tools
        return fill_places(self.system_slots.parts, {"content": content}) if content else []

    @property
    def system_slots(self) -> StringFormatter:
        """The slots of the system turn; some families switch thinking on in it."""
        return self.system_thinking if self.system_thinking and self.enable_thinking else self.system

    @property
    def opening(self) -> list[Piece]:
        """What a prompt ends with: the header of an answer, and an empty thought when the model is not to think."""
        if self.thinking is None or self.enable_thinking:
            return self.generation.pieces()
        return [*self.generation.pieces(), *self.answer_lead, Piece(self.thinking.empty_thought)]

    def fix_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> Self:
        """Set the tokens the slots need and write the template into the tokenizer as Jinja.

        A tokenizer that puts a begin-of-text token before plain text has it put in front here too, once.
        """
        vocabulary = tokenizer.get_vocab()
        words = [word for word in self.stop_words if word in vocabulary or self._mentions(word)]
        eos_token = words.pop(0) if self.replace_eos and words else None
        fill_special_tokens(tokenizer, eos_token, words)

        fitted = self
        if adds_bos(tokenizer) and not self.starts_with(tokenizer, str(tokenizer.bos_token)):
            prefix = EmptyFormatter(({"special": "bos_token"}, *self.prefix.slots))
            fitted = replace(self, prefix=prefix)
        tokenizer.chat_template = write_jinja(fitted)
        return fitted

    def get_ollama_modelfile(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Write the template as an Ollama Modelfile."""
        return write_modelfile(self, tokenizer)

    def with_tool_format(self, tool_format: str) -> Self:
        """Return the template with another syntax inside the same slots."""
        function = replace(self.function, tool_format=tool_format)
        return replace(self, function=function, tools=replace(self.tools, tool_format=tool_format))

    def starts_with(self, tokenizer: "PreTrainedTokenizerBase", token: str) -> bool:
        """Tell whether the text of every conversation starts with a token."""
        turns = [self.user] if self.system_in_user else [self.user, self.system]
        starts = [self.prefix] if self.prefix.parts else turns
        return all(text_of(formatter.parts[:1], tokenizer).startswith(token) for formatter in starts)

    @cached_property
    def answer_parts(self) -> dict[Role, tuple[tuple[Piece | Place, ...], tuple[Piece | Place, ...]]]:
        """The slots of answers, cut behind the end token."""
        return {
            Role.ASSISTANT: split_after_end(self.assistant, self.stop_words),
            Role.FUNCTION: split_after_end(self.function, self.stop_words),
        }

    @cached_property
    def answer_lead(self) -> tuple[Piece, ...]:
        """What stands in an answer before its content, and so before a thought."""
        lead = takewhile(lambda part: isinstance(part, Piece), self.assistant.parts)
        return tuple(part for part in lead if isinstance(part, Piece))

    def _render_answer(
        self, message: Message, tools: str, standing: Standing
    ) -> tuple[list[Piece], list[Piece], list[Piece]]:
        """Return what is given to the model, what it learns, and what follows the end token."""
        formatter = self.function if message.role is Role.FUNCTION else self.assistant
        answer, rest = self.answer_parts[message.role]
        thought, words = self.thinking.split(message.content) if self.thinking else ("", message.content)
        fillings = formatter.fillings({"content": words, "tools": tools})
        if standing.is_history or self.enable_thinking is False:
            thought = ""
        is_filled = self.thinking is not None and not thought and self.thinking.fills(standing)
        if self.thinking is None or not (thought or is_filled):
            return [], fill_places(answer, fillings), fill_places(rest, fillings)

        written = self.thinking.write(thought) if thought else [Piece(self.thinking.empty_thought)]
        head = [*self.answer_lead, *written]
        body = fill_places(strip_lead(answer, self.answer_lead), fillings)
        is_given = is_filled and (standing.is_history or not self.enable_thinking)
        return head if is_given else [], body if is_given else head + body, fill_places(rest, fillings)

    def _render_prompt(self, group: Sequence[Message], number: int, lead: list[Piece]) -> list[Piece]:
        formatter = self.observation if group[-1].role is Role.OBSERVATION else self.user
        content = [*lead]
        for index, message in enumerate(group):
            content += [Piece(self.observation_join)] if index else []
            content.append(Piece(message.content, "content"))
        return fill_places(formatter.parts, {"content": content, "idx": [Piece(str(number))]})

    def _mentions(self, word: str) -> bool:
        formatters = (self.prefix, self.system, self.user, self.generation, self.assistant, self.observation)
        parts = [part for formatter in (*formatters, self.function) for part in formatter.parts]
        return any(isinstance(part, Piece) and word in part.text for part in parts)


def split_after_end(
    formatter: Formatter, stop_words: Iterable[str]
) -> tuple[tuple[Piece | Place, ...], tuple[Piece | Place, ...]]:
    """Cut slots behind the first end token that follows the content; all of them are the answer when there is none."""
    parts = formatter.parts
    last_place = max(index for index, part in enumerate(parts) if isinstance(part, Place))
    for index in range(last_place + 1, len(parts)):
        part = parts[index]
        if part == Piece("eos_token", "special"):
            return parts[: index + 1], parts[index + 1 :]
        ends = [part[0].index(word) + len(word) for word in stop_words if word in part[0]]
        if ends:
            answer, rest = Piece(part[0][: min(ends)]), Piece(part[0][min(ends) :])
            return (*parts[:index], answer), ((rest,) if rest.text else ()) + parts[index + 1 :]
    return parts, ()


def text_of(parts: Iterable[Piece | Place], tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text of the parts that are not places."""
    pieces = [part for part in parts if isinstance(part, Piece)]
    return "".join(getattr(tokenizer, piece.text) or "" if piece.kind == "special" else piece.text for piece in pieces)


def group_observations(messages: Iterable[Message]) -> list[tuple[Message, ...]]:
    """Put the answers of several tools that were called together into one group; other messages stand alone."""
    groups: list[tuple[Message, ...]] = []
    for is_observation, members in groupby(messages, key=lambda message: message.role is Role.OBSERVATION):
        group = tuple(members)
        groups.extend([group] if is_observation else [(message,) for message in group])
    return groups
