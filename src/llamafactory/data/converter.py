"""Rows of each layout to Conversation.

A row whose turns are out of order is dropped and counted (RowDropped); a field of the wrong type is an error that
names it (FieldError), because it means that the columns are not what the user thinks.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from ..extras.errors import UserError
from ..extras.registry import Registry
from .conversation import Conversation, FieldError, Message, Role, RowDropped, is_loss_weight
from .json_rows import shorten
from .parser import DatasetAttr
from .preferences import add_preferences


Row: TypeAlias = Mapping[str, Any]
Converter: TypeAlias = Callable[[Row], Conversation]
PROMPT_ROLES = frozenset({Role.USER, Role.OBSERVATION})
LAYOUTS = (
    "alpaca (instruction, input, output), prompt and completion, question and answer, "
    "sharegpt (conversations with from and value), openai (messages with role and content), or text"
)


TURN_COLUMNS = ("messages", "conversations", "conversation", "chosen")
PROMPT_COLUMNS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("prompt", "chosen"))


def get_dataset_converter(name: str, dataset_attr: DatasetAttr, data_args: object = None) -> Converter:
    """Return the function that turns a row of the layout `name` into a Conversation."""
    make = CONVERTERS.get(name)

    def convert(row: Row) -> Conversation:
        conversation = add_preferences(make(row, dataset_attr), row, dataset_attr)
        return fill_values(conversation, dataset_attr.values)

    return convert


def convert_alpaca(row: Row, attr: DatasetAttr) -> Conversation:
    """One instruction with its answer, after the turns of an optional history."""
    messages: list[Message] = []
    for index, pair in enumerate(take(row, attr.history, list) or (), 1):
        texts = list(pair) if isinstance(pair, list | tuple) else []
        if [type(text) for text in texts] != [str, str]:
            raise FieldError(f"field {attr.history!r}, item {index}, is {shorten(pair)}, but two texts are needed")
        messages += [Message(Role.USER, texts[0]), Message(Role.ASSISTANT, texts[1])]

    prompt = "\n".join(text for text in (take_text(row, attr.prompt), take_text(row, attr.query)) if text)
    response = take_text(row, attr.response)
    if not prompt and not response:
        raise RowDropped("no text")
    messages.append(Message(Role.USER, prompt))
    if response:
        messages.append(Message(Role.ASSISTANT, response))
    return Conversation(tuple(messages), take_text(row, attr.system), take_tools(row, attr.tools))


def convert_sharegpt(row: Row, attr: DatasetAttr) -> Conversation:
    """A list of turns with tags; users and tools take turns with answers and calls."""
    roles = {
        attr.user_tag: Role.USER,
        attr.assistant_tag: Role.ASSISTANT,
        attr.observation_tag: Role.OBSERVATION,
        attr.function_tag: Role.FUNCTION,
        attr.system_tag: Role.SYSTEM,
    }
    messages: list[Message] = []
    for index, turn in take_turns(row, attr):
        tag = turn.get(attr.role_tag)
        if tag not in roles:
            raise RowDropped(f"unknown role {shorten(tag)}")
        where = f"field {attr.messages!r}, turn {index}, {attr.content_tag!r}"
        messages.append(Message(roles[tag], as_text(turn.get(attr.content_tag), where), take_loss(turn, where)))
    return make_conversation(messages, take_text(row, attr.system), take_tools(row, attr.tools))


def convert_openai(row: Row, attr: DatasetAttr) -> Conversation:
    """A list of messages as OpenAI's API takes them, with `tool_calls`."""
    roles = {
        attr.user_tag: Role.USER,
        attr.assistant_tag: Role.ASSISTANT,
        attr.observation_tag: Role.OBSERVATION,
        "function": Role.OBSERVATION,
        attr.system_tag: Role.SYSTEM,
        "developer": Role.SYSTEM,
    }
    messages: list[Message] = []
    for index, turn in take_turns(row, attr):
        tag = turn.get(attr.role_tag)
        if tag not in roles:
            raise RowDropped(f"unknown role {shorten(tag)}")
        where = f"field {attr.messages!r}, message {index}, {attr.content_tag!r}"
        role, content = roles[tag], join_parts(turn.get(attr.content_tag), where)
        if role is Role.ASSISTANT and turn.get("tool_calls"):
            role, content = Role.FUNCTION, write_calls(turn["tool_calls"], content)
        messages.append(Message(role, content, take_loss(turn, where)))
    return make_conversation(messages, take_text(row, attr.system), take_tools(row, attr.tools))


CONVERTERS: Registry[Callable[[Row, DatasetAttr], Conversation]] = Registry(
    "formatting", {"alpaca": convert_alpaca, "sharegpt": convert_sharegpt, "openai": convert_openai}
)


def detect_layout(row: Row, attr: DatasetAttr) -> DatasetAttr:
    """Find out from the first row what a dataset without an entry looks like."""
    names = set(row)
    extras: dict[str, Any] = {key: key for key in ("system", "tools", "history") if key in names}
    if {"chosen", "rejected"} <= names:
        extras |= {"chosen": "chosen", "rejected": "rejected", "ranking": True}
    mark = next((key for key in ("kto_tag", "label") if isinstance(row.get(key), bool)), None)
    extras |= {"kto_tag": mark} if mark else {}

    turns = next((key for key in TURN_COLUMNS if isinstance(row.get(key), list)), None)
    tags = detect_tags(row[turns]) if turns else None
    if turns and tags:
        return replace(attr, messages=turns, **tags, **extras)
    if "instruction" in names:
        return replace(attr, **extras)
    for prompt, response in PROMPT_COLUMNS:
        if {prompt, response} <= names:
            kept = None if response == "chosen" else response
            return replace(attr, prompt=prompt, query=None, response=kept, **extras)
    if "text" in names:
        return replace(attr, prompt="text", query=None, response=None)
    raise UserError(f"The layout of the dataset {attr} is unknown: its first row has {sorted(names)}; use {LAYOUTS}.")


