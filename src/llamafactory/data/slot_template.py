"""Templates written as slots, read from templates/*.toml."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

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
from .rendering import RenderedTurn, Rendering, Template
from .special_tokens import adds_bos, fill_special_tokens


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent / "templates"
TEXT = StringFormatter(("{{content}}",))
ANSWER = StringFormatter(("{{content}}", {"special": "eos_token"}))
CALLS = FunctionFormatter(ANSWER.slots)
BOS = Piece("bos_token", "special")


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
        messages = join_observations(conversation.messages, self.observation_join)
        for index, message in enumerate(messages):
            if message.role in RESPONSE_ROLES:
                target, rest = self._render_answer(message)
                turns.append(RenderedTurn(source + self.generation.pieces(), target, message))
                source = rest
            else:
                source, lead = source + self._render_prompt(message, index // 2, lead), []
        if messages and messages[-1].role in RESPONSE_ROLES:
            return Rendering(turns, source)
        return Rendering([*turns, RenderedTurn(source + self.generation.pieces(), [], None)], [])

    def render_system(self, conversation: Conversation) -> list[Piece]:
        """Return the system prompt with the tools; nothing when there is neither."""
        system = conversation.system or self.default_system
        tools = "".join(piece.text for piece in self.tools.pieces(content=conversation.tools))
        text = system + tools if system else tools.lstrip("\n")
        return self.system.pieces(content=text) if text else []

    def fix_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> Self:
        """Set the tokens the slots need and write the template into the tokenizer as Jinja.

        A tokenizer that puts a begin-of-text token before plain text has it put in front here too, once.
        """
        vocabulary = tokenizer.get_vocab()
        words = [word for word in self.stop_words if word in vocabulary or self._mentions(word)]
        eos_token = words.pop(0) if self.replace_eos and words else None
        fill_special_tokens(tokenizer, eos_token, words)

        fitted = self
        if adds_bos(tokenizer) and BOS not in [*self.prefix.parts, *self.user.parts[:1]]:
            prefix = EmptyFormatter(({"special": "bos_token"}, *self.prefix.slots))
            fitted = replace(self, prefix=prefix)
        tokenizer.chat_template = write_jinja(fitted)
        return fitted

    def with_tool_format(self, tool_format: str) -> Self:
        """Return the template with another syntax inside the same slots."""
        function = replace(self.function, tool_format=tool_format)
        return replace(self, function=function, tools=replace(self.tools, tool_format=tool_format))

    @cached_property
    def answer_parts(self) -> dict[Role, tuple[tuple[Piece | Place, ...], tuple[Piece | Place, ...]]]:
        """The slots of answers, cut behind the end token."""
        return {
            Role.ASSISTANT: split_after_end(self.assistant, self.stop_words),
            Role.FUNCTION: split_after_end(self.function, self.stop_words),
        }

    def _render_answer(self, message: Message) -> tuple[list[Piece], list[Piece]]:
        formatter = self.function if message.role is Role.FUNCTION else self.assistant
        answer, rest = self.answer_parts[message.role]
        fillings = formatter.fillings({"content": message.content})
        return fill_places(answer, fillings), fill_places(rest, fillings)

    def _render_prompt(self, message: Message, number: int, lead: list[Piece]) -> list[Piece]:
        formatter = self.observation if message.role is Role.OBSERVATION else self.user
        content = [*lead, Piece(message.content, "content")]
        return fill_places(formatter.parts, {"content": content, "idx": [Piece(str(number))]})

    def _mentions(self, word: str) -> bool:
        formatters = (self.prefix, self.system, self.user, self.generation, self.assistant, self.observation)
        parts = [part for formatter in (*formatters, self.function) for part in formatter.parts]
        return any(isinstance(part, Piece) and word in part.text for part in parts)


def load_templates(folder: Path = FOLDER) -> dict[str, SlotTemplate]:
    """Read every table of every file; `inherits` takes over another template's keys."""
    tables: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.toml")):
        for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            if name in tables:
                raise ValueError(f"The template {name!r} stands in two files; one of them is {path.name}.")
            tables[name] = table
    return {name: make_template(name, inherit(name, tables)) for name in tables}


def inherit(name: str, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Put a table over the one it inherits from."""
    table = dict(tables[name])
    parent = table.pop("inherits", None)
    return {**inherit(parent, tables), **table} if parent else table


def make_template(name: str, table: Mapping[str, Any]) -> SlotTemplate:
    """Make a template of one table; observations look like user turns, and calls like answers, unless it says not."""
    keys = dict(table)
    tool_format = keys.pop("tool_format", "default")
    formatters: dict[str, Formatter] = {
        "tools": ToolFormatter(tool_format=tool_format),
        "function": FunctionFormatter(
            keys.pop("function", None) or keys.get("assistant") or ANSWER.slots, tool_format=tool_format
        ),
    }
    keys.setdefault("observation", keys.get("user", ["{{content}}"]))
    for key in ("prefix", "generation"):
        formatters[key] = EmptyFormatter(keys.pop(key, ()))
    for key in ("system", "user", "assistant", "observation"):
        if key in keys:
            formatters[key] = StringFormatter(keys.pop(key))
    keys["stop_words"] = tuple(keys.get("stop_words", ()))
    return SlotTemplate(name=name, **formatters, **keys)


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


def join_observations(messages: Iterable[Message], joint: str) -> list[Message]:
    """Make one message of the answers of several tools that were called together."""
    joined: list[Message] = []
    for is_observation, group in groupby(messages, key=lambda message: message.role is Role.OBSERVATION):
        if is_observation:
            joined.append(Message(Role.OBSERVATION, joint.join(message.content for message in group)))
        else:
            joined.extend(group)
    return joined
