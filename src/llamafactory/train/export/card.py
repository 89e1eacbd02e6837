"""The README of an export: what was merged, what was checked, and how to run it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...model.dtype import SHORT
from .saving import Promise


if TYPE_CHECKING:
    from ...hparams import ModelArguments

_CHATTING = (
    "from transformers import pipeline",
    "",
    'chat = pipeline("text-generation", model=".")',
    'print(chat([{"role": "user", "content": "Who are you?"}], max_new_tokens=128))',
)
_SCORING = (
    "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
    "",
    'model, tokenizer = AutoModelForSequenceClassification.from_pretrained("."), AutoTokenizer.from_pretrained(".")',
    'chat = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A model."}]',
    'print(model(**tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)).logits)',
)


def model_card(model_args: "ModelArguments", promise: Promise, notes: Sequence[str] = ()) -> str:
    """A short README: what was merged, what was checked, how to run it."""
    name = model_args.model_name_or_path
    is_hub_id = "://" not in name and not Path(name).expanduser().exists()
    task = "text-classification" if promise.is_score else "text-generation"
    head = ["---", "library_name: transformers", f"pipeline_tag: {task}", "tags: [llamafactory]"]
    head += [f"base_model: {name}", "---"] if is_hub_id else ["---"]
    adapters = [Path(adapter).name for adapter in model_args.adapter_name_or_path or ()]
    made = f"merged in: {', '.join(adapters)}" if adapters else "saved again without an adapter"
    base = name if is_hub_id or "://" in name else Path(name).name
    merge_gap = "" if promise.merge_gap is None else f" Merged against unmerged: {promise.merge_gap:.1e}."
    return "\n".join(
        [
            *head,
            "",
            f"# {base}: exported model",
            "",
            f"Base: {base}; {made}. Weights: {SHORT[promise.dtype]}.",
            "",
            f"Checked on {len(promise.logits)} dialogues after reading it back (largest difference of a logit, as a "
            f"share of the largest).{merge_gap} Rounding to {SHORT[promise.dtype]}: {promise.rounding_gap:.1e}.",
            "",
            *(line for note in notes for line in (note, "")),
            "```python",
            *(_SCORING if promise.is_score else _CHATTING),
            "```",
            "",
        ]
    )
