"""Where a template and the model's own chat template part, token by token, on sample conversations."""

from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from ..rendering import Template


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT = 3  # tokens shown on either side of a difference
Messages = list[dict[str, str]]
FIRST: Messages = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
SECOND: Messages = [{"role": "user", "content": "And 3 + 3?"}, {"role": "assistant", "content": "That is 6."}]
CONVERSATIONS: tuple[tuple[str, Messages], ...] = (
    ("one question", FIRST),
    ("two questions", [*FIRST, *SECOND]),
    ("a system prompt", [{"role": "system", "content": "Answer briefly."}, *FIRST]),
)


class TemplateSample(NamedTuple):
    """A sample conversation as the model's own chat template writes it."""

    title: str
    messages: Messages
    ids: list[int]
    is_prompt: bool


def sample_own_template(
    tokenizer: "PreTrainedTokenizerBase", enable_thinking: bool | None
) -> tuple[TemplateSample, ...]:
    """Encode the samples before any other template is put into the tokenizer; none when it brings no template."""
    if not tokenizer.chat_template:
        return ()
    variables = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    samples: list[TemplateSample] = []
    for title, messages in CONVERSATIONS:
        for turns, is_prompt in ((messages, False), (messages[:-1], True)):
            ids = _encode_own(tokenizer, turns, is_prompt, variables)
            name = f"{title}, open for the answer" if is_prompt else title
            samples += [TemplateSample(name, turns, ids, is_prompt)] if ids is not None else []
    return tuple(samples)


def compare_templates(
    tokenizer: "PreTrainedTokenizerBase", template: Template, samples: tuple[TemplateSample, ...]
) -> list[tuple[str, str]]:
    """Return (sample, difference) for the samples that the template writes otherwise."""
    differences: list[tuple[str, str]] = []
    for sample in samples:
        if sample.is_prompt:
            ours = template.encode_prompt(tokenizer, sample.messages)
        else:
            pairs = template.encode_multiturn(tokenizer, sample.messages)
            ours = [number for pair in pairs for ids in pair for number in ids]
        own = sample.ids
        if not sample.is_prompt:
            stops = template.get_stop_token_ids(tokenizer)
            ours, own = _until_end(ours, stops), _until_end(own, stops)
        if ours != own:
            differences.append((sample.title, show_difference(tokenizer, own, ours)))
    return differences


def show_difference(tokenizer: "PreTrainedTokenizerBase", old: list[int], new: list[int]) -> str:
    """Write a token diff in one line: {-only in old-}, {+only in new+}, with a few tokens around each."""
    parts: list[str] = []
    opcodes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    for index, (tag, start, end, new_start, new_end) in enumerate(opcodes):
        if tag == "equal":
            parts.append(_shorten(tokenizer, old[start:end], index == 0, index == len(opcodes) - 1))
            continue
        parts.append(f"{{-{tokenizer.decode(old[start:end])}-}}" if end > start else "")
        parts.append(f"{{+{tokenizer.decode(new[new_start:new_end])}+}}" if new_end > new_start else "")
    return "".join(parts).replace("\n", "\\n")


def _encode_own(
    tokenizer: "PreTrainedTokenizerBase", messages: Messages, is_prompt: bool, variables: dict[str, Any]
) -> list[int] | None:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_prompt, **variables)
    except (TemplateError, TypeError, ValueError):  # it takes no system prompt, or is no single template
        return None
    return list(tokenizer.encode(str(text), add_special_tokens=False))


def _shorten(tokenizer: "PreTrainedTokenizerBase", ids: list[int], is_first: bool, is_last: bool) -> str:
    if len(ids) <= 2 * CONTEXT:
        return str(tokenizer.decode(ids))
    head = "" if is_first else tokenizer.decode(ids[:CONTEXT])
    tail = "" if is_last else tokenizer.decode(ids[-CONTEXT:])
    return f"{head}...{tail}"


def _until_end(ids: list[int], stop_ids: list[int]) -> list[int]:
    """Leave out what stands behind the last end token: nobody learns it, and some templates open the next answer."""
    places = [index for index, number in enumerate(ids) if number in stop_ids]
    return ids[: places[-1] + 1] if places else ids
