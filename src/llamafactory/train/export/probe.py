"""The prompts that an export is compared on, and the comparison."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError

from ...extras.errors import UserError


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ...data.template import Template

EXACT_TOLERANCE = 1e-5
"""Largest difference of a logit, as a share of the largest logit, where both sides compute in float32."""

DIALOGUES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Who are you?"),),
    (("user", "Translate to French: The weather is fine today."),),
    (
        ("user", "\u8bf7\u7528\u4e00\u53e5\u8bdd\u4ecb\u7ecd\u4f60\u81ea\u5df1\u3002"),
    ),  # introduce yourself in one sentence
    (
        ("user", "Name three primary colours."),
        ("assistant", "Red, yellow and blue."),
        ("user", "Now write a Python function that returns them as a list."),
    ),
)
"""What the exported model is compared on: short and long, one turn and several, two scripts, prose and code."""


@dataclass(frozen=True)
class Probe:
    """The prompts of the comparison, as ids."""

    dialogues: tuple[list[dict[str, str]], ...]
    prompts: tuple[list[int], ...]

    def logits(self, model: "PreTrainedModel") -> list[torch.Tensor]:
        """The logits of every prompt, computed in the model's own format."""
        with torch.inference_mode():
            rows = [torch.tensor([prompt], device=model.device) for prompt in self.prompts]
            return [model(input_ids=row, use_cache=False).logits.float().cpu() for row in rows]


def make_probe(tokenizer: "PreTrainedTokenizerBase", template: "Template") -> Probe:
    """Write the dialogues with the template."""
    dialogues = tuple([{"role": role, "content": text} for role, text in dialogue] for dialogue in DIALOGUES)
    return Probe(dialogues, tuple(template.encode_prompt(tokenizer, dialogue) for dialogue in dialogues))


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

    Templates of multimodal models may read messages as lists of parts only.
    """
    for dialogue, prompt in zip(probe.dialogues, probe.prompts, strict=True):
        parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in dialogue]
        found: Any = tokenizer.apply_chat_template(dialogue, add_generation_prompt=True, return_dict=False)
        if found != prompt and prompt != _rendered(tokenizer, parts):
            raise UserError(
                "The export was removed: its own chat template writes another prompt than the template of this run, "
                f"{tokenizer.decode(found)!r} instead of {tokenizer.decode(prompt)!r}."
            )


def _rendered(tokenizer: "PreTrainedTokenizerBase", messages: Any) -> Any:
    """Render messages of parts; a template that joins them to text as strings cannot."""
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    except (TemplateError, TypeError):
        return None
