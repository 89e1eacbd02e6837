"""One rank of a run on two processes (or the only one): `two_ranks.py MODEL OUTPUT_DIR BATCH METHOD`."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_trainer import TrainerMaker, losses, make_rows, pad_right, parts_for, trained_weights, with_lora
from transformers import LlamaForCausalLM

from llamafactory.train.objective import Batch, Models
from llamafactory.train.ranks import leave_ranks


class FirstTokens:
    """A predictor that needs no generation: it repeats the first token of each row."""

    def collate(self, rows: list[dict[str, list[int]]]) -> Batch:
        return pad_right(rows)

    def predict(self, models: Models, batch: Batch) -> list[dict[str, int]]:
        return [{"first": token} for token in batch["input_ids"][:, 0].tolist()]

    def measure(self, records: list[dict[str, int]]) -> dict[str, float]:
        return {"count": len(records)}


def main(model_dir: str, output_dir: str, batch: str, method: str) -> None:
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(model_dir)
    if method == "lora":
        model = with_lora(model)
    trainer = TrainerMaker(Path(output_dir))(
        model,
        make_rows(24),
        eval_rows=make_rows(7, seed=3),
        parts=parts_for(model, predictor=FirstTokens()),
        per_device_train_batch_size=int(batch),
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=2,
        optim="sgd",
        learning_rate=0.1,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        ddp_find_unused_parameters=False,
    )
    trainer.train()
    predictions = trainer.predict(make_rows(7, seed=3)).predictions
    if trainer.is_world_process_zero():
        outcome = {
            "loss": losses(trainer),
            "eval_loss": losses(trainer, "eval_loss"),
            "train_loss": losses(trainer, "train_loss"),
            "tokens": trainer.meter.num_tokens,
            "predictions": predictions,
        }
        Path(output_dir, "outcome.json").write_text(json.dumps(outcome))
        save_file({"weights": trained_weights(model)}, Path(output_dir, "weights.safetensors"))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
