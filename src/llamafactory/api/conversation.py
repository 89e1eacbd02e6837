"""OpenAI's messages and tools as the conversation that templates write."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from ..chat.answer_parts import calling_message
from ..chat.answer_syntax import AnswerSyntax
from ..data.conversation import Message, Role
from ..data.tools import FunctionCall, parse_calls
from .errors import bad_request
from .protocol import ChatMessage, ContentPart, Tool, ToolCall


SYSTEM_ROLES = ("system", "developer")
TOOL_ROLES = ("tool", "function")
MEDIA = ("image", "video", "audio", "file")


class Dialogue(NamedTuple):
    """What a template takes."""

    messages: list[Message]
    system: str | None


def read_dialogue(messages: Sequence[ChatMessage], syntax: AnswerSyntax) -> Dialogue:
    """Turn a request's messages into turns; what cannot be said in a template is refused with a sentence."""
    num_system = next((i for i, turn in enumerate(messages) if turn.role not in SYSTEM_ROLES), len(messages))
    system = "\n\n".join(read_content(turn, index) for index, turn in enumerate(messages[:num_system]))
    turns = messages[num_system:]
    if not turns or turns[-1].role == "assistant":
        raise bad_request("The last message is not from the user or a tool; there is nothing to answer.", "messages")

    dialogue: list[Message] = []
    results: list[tuple[int, Message]] = []
    order: dict[str, int] = {}
    for index, turn in enumerate(turns, num_system):
        if turn.role in TOOL_ROLES:
            results.append(
                (order.get(turn.tool_call_id or "", len(order)), Message(Role.OBSERVATION, read_content(turn, index)))
            )
            continue
        dialogue += in_order(results)
        results = []
        if turn.role == "assistant":
            order = {call.id: place for place, call in enumerate(turn.tool_calls or ()) if call.id}
        dialogue.append(read_turn(turn, index, syntax))
    return Dialogue([*dialogue, *in_order(results)], system or None)


def read_turn(turn: ChatMessage, index: int, syntax: AnswerSyntax) -> Message:
    """Read a turn of the user or the assistant."""
    if turn.role in SYSTEM_ROLES:
        raise bad_request(
            f"messages.{index} is a {turn.role} message behind other messages; put it in front of all others.",
            f"messages.{index}.role",
        )
    content = read_content(turn, index)
    if turn.role == "user":
        return Message(Role.USER, content)
    thought = turn.reasoning_content or turn.reasoning
    if thought and syntax.thought_marks:
        start, end = syntax.thought_marks[0]
        content = f"{start}\n{thought}\n{end}\n\n{content}"
    if not turn.tool_calls:
        return Message(Role.ASSISTANT, content)
    calls = [read_call(call, f"messages.{index}.tool_calls.{number}") for number, call in enumerate(turn.tool_calls)]
    return calling_message(content, calls)


def read_content(turn: ChatMessage, index: int) -> str:
    """Return the text of a message."""
    if turn.content is None:
        if turn.role == "assistant" and (turn.tool_calls or turn.refusal is not None):
            return turn.refusal or ""
        raise bad_request(f"messages.{index}.content is missing.", f"messages.{index}.content")
    if isinstance(turn.content, str):
        return turn.content
    return "".join(read_part(part, f"messages.{index}.content.{place}") for place, part in enumerate(turn.content))


def read_part(part: ContentPart, place: str) -> str:
    """Return the text of a content part."""
    if part.type in ("text", "refusal"):
        text = part.text if part.type == "text" else part.refusal
        if text is None:
            raise bad_request(f"{place}.{part.type} is missing.", f"{place}.{part.type}")
        return text
    if any(word in part.type for word in MEDIA):
        raise bad_request(
            f"{place} is of the type {part.type!r}, but this version of the server takes text only: no images, "
            "video, audio or files.",
            place,
            "unsupported_content",
        )
    raise bad_request(f"{place} is of the unknown type {part.type!r}; use 'text'.", place)


def read_call(call: ToolCall, place: str) -> FunctionCall:
    """Return a call whose arguments are a JSON object."""
    try:
        (read,) = parse_calls(json.dumps({"name": call.function.name, "arguments": call.function.arguments}))
    except ValueError:
        raise bad_request(f"{place}.function.arguments is not a JSON object.", f"{place}.function.arguments") from None
    return read


def write_tools(tools: Sequence[Tool]) -> str:
    """Return the tools as the JSON list that templates show to the model."""
    listed = [
        {
            "name": tool.function.name,
            "description": tool.function.description or "",
            "parameters": tool.function.parameters or {"type": "object", "properties": {}},
        }
        for tool in tools
    ]
    return json.dumps(listed, ensure_ascii=False)


def in_order(results: Sequence[tuple[int, Message]]) -> list[Message]:
    """Sort the results of parallel calls as the calls were: templates tell them apart by order, not by id."""
    return [message for _, message in sorted(results, key=lambda result: result[0])]
