"""The prompts that an export is compared on, and the comparison."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jinja2 import TemplateError

from ...extras.errors import UserError


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ...data.template import Template

EXACT_TOLERANCE = 1e-5
"""Largest difference of a logit, as a share of the largest logit, where both sides compute in float32."""

TOOLS = (
    '[{"name": "weather", "description": "Tells the weather of a city.", "parameters": {"type": "object", '
    '"properties": {"city": {"type": "string"}}, "required": ["city"]}}]'
)


class Dialogue(NamedTuple):
    """What is said, and with which tools."""

    turns: tuple[tuple[str, str], ...]
    tools: str = ""
    is_optional: bool = False
    """Left out where the template refuses it, as some refuse system turns or know no tools."""


DIALOGUES = (
    Dialogue((("user", "Who are you?"),)),
    Dialogue((("user", "Translate to French: The weather is fine today."),)),
    Dialogue(
        (("user", "\u8bf7\u7528\u4e00\u53e5\u8bdd\u4ecb\u7ecd\u4f60\u81ea\u5df1\u3002"),)
    ),  # introduce yourself in one sentence
    Dialogue(
        (
            ("user", "Name three primary colours."),
            ("assistant", "Red, yellow and blue."),
            ("user", "Now write a Python function that returns them as a list."),
        )
    ),
    Dialogue((("system", "Answer in one word."), ("user", "Is the sea salty?")), is_optional=True),
    Dialogue((("user", "Do I need an umbrella in Bern?"),), tools=TOOLS, is_optional=True),
)
"""What the exported model is compared on: one turn and several, two scripts, prose and code, a system turn, tools."""


class Prompt(NamedTuple):
    """A dialogue as the saved tokenizer is given it, and the ids that the run's template writes of it."""

    messages: list[dict[str, str]]
    tools: list[dict[str, Any]] | None
    ids: list[int]


@dataclass(frozen=True)
class Probe:
    """The prompts of the comparison."""

    prompts: tuple[Prompt, ...]

    def logits(self, model: "PreTrainedModel") -> list[torch.Tensor]:
        """The logits of every prompt, computed in the model's own format."""
        with torch.inference_mode():
            rows = [torch.tensor([prompt.ids], device=model.device) for prompt in self.prompts]
            return [model(input_ids=row, use_cache=False).logits.float().cpu() for row in rows]


def make_probe(tokenizer: "PreTrainedTokenizerBase", template: "Template") -> Probe:
    """Write the dialogues with the template."""
    prompts: list[Prompt] = []
    for dialogue in DIALOGUES:
        messages = [{"role": role, "content": text} for role, text in dialogue.turns]
        tools = [{"type": "function", "function": tool} for tool in json.loads(dialogue.tools or "[]")] or None
        try:
            ids = template.encode_prompt(tokenizer, messages, tools=dialogue.tools)
        except UserError:
            if not dialogue.is_optional:
                raise
            continue
        prompts.append(Prompt(messages, tools, ids))
    return Probe(tuple(prompts))


def require_equal(
    expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], tolerance: float, sides: str
) -> float:
    """Return the largest difference of two lists of logits as a share of the largest one; above tolerance it fails."""
    gaps = [float((one - two).abs().max() / one.abs().max()) for one, two in zip(expected, found, strict=True)]
    gap = math.inf if any(math.isnan(gap) for gap in gaps) else max(gaps)
    if gap > tolerance:
        raise UserError(
            f"The export was removed: {sides} answer differently (logits differ by {gap:.1e} of the largest one; "
            f"{tolerance:.1e} is allowed)."
        )
    return gap


def require_close(
    expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], divergence: float, sides: str
) -> str:
    """Compare next-token probabilities and say how far they are; above `divergence` it fails.

    Args:
        divergence: Largest mean of KL(expected || found) over all positions of all prompts, in nats.
    """
    wanted, given = torch.cat([row[0] for row in expected]), torch.cat([row[0] for row in found])
    wanted, given = wanted.log_softmax(-1), given.log_softmax(-1)
    mean = float((wanted.exp() * (wanted - given)).sum(-1).mean())
    same = float((wanted.argmax(-1) == given.argmax(-1)).float().mean())
    if math.isnan(mean) or mean > divergence:
        raise UserError(
            f"The export was removed: {sides} answer too differently (mean KL divergence {mean:.2g} nats per token; "
            f"{divergence:g} is allowed)."
        )
    allowed = f"({divergence:g} allowed)"
    return f"mean KL divergence {max(mean, 0.0):.1e} nats per token {allowed}, top token same in {same:.0%}"


def require_prompts(tokenizer: "PreTrainedTokenizerBase", probe: Probe) -> None:
    """Fail where a saved tokenizer's own chat template writes another prompt than this run's template.

    Templates of multimodal models may read messages as lists of parts only. One that refuses tools aloud, because
    their syntax cannot be written in it, misleads nobody.
    """
    for messages, tools, ids in probe.prompts:
        parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in messages]
        found = _rendered(tokenizer, messages, tools)
        if found is None and tools and _rendered(tokenizer, parts, tools) is None:
            continue
        if found != ids and ids != _rendered(tokenizer, parts, tools):
            written = "none" if found is None else repr(tokenizer.decode(found))
            raise UserError(
                "The export was removed: its own chat template writes another prompt than the template of this run, "
                f"{written} instead of {tokenizer.decode(ids)!r}."
            )


def _rendered(tokenizer: "PreTrainedTokenizerBase", messages: Any, tools: Any) -> Any:
    """Render messages; a template that is written for parts cannot read plain texts, and the other way round."""
    try:
        return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
    except (TemplateError, TypeError):
        return None
