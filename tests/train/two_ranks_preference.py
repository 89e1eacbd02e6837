"""One rank of a preference run on two processes (or the only one): `two_ranks_preference.py MODEL OUTPUT_DIR BATCH`.

The name of OUTPUT_DIR says the stage and what is trained: dpo-lora..., dpo-continued..., dpo-full..., kto-lora...
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_pairs import dpo_parts, kto_parts, make_marked, make_pairs, shift_weights
from tiny_trainer import TrainerMaker, losses, trained_weights, with_lora
from transformers import LlamaForCausalLM

from llamafactory.train.ranks import leave_ranks
from llamafactory.train.reference import keep_adapter


def main(model_dir: str, output_dir: str, batch: str) -> None:
    torch.set_num_threads(1)
    out = Path(output_dir)
    stage, method = out.name.split("-")[:2]
    model: Any = LlamaForCausalLM.from_pretrained(model_dir)
    reference = LlamaForCausalLM.from_pretrained(model_dir) if method == "full" else None
    model = shift_weights(model if method == "full" else with_lora(model))
    if method == "continued":
        keep_adapter(model)
    if stage == "dpo":
        variant = {"pref_loss": "kto_pair"} if method == "lora" else {"pref_bco_weight": 0.5}
        parts, rows, evals = dpo_parts(model, reference, **variant), make_pairs(11), make_pairs(5, seed=3)
    else:
        parts, rows, evals = kto_parts(model, reference), make_marked(11), make_marked(5, seed=3)
    trainer = TrainerMaker(out)(
        model,
        rows,
        parts=parts,
        eval_rows=evals,
        per_device_train_batch_size=int(batch),
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        optim="sgd",
        learning_rate=0.05,
        ddp_find_unused_parameters=False,
    )
    trainer.train()
    outcome = {"loss": losses(trainer), "margins": losses(trainer, "rewards/margins"), "eval": trainer.evaluate()}
    if trainer.is_world_process_zero():
        (out / "outcome.json").write_text(json.dumps(outcome))
        save_file({"weights": trained_weights(trainer.model)}, out / "weights.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
