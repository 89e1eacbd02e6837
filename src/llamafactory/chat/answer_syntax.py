"""How a model writes thoughts and tool calls, found out once from its template and its tokenizer.

A named template says it; of a model's own Jinja template it is found by writing a sample call and trying which syntax
reads it back.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from ..data.conversation import Conversation, Message, Role, RowDropped
from ..data.encoding import encoder_of
from ..data.pieces import text_of
from ..data.slot_template import SlotTemplate
from ..data.template import TEMPLATES
from ..data.tools import TOOL_FORMATS, FunctionCall, ToolFormat


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..data.rendering import Template
    from .base_engine import BaseEngine
    from .requests import ChatRequest

Marks = tuple[str, str]

SAMPLES = (FunctionCall("alpha", '{"one": 1}'), FunctionCall("beta", '{"two": "zwei"}'))
SAMPLE_TOOLS = tuple({"name": call.name, "parameters": {"type": "object", "properties": {}}} for call in SAMPLES)
TAG = re.compile(r"<[^<>\s]+>?|\[[A-Z_]+\]")
PROMPT_END = 32  # tokens at the end of a prompt among which a thought may be opened
JSON_STARTS = "{["
CALL_KEYS = ('"name"', '"type"', '"id"', '"parameters"', '"arguments"', '"function"')


@dataclass(frozen=True, kw_only=True)
class AnswerSyntax:
    """What the parts of an answer are recognised by."""

    thought_marks: tuple[Marks, ...] = ()
    """What stands before and behind a thought; empty for models that do not reason."""
    tool_format: ToolFormat | None = None
    """None where the template has no place for tools."""
    triggers: tuple[str, ...] = ()
    """Texts with which a call may begin."""
    is_json: bool = False
    """Calls have no tags: they are JSON at the start of a line."""
    is_closed: bool = False
    """A call is over at its own end mark, whatever follows; otherwise only the end of the answer shows it."""
    control_texts: tuple[str, ...] = ()
    """Control tokens, which are no part of any text."""

    @property
    def needs_control_tokens(self) -> bool:
        """Whether a mark is made of control tokens, which decoding must not leave out then."""
        marks = [text for pair in self.thought_marks for text in pair] + list(self.triggers)
        return any(control in mark for mark in marks for control in self.control_texts)


def find_syntax(template: "Template", tokenizer: "PreTrainedTokenizerBase") -> AnswerSyntax:
    """Find out how the answers of a model are written."""
    tool_format = find_tool_format(template, tokenizer)
    triggers, is_json, is_closed = _read_format(tool_format)
    return AnswerSyntax(
        thought_marks=find_thought_marks(template, tokenizer),
        tool_format=tool_format,
        triggers=triggers,
        is_json=is_json,
        is_closed=is_closed,
        control_texts=tuple(sorted({str(token) for token in tokenizer.all_special_tokens}, key=len, reverse=True)),
    )


def find_thought_marks(template: "Template", tokenizer: "PreTrainedTokenizerBase") -> tuple[Marks, ...]:
    """Return the marks of thoughts: those of the template, or those that a Jinja template mentions."""
    if isinstance(template, SlotTemplate):
        return template.thinking.marks if template.thinking else ()
    source = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    known = [TEMPLATES.get(name) for name in TEMPLATES.names()]
    marks = [row.thinking.marks for row in known if isinstance(row, SlotTemplate) and row.thinking]
    return tuple(dict.fromkeys(pair for pairs in marks for pair in pairs if all(mark in source for mark in pair)))


def find_tool_format(template: "Template", tokenizer: "PreTrainedTokenizerBase") -> ToolFormat | None:
    """Return the syntax of calls; of a Jinja template, the first that reads back what the template wrote."""
    if isinstance(template, SlotTemplate):
        return TOOL_FORMATS.get(template.function.tool_format)
    for calls in (SAMPLES, SAMPLES[:1]):
        text = _written_by_template(template, tokenizer, calls)
        for name in TOOL_FORMATS.names() if text else ():
            if TOOL_FORMATS.get(name).parse(text, SAMPLE_TOOLS) == list(calls):
                return TOOL_FORMATS.get(name)
    return None


def find_opened(engine: "BaseEngine", syntax: AnswerSyntax, request: "ChatRequest") -> Marks | None:
    """Return the marks of the thought that the prompt of a request ends in, as some templates write it."""
    if not syntax.thought_marks:
        return None
    ids = engine.encode_prompt(request)[-PROMPT_END:]
    return starts_in_thought(syntax, str(engine.tokenizer.decode(ids, skip_special_tokens=False)))


def starts_in_thought(syntax: AnswerSyntax, prompt_end: str) -> Marks | None:
    """Return the marks of the thought that a prompt has opened already, given its last characters."""
    return next((pair for pair in syntax.thought_marks if prompt_end.rstrip().endswith(pair[0].rstrip())), None)


def _written_by_template(
    template: "Template", tokenizer: "PreTrainedTokenizerBase", calls: Sequence[FunctionCall]
) -> str:
    """Return how the template writes calls, without the end token; "" when it cannot."""
    content = json.dumps([{"name": call.name, "arguments": call.values} for call in calls])
    messages = (Message(Role.USER, "Go."), Message(Role.FUNCTION, content))
    conversation = Conversation(messages, "", json.dumps(list(SAMPLE_TOOLS)))
    try:
        rendering = template.render(encoder_of(tokenizer, template.allow_special_tokens), conversation)
    except RowDropped:
        return ""
    text = text_of(rendering.turns[-1].target)
    for word in (*template.stop_words, str(tokenizer.eos_token)):
        text = text.rstrip().removesuffix(word)
    return text


def _read_format(tool_format: ToolFormat | None) -> tuple[tuple[str, ...], bool, bool]:
    """Return (triggers, is_json, is_closed) of a syntax, read off sample calls."""
    if tool_format is None:
        return (), False, False
    alone = [tool_format.render_calls([call]) for call in SAMPLES]
    together = tool_format.render_calls(SAMPLES)
    lead = common_start([*alone, together]).strip()
    tags = TAG.findall(lead)
    is_json = not tags and all(text.lstrip()[:1] in tuple(JSON_STARTS) for text in alone)
    triggers = tuple(JSON_STARTS) if is_json else tuple(dict.fromkeys(tags)) or ((lead,) if lead else ())
    followed = _blocks(tool_format, f"{together}\n\nThat is all.")
    return triggers, is_json, bool(triggers) and not is_json and followed == list(SAMPLES)


def common_start(texts: Sequence[str]) -> str:
    """Return what all texts begin with."""
    columns = takewhile(lambda chars: len(set(chars)) == 1, zip(*texts, strict=False))
    return "".join(chars[0] for chars in columns)


def _blocks(tool_format: ToolFormat, text: str) -> list[FunctionCall]:
    return tool_format.parse(text, SAMPLE_TOOLS)