def detect_tags(turns: Sequence[object]) -> dict[str, Any] | None:
    """Tell the two ways of writing turns apart; None when it is neither."""
    first = next((turn for turn in turns if isinstance(turn, dict)), {})
    if {"role", "content"} <= set(first):
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        return {"formatting": "openai", "observation_tag": "tool", **tags}
    if not {"from", "value"} <= set(first):
        return None
    speakers = {turn.get("from") for turn in turns if isinstance(turn, dict)}
    plain = {"user_tag": "user"} if "user" in speakers else {}
    plain |= {"assistant_tag": "assistant"} if "assistant" in speakers else {}
    return {"formatting": "sharegpt", **plain}


def check_columns(row: Row, attr: DatasetAttr) -> None:
    """Refuse a dataset whose first row has none of the columns that its entry names."""
    needed = [attr.prompt, attr.response] if attr.formatting == "alpaca" else [attr.messages]
    if not any(name in row for name in needed if name):
        wanted = " or ".join(repr(name) for name in needed if name)
        raise UserError(
            f"The dataset {attr} should have the column {wanted} ({attr.formatting} layout), but its first row has "
            f"{sorted(row)}; correct `formatting` or `columns` of its entry."
        )


def make_conversation(messages: list[Message], system: str, tools: str) -> Conversation:
    """Take a leading system turn out and check that prompts and answers take turns."""
    if messages and messages[0].role is Role.SYSTEM:
        system, messages = messages[0].content, messages[1:]
    if not messages:
        raise RowDropped("no messages")

    previous: Role | None = None
    for message in messages:
        is_prompt = message.role in PROMPT_ROLES
        is_joined = message.role is previous is Role.OBSERVATION  # several tools were called at once
        if message.role is Role.SYSTEM or (is_prompt == (previous in PROMPT_ROLES) and not is_joined):
            raise RowDropped("wrong order of roles")
        previous = message.role
    return Conversation(tuple(messages), system, tools)


def fill_values(conversation: Conversation, values: Mapping[str, str]) -> Conversation:
    """Replace `{{name}}` by the value of that name; other braces stay, and values are not looked at again."""
    if not values:
        return conversation
    pattern = re.compile(r"\{\{(" + "|".join(map(re.escape, values)) + r")\}\}")

    def fill(text: str) -> str:
        return pattern.sub(lambda match: values[match.group(1)], text)

    messages = tuple(replace(message, content=fill(message.content)) for message in conversation.messages)
    worse = conversation.rejected
    rejected = replace(worse, content=fill(worse.content)) if worse else None
    return replace(conversation, messages=messages, system=fill(conversation.system), rejected=rejected)


def take(row: Row, name: str | None, kind: type) -> Any:
    """Return a field of the given type, or None when it is missing or null."""
    value = row.get(name) if name else None
    if value is not None and not isinstance(value, kind):
        raise FieldError(f"field {name!r} is {shorten(value)}, but {KINDS[kind]} is needed")
    return value


def take_text(row: Row, name: str | None) -> str:
    """Return a text field, "" when it is missing."""
    return take(row, name, str) or ""


def take_turns(row: Row, attr: DatasetAttr) -> list[tuple[int, dict[str, Any]]]:
    """Return the turns with their numbers."""
    turns = take(row, attr.messages, list) or []
    for index, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise FieldError(f"field {attr.messages!r}, item {index}, is {shorten(turn)}, but an object is needed")
    return list(enumerate(turns, 1))


def take_tools(row: Row, name: str | None) -> str:
    """Return the tools as JSON text; they may be written as text or as a list."""
    value = row.get(name) if name else None
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False) if value else ""
    raise FieldError(f"field {name!r} is {shorten(value)}, but a list of tools is needed")


def take_loss(turn: Row, where: str) -> bool | float | None:
    """Return how much a turn is learned: `loss`, or `weight` as OpenAI calls it."""
    value = turn.get("loss", turn.get("weight"))
    if not is_loss_weight(value):
        name = "loss" if "loss" in turn else "weight"
        raise FieldError(f"{where}: {name} is {shorten(value)}, but true, false or a number from 0 up is needed")
    return bool(value) if value in (0, 1) else value


def as_text(value: object, where: str) -> str:
    """Return text, "" for null."""
    if value is not None and not isinstance(value, str):
        raise FieldError(f"{where} is {shorten(value)}, but text is needed")
    return value or ""


def join_parts(value: object, where: str) -> str:
    """Return the text of a message whose content is text or a list of text parts."""
    if not isinstance(value, list):
        return as_text(value, where)
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        raise FieldError(f"{where} is {shorten(value)}, but only text parts can be read")
    return "".join(part["text"] for part in value)


def write_calls(tool_calls: object, content: str) -> str:
    """Write OpenAI's tool_calls as a JSON list of calls, text in front of it kept."""
    calls = tool_calls if isinstance(tool_calls, list) else [tool_calls]
    functions = [call.get("function", call) if isinstance(call, dict) else call for call in calls]
    text = json.dumps(functions, ensure_ascii=False)
    return f"{content}\n<tool_call>\n{text}\n</tool_call>" if content else text


KINDS: dict[type, str] = {str: "text", list: "a list"}
