"""Perplexity of each row of a dataset, as it would be trained: over its answers, or all of it with stage=pt.

    python scripts/stat_utils/cal_ppl.py model_name_or_path=Qwen/Qwen3-4B dataset=alpaca_en_demo template=qwen3

Takes the keys of `llamafactory-cli chat` and of data, and: stage (sft or pt), save_name (ppl.json). Writes one number
per row, in row order, and prints the mean and the highest rows.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.extras.errors import UserError
from llamafactory.hparams import TrainingArguments
from llamafactory.hparams.parser import get_infer_args
from llamafactory.model import load_model, load_tokenizer


OWN = {"stage": "sft", "save_name": "ppl.json"}
NUM_SHOWN = 5


def main(words: list[str]) -> int:
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return 0 if words else 2
    values = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
    own = {name: values.pop(name, default) for name, default in OWN.items()}
    try:
        figures = perplexities(values, own["stage"])
    except (UserError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    Path(own["save_name"]).write_text(json.dumps(figures) + "\n", encoding="utf-8")
    print(f"{len(figures)} rows in {own['save_name']}; mean perplexity {sum(figures) / len(figures):.2f}.")
    highest = sorted(range(len(figures)), key=lambda row: -figures[row])[:NUM_SHOWN]
    print("highest: " + ", ".join(f"row {row} {figures[row]:.1f}" for row in highest))
    return 0


def perplexities(values: dict[str, Any], stage: str) -> list[float]:
    """Return e to the mean loss per supervised token of each row."""
    model_args, data_args, finetuning_args, _ = get_infer_args(values, "chat")
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    training = TrainingArguments(output_dir="unused")
    rows: Any = get_dataset(template, model_args, data_args, training, stage, tokenizer=tokenizer)["train_dataset"]
    if not rows:
        raise UserError("No dataset is named: give dataset=NAME.")
    model = load_model(tokenizer, model_args, finetuning_args)
    return [row_perplexity(model, row) for row in rows]


def row_perplexity(model: Any, row: dict[str, Any]) -> float:
    """One row; with nothing supervised in it, there is nothing to be surprised by: 1."""
    ids = torch.tensor([row["input_ids"]], device=model.device)
    labels = torch.tensor(row.get("labels") or row["input_ids"], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    if (labels[1:] == IGNORE_INDEX).all():
        return 1.0
    return math.exp(
        min(float(torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=IGNORE_INDEX)), 700.0)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
