"""The bodies of answers, as OpenAI's clients expect them."""

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ..chat.answer_parts import AnswerParts
from ..chat.requests import RankedToken, Response, TokenLogprob
from ..data.tools import FunctionCall


JsonObject: TypeAlias = dict[str, Any]


def new_id(prefix: str) -> str:
    """Return an identifier that nothing else has."""
    return f"{prefix}{uuid.uuid4().hex}"


def now() -> int:
    """Return the time in seconds."""
    return int(time.time())


def usage(answers: Iterable[Response], num_prompts: int = 1) -> JsonObject:
    """Count tokens; the prompt of several answers counts once. Answers of one prompt stand together."""
    kept = list(answers)
    size = max(len(kept) // num_prompts, 1)
    firsts = kept[::size]
    return count_usage(
        sum(answer.prompt_length for answer in firsts),
        sum(answer.response_length for answer in kept),
        sum(answer.cached_length for answer in firsts),
    )


def count_usage(prompt: int, completion: int, cached: int) -> JsonObject:
    """Write the counts."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def model_card(name: str, created: int) -> JsonObject:
    """Describe a model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "llamafactory"}


def chat_message(parts: AnswerParts) -> JsonObject:
    """Write the message of an answer."""
    message: JsonObject = {"role": "assistant", "content": parts.text, "refusal": None}
    if parts.thought:
        message["reasoning_content"] = parts.thought
    if parts.calls:
        message["content"] = parts.text or None
        message["tool_calls"] = [tool_call(call) for call in parts.calls]
    return message


def tool_call(call: FunctionCall) -> JsonObject:
    """Write a call."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": new_id("call_"), "type": "function", "function": function}


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> JsonObject:
    """Write the log-probabilities of a chat answer."""
    listed = [_chat_token(token) | {"top_logprobs": [_chat_token(item) for item in token.top]} for token in tokens]
    return {"content": listed, "refusal": None}


def text_logprobs(tokens: Sequence[TokenLogprob], offset: int = 0) -> JsonObject:
    """Write the log-probabilities of a plain completion; offset is where its text begins."""
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{item.text: item.logprob for item in token.top} for token in tokens],
        "text_offset": offsets,
    }


def chat_choice(index: int, delta: Mapping[str, Any], reason: str | None, logprobs: Any = None) -> JsonObject:
    """Write one choice of a chunk."""
    return {"index": index, "delta": dict(delta), "logprobs": logprobs, "finish_reason": reason}


def _chat_token(token: RankedToken) -> JsonObject:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.raw)}
