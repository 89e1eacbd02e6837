"""One rank of a run with a token budget: `token_ranks.py MODEL OUTPUT_DIR ACCUMULATION`."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_trainer import TrainerMaker, losses, make_rows, parts_for, trained_weights
from transformers import LlamaForCausalLM

from llamafactory.data.batch_plan import BatchSize
from llamafactory.train.ranks import leave_ranks


BUDGET = 7  # less than two rows
NUM_ROWS = 13


def main(model_dir: str, output_dir: str, accumulation: str) -> None:
    """Train, and write down what came out."""
    torch.set_num_threads(1)
    model: Any = LlamaForCausalLM.from_pretrained(model_dir)
    trainer = TrainerMaker(Path(output_dir))(
        model,
        make_rows(NUM_ROWS),
        parts=parts_for(model, batch_limit=BatchSize(max_tokens=BUDGET)),
        gradient_accumulation_steps=int(accumulation),
        num_train_epochs=2,
        optim="sgd",
        learning_rate=0.1,
        train_sampling_strategy="sequential",
        ddp_find_unused_parameters=False,
    )
    trainer.train()
    if trainer.is_world_process_zero():
        outcome = {"loss": losses(trainer), "tokens": trainer.meter.num_tokens, "steps": trainer.state.global_step}
        Path(output_dir, "outcome.json").write_text(json.dumps(outcome))
        save_file({"weights": trained_weights(trainer.model)}, Path(output_dir, "weights.safetensors"))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
