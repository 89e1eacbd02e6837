"""Preference columns of a row: the better and the worse answer, or the mark of one answer.

Pairs come in three layouts: two texts, two turns, or two whole conversations that differ in their last turn.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .conversation import RESPONSE_ROLES, Conversation, FieldError, Message, Role, RowDropped
from .json_rows import shorten
from .parser import DatasetAttr


def add_preferences(conversation: Conversation, row: Mapping[str, Any], attr: DatasetAttr) -> Conversation:
    """Return the conversation with what the row says about its answers."""
    if attr.ranking:
        chosen, rejected = take_answer(row, attr.chosen, attr), take_answer(row, attr.rejected, attr)
        if chosen == rejected:
            raise RowDropped("both answers are the same")
        turns = conversation.messages
        prompt = turns[:-1] if turns and turns[-1].role in RESPONSE_ROLES else turns
        return replace(conversation, messages=(*prompt, chosen), rejected=rejected)
    if attr.kto_tag:
        mark = row.get(attr.kto_tag)
        if not isinstance(mark, bool):
            raise FieldError(f"field {attr.kto_tag!r} is {shorten(mark)}, but true or false is needed")
        return replace(conversation, is_good=mark)
    return conversation


def take_answer(row: Mapping[str, Any], name: str | None, attr: DatasetAttr) -> Message:
    """Read an answer that is a text, a turn, or the last turn of a conversation."""
    value = row.get(name) if name else None
    turn: Any = value[-1] if isinstance(value, list) and value else value
    role = Role.ASSISTANT
    if isinstance(turn, dict):
        role = Role.FUNCTION if turn.get(attr.role_tag) == attr.function_tag else role
        turn = turn.get(attr.content_tag)
    if not isinstance(turn, str):
        raise FieldError(f"field {name!r} is {shorten(value)}, but an answer is needed")
    return Message(role, turn)
