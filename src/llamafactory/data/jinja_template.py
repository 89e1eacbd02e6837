"""The model's own Jinja chat template, with exact bounds of every answer.

The text is always the one that the whole conversation renders to. An answer starts where the prompt before it,
rendered alone, ends; where a template rewrites history (Qwen 3 drops earlier thoughts), it starts behind the header
that stands in front of every answer. Its end is found by rendering once more with the answer replaced by a mark: what
then follows the mark is what follows the answer.

Rendering is most of the work, so answers are looked for in the text first: where it has as many headers as answers
(content cannot hold one, for it has a control token) and a header is followed by its answer as it is, no other
rendering is needed to know the bounds of this answer.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

from jinja2 import TemplateError

from ..extras.errors import UserError
from .conversation import RESPONSE_ROLES, Conversation, Message, Role, RowDropped
from .encoding import TextEncoder, encoder_of
from .formatter import Piece, split_calls
from .jinja_tools import quote
from .pieces import text_of
from .rendering import RenderedTurn, Rendering, Template
from .special_tokens import fill_special_tokens
from .tools import parse_tools


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Unicode noncharacters, which no text holds: they mark places without looking like anything to a template.
MARK = "\ufdd2answer\ufdd3"
GUARD_START, GUARD_END = "\ufdd0", "\ufdd1"
# Put in front of a template, so that the saved tokenizer has the default system prompt too.
DEFAULT_SYSTEM = (
    "{{%- if not messages or messages[0]['role'] != 'system' %}}"
    "{{%- set messages = [{{'role': 'system', 'content': {}}}] + messages %}}{{%- endif %}}"
)
DEFAULT_THINKING = (
    "{{%- if enable_thinking is not defined %}}{{%- set enable_thinking = {} %}}{{%- endif %}}"  # where nobody says
)
GUARDED = re.compile(f"{GUARD_START}(\\d+){GUARD_END}")
PROBE = Conversation(
    (
        Message(Role.USER, "one"),
        Message(Role.ASSISTANT, "two"),
        Message(Role.USER, "three"),
        Message(Role.ASSISTANT, "four"),
    )
)


@dataclass(frozen=True, kw_only=True)
class JinjaTemplate(Template):
    """The chat template that the tokenizer brings."""

    enable_thinking: bool | None = None  # the template's own default
    header: str = ""
    """What stands in front of every answer; empty where that holds no control token."""
    as_parts: bool = False
    """Texts are given as lists of parts, the only form in which some multimodal models' templates take them."""

    def render(self, encoder: TextEncoder, conversation: Conversation) -> Rendering:
        """Render the conversation and cut the text at the bounds of the answers."""
        if not conversation.messages:
            raise RowDropped("no messages")
        guard = ContentGuard(encoder)
        system = guard.hide(conversation.system)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        num_lead = len(messages)
        messages += [guard.as_dict(message) for message in conversation.messages]
        is_open = conversation.messages[-1].role not in RESPONSE_ROLES
        chat = Chat(encoder, guard.as_tools(conversation.tools), self.variables, is_open, as_parts=self.as_parts)
        chat.check_tools(messages)

        text = chat.render(messages, is_open)
        num_answers = sum(message.role in RESPONSE_ROLES for message in conversation.messages)
        if self.header and text.count(self.header) == num_answers + is_open:
            chat = chat._replace(header=self.header)
        turns: list[RenderedTurn] = []
        done = 0
        for index, message in enumerate(conversation.messages, num_lead):
            if message.role in RESPONSE_ROLES:
                start, end = chat.find_answer(text, messages, index, done)
                turns.append(RenderedTurn(guard.pieces(text[done:start]), guard.pieces(text[start:end]), message))
                done = end
        rest = guard.pieces(text[done:])
        return Rendering([*turns, RenderedTurn(rest, [], None)], []) if is_open else Rendering(turns, rest)

    def fix_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> Self:
        """Set what is missing, and learn from a sample which token ends an answer."""
        fill_special_tokens(tokenizer)
        encoder = encoder_of(tokenizer, self.allow_special_tokens)
        fitted = replace(self, as_parts=needs_parts(Chat(encoder, None, self.variables, is_open=True)))
        if self.default_system and isinstance(tokenizer.chat_template, str):
            content = quote(self.default_system)
            content = f"[{{'type': 'text', 'text': {content}}}]" if fitted.as_parts else content
            tokenizer.chat_template = DEFAULT_SYSTEM.format(content) + tokenizer.chat_template
        try:
            rendering = fitted.render(encoder, PROBE)
        except RowDropped as reason:
            raise UserError(
                f"The model's own chat template cannot be cut into answers exactly ({reason}); "
                "name a template instead, for instance `template: chatml`."
            ) from None
        tokens = encoder.special_pattern.findall(text_of(rendering.turns[-1].target))
        chat = Chat(encoder, None, self.variables, is_open=True, as_parts=fitted.as_parts)
        question = [{"role": "user", "content": PROBE.messages[0].content}]
        prompt = chat.render(question, is_prompt=True)
        header = chat.find_header(question, prompt)
        if chat._replace(variables={}).render(question, is_prompt=True) != prompt:
            set_default_thinking(tokenizer, self.enable_thinking)
        is_sure = encoder.special_pattern.search(header) is not None and not encoder.allows_control
        return replace(fitted, stop_words=tuple(tokens[-1:]), header=header if is_sure else "")

    @property
    def variables(self) -> dict[str, Any]:
        """What the template is told besides the conversation."""
        variables: dict[str, Any] = {"preserve_thinking": True} if self.preserve_thinking else {}
        return variables | ({} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking})

    def with_tool_format(self, tool_format: str) -> Self:
        """Refuse: the model's own template has its own syntax."""
        raise UserError(f"`tool_format: {tool_format}` needs a named template; the model's own has its own syntax.")


