"""Trains a tiny model and saves after every step until it is killed: `endless_run.py MODEL OUTPUT_DIR`."""

import sys
from pathlib import Path

import torch
from tiny_trainer import TrainerMaker, make_rows
from transformers import LlamaForCausalLM

from llamafactory.train.checkpoints import list_checkpoints


def run_forever(model_dir: Path, output_dir: Path) -> None:
    torch.set_num_threads(1)
    checkpoints = list_checkpoints(output_dir)
    trainer = TrainerMaker(output_dir)(
        LlamaForCausalLM.from_pretrained(model_dir),
        make_rows(24),
        max_steps=10**6,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)


if __name__ == "__main__":
    run_forever(Path(sys.argv[1]), Path(sys.argv[2]))
