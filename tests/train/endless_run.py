"""Trains a tiny model and saves after every step until it is killed or told to stop: `endless_run.py MODEL OUT`."""

import sys
from pathlib import Path

import torch
from tiny_trainer import TrainerMaker, make_rows
from transformers import LlamaForCausalLM

from llamafactory.train.callbacks.interrupt import Interrupt, InterruptCallback, TrainingInterruptedError
from llamafactory.train.checkpoints import list_checkpoints
from llamafactory.train.ranks import leave_ranks


def run_until_stopped(model_dir: Path, output_dir: Path) -> int:
    torch.set_num_threads(1)
    checkpoints = list_checkpoints(output_dir)
    interrupt = Interrupt()
    trainer = TrainerMaker(output_dir)(
        LlamaForCausalLM.from_pretrained(model_dir),
        make_rows(24),
        callbacks=[InterruptCallback(interrupt)],
        max_steps=10**6,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=4,
        ddp_find_unused_parameters=False,
    )
    trainer.interrupt = interrupt
    try:
        with interrupt:
            trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    except TrainingInterruptedError as stop:
        return stop.exit_code
    finally:
        leave_ranks()
    return 0


if __name__ == "__main__":
    sys.exit(run_until_stopped(Path(sys.argv[1]), Path(sys.argv[2])))