class Chat(NamedTuple):
    """A tokenizer's template with what is the same for all renderings of one conversation."""

    encoder: TextEncoder
    tools: list[dict[str, Any]] | None
    variables: Mapping[str, Any]
    is_open: bool  # the whole conversation ends with a prompt
    header: str = ""  # what stands in front of each answer, where all have the same
    as_parts: bool = False

    def render(self, messages: Sequence[Mapping[str, Any]], is_prompt: bool) -> str:
        """Render to text; what the template itself refuses is a reason to drop the row."""
        try:
            text = self.encoder.tokenizer.apply_chat_template(
                [with_parts(message) if self.as_parts else dict(message) for message in messages],
                tools=cast(Any, self.tools),
                tokenize=False,
                add_generation_prompt=is_prompt,
                **self.variables,
            )
        except (TemplateError, TypeError) as error:
            raise RowDropped(f"the model's chat template refuses it: {error}") from None
        return cast(str, text)

    def check_tools(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Refuse tools and calls that the template would leave out without a word."""
        source = self.encoder.tokenizer.get_chat_template(tools=cast(Any, self.tools))
        if self.tools and "tools" not in source:
            raise RowDropped("the model's chat template has no place for tools; name a template")
        if "tool_calls" not in source and any("tool_calls" in message for message in messages):
            raise RowDropped("the model's chat template has no place for tool calls; name a template")

    def find_answer(self, text: str, messages: Sequence[Mapping[str, Any]], index: int, done: int) -> tuple[int, int]:
        """Return where the answer at index starts and where, with its end token, it ends."""
        start, content_end = self.find_as_is(text, messages[index], done) or self.find_by_mark(
            text, messages, index, done
        )
        end = self.encoder.special_pattern.search(text, content_end)
        if end is None and index == len(messages) - 1:
            return start, len(text)
        return start, end.end() if end else content_end

    def find_as_is(self, text: str, message: Mapping[str, Any], done: int) -> tuple[int, int] | None:
        """Return the bounds of content that stands unchanged behind the next header; None where it does not.

        White space at its ends could be the template's own as well.
        """
        content: str = message["content"]
        place = text.find(self.header, done) if self.header and content and "tool_calls" not in message else -1
        start = place + len(self.header)
        is_found = place >= 0 and content == content.strip() and text.startswith(content, start)
        return (start, start + len(content)) if is_found else None

    def find_by_mark(self, text: str, messages: Sequence[Mapping[str, Any]], index: int, done: int) -> tuple[int, int]:
        """Return the bounds of an answer's content, found by rendering the conversation with a mark in its place."""
        mark = {"role": "assistant", "content": MARK}
        marked = self.render([*messages[:index], mark, *messages[index + 1 :]], self.is_open)
        head, _, tail = marked.partition(MARK)
        prompt = self.render(messages[:index], is_prompt=True)
        content_end = len(text) - len(tail)
        if text.startswith(prompt):
            start = len(prompt)
        else:
            header = self.find_header(messages[:index], prompt)
            place = head.rfind(header, done) if header else -1
            start = place + len(header) if place >= 0 else len(head)
            if not text.startswith(head[:start]):
                raise RowDropped("the text before an answer depends on the answer")
        if MARK not in marked or not text.endswith(tail) or not done <= start <= content_end:
            raise RowDropped("the text after an answer depends on the answer")
        return start, content_end

    def find_header(self, messages: Sequence[Mapping[str, Any]], prompt: str) -> str:
        """Return the text that `add_generation_prompt` adds to these messages."""
        before = self.render(messages, is_prompt=False)
        return prompt[len(before) :] if prompt.startswith(before) else ""


def set_default_thinking(tokenizer: "PreTrainedTokenizerBase", enable_thinking: bool | None) -> None:
    """Write into the template what it is to do when a caller does not say, so that it prompts as trained."""
    if enable_thinking is not None and isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = DEFAULT_THINKING.format(str(enable_thinking).lower()) + tokenizer.chat_template


def with_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """Write the text of a message as a list of one part."""
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def needs_parts(chat: Chat) -> bool:
    """Tell whether a template drops texts unless they are given as parts."""

    def is_written(as_parts: bool) -> bool:
        try:
            return MARK in chat._replace(as_parts=as_parts).render([{"role": "user", "content": MARK}], is_prompt=True)
        except RowDropped:
            return False

    return not is_written(as_parts=False) and is_written(as_parts=True)


class ContentGuard:
    """Hides what looks like a control token from the template and the tokenizer, and brings it back as content."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.pattern = re.compile(f"{encoder.special_pattern.pattern}|{GUARD_START}")
        self.hidden: list[str] = []

    def hide(self, text: str) -> str:
        """Replace what looks like a control token by a numbered mark."""
        if GUARD_START not in text and not self.encoder.has_control_text(text):
            return text
        return self.pattern.sub(self._hide_match, text)

    def pieces(self, text: str) -> list[Piece]:
        """Cut rendered text at the marks and put the hidden text back."""
        halves = GUARDED.split(text)  # text, number, text, number, ..., text
        pieces = [
            Piece(self.hidden[int(half)], "content") if index % 2 else Piece(half) for index, half in enumerate(halves)
        ]
        return [piece for piece in pieces if piece.text]

    def as_dict(self, message: Message) -> dict[str, Any]:
        """Write a message as Jinja templates expect it; calls become `tool_calls`."""
        if message.role is Role.OBSERVATION:
            return {"role": "tool", "content": self.hide(message.content)}
        if message.role is not Role.FUNCTION:
            return {"role": str(message.role), "content": self.hide(message.content)}
        turn = split_calls(message.content)
        functions = [{"name": call.name, "arguments": json.loads(self.hide(call.arguments))} for call in turn.calls]
        tool_calls = [{"type": "function", "function": function} for function in functions]
        return {"role": "assistant", "content": self.hide(turn.before + turn.after), "tool_calls": tool_calls}

    def as_tools(self, tools: str) -> list[dict[str, Any]] | None:
        """Write the tools as Jinja templates expect them."""
        functions = parse_tools(self.hide(tools))
        return [{"type": "function", "function": function} for function in functions] or None

    def _hide_match(self, match: re.Match[str]) -> str:
        self.hidden.append(match.group())
        return f"{GUARD_START}{len(self.hidden) - 1}{GUARD_END}"
