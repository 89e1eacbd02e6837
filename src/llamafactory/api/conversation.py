"""OpenAI's messages and tools as the conversation that templates and processors write."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from ..chat.answer_parts import calling_message
from ..chat.answer_syntax import AnswerSyntax
from ..data.conversation import Message, Role
from ..data.media.medium import MediaKind, Medium
from ..data.tools import FunctionCall, parse_calls
from ..extras.errors import UserError
from .errors import bad_request
from .media_sources import MediaPolicy, decode_base64, read_reference
from .protocol import ChatMessage, ContentPart, SoundData, Tool, ToolCall


SYSTEM_ROLES = ("system", "developer")
TOOL_ROLES = ("tool", "function")
MEDIA_TYPES: dict[str, MediaKind] = {
    "image_url": "image",
    "video_url": "video",
    "audio_url": "audio",
    "input_audio": "audio",
}
MAX_MEDIA = 32  # in one request


class Dialogue(NamedTuple):
    """What a template takes."""

    messages: list[Message]
    system: str | None


def read_dialogue(messages: Sequence[ChatMessage], syntax: AnswerSyntax, policy: MediaPolicy) -> Dialogue:
    """Turn a request's messages into turns; what cannot be said in a template is refused with a sentence."""
    check_number(messages)
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
        dialogue.append(read_turn(turn, index, syntax, policy))
    return Dialogue([*dialogue, *in_order(results)], system or None)


def read_turn(turn: ChatMessage, index: int, syntax: AnswerSyntax, policy: MediaPolicy) -> Message:
    """Read a turn of the user or the assistant."""
    if turn.role in SYSTEM_ROLES:
        raise bad_request(
            f"messages.{index} is a {turn.role} message behind other messages; put it in front of all others.",
            f"messages.{index}.role",
        )
    if turn.role == "user":
        return read_question(turn, index, policy)
    content = read_content(turn, index)
    thought = turn.reasoning_content or turn.reasoning
    if thought and syntax.thought_marks:
        start, end = syntax.thought_marks[0]
        content = f"{start}\n{thought}\n{end}\n\n{content}"
    if not turn.tool_calls:
        return Message(Role.ASSISTANT, content)
    calls = [read_call(call, f"messages.{index}.tool_calls.{number}") for number, call in enumerate(turn.tool_calls)]
    return calling_message(content, calls)


def read_question(turn: ChatMessage, index: int, policy: MediaPolicy) -> Message:
    """Read a turn of the user, with its images, sounds and videos."""
    if not isinstance(turn.content, list) or all(part.type not in MEDIA_TYPES for part in turn.content):
        return Message(Role.USER, read_content(turn, index))
    parts: list[str | Medium] = []
    for number, part in enumerate(turn.content):
        place = f"messages.{index}.content.{number}"
        parts.append(read_medium(part, place, policy) if part.type in MEDIA_TYPES else read_part(part, place))
    return Message(Role.USER, "".join(part for part in parts if isinstance(part, str)), parts=tuple(parts))


def read_medium(part: ContentPart, place: str, policy: MediaPolicy) -> Medium:
    """Get what a content part refers to."""
    kind = MEDIA_TYPES[part.type]
    given = getattr(part, part.type)
    if given is None:
        raise bad_request(f"{place}.{part.type} is missing.", f"{place}.{part.type}")
    try:
        if isinstance(given, SoundData):
            content = decode_base64(given.data, policy.max_bytes)
        else:
            content = read_reference(given if isinstance(given, str) else given.url, kind, policy)
    except UserError as error:
        raise bad_request(f"{place}: {error}", f"{place}.{part.type}", "invalid_media") from None
    return Medium(kind, content)


def check_number(messages: Sequence[ChatMessage]) -> None:
    """Refuse more media than one request may bring, before any is fetched."""
    contents = [turn.content for turn in messages if isinstance(turn.content, list)]
    number = sum(part.type in MEDIA_TYPES for content in contents for part in content)
    if number > MAX_MEDIA:
        raise bad_request(f"There are {number} images, sounds and videos; at most {MAX_MEDIA} fit into one request.")


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
    if part.type in MEDIA_TYPES:
        raise bad_request(f"{place} is of the type {part.type!r}, which only messages of the user may have.", place)
    known = ", ".join(("text", *MEDIA_TYPES))
    raise bad_request(f"{place} is of the unknown type {part.type!r}; use one of {known}.", place)


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
