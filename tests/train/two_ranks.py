"""One rank of a run on two processes (or the only one): `two_ranks.py MODEL OUTPUT_DIR BATCH`.

The name of OUTPUT_DIR says whether all weights (full...) or an adapter (lora...) are trained.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_trainer import TrainerMaker, losses, make_rows, pad_right, parts_for, trained_weights, with_lora
from transformers import LlamaForCausalLM, TrainerCallback

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


class StopAfter(TrainerCallback):
    """Ends training after a step."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


def train(model_dir: str, output_dir: Path, batch: str, stop: int | None = None, resume: str | None = None) -> Any:
    method = output_dir.parent.name if output_dir.name == "half" else output_dir.name
    model: Any = LlamaForCausalLM.from_pretrained(model_dir)
    if method.startswith("lora"):
        model = with_lora(model, dropout=0.0)
    trainer = TrainerMaker(output_dir)(
        model,
        make_rows(24),
        eval_rows=make_rows(7, seed=3),
        parts=parts_for(model, predictor=FirstTokens()),
        callbacks=[StopAfter(stop)],
        per_device_train_batch_size=int(batch),
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        optim="sgd",
        learning_rate=0.1,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        ddp_find_unused_parameters=False,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def main(model_dir: str, output_dir: str, batch: str) -> None:
    """Train whole, and again with a stop in the second epoch; write down what came out."""
    torch.set_num_threads(1)
    out = Path(output_dir)
    train(model_dir, out / "half", batch, stop=4)
    resumed = train(model_dir, out / "half", batch, resume=str(out / "half" / "checkpoint-4"))
    trainer = train(model_dir, out, batch)
    outcome = {
        "loss": losses(trainer),
        "eval_loss": losses(trainer, "eval_loss"),
        "train_loss": losses(trainer, "train_loss"),
        "tokens": trainer.meter.num_tokens,
        "loss of one row": trainer.evaluate(make_rows(1))["eval_loss"],
        "predictions": trainer.predict(make_rows(7, seed=3)).predictions,
        "resumed equally": torch.equal(trained_weights(trainer.model), trained_weights(resumed.model)),
    }
    if trainer.is_world_process_zero():
        (out / "outcome.json").write_text(json.dumps(outcome))
        save_file({"weights": trained_weights(trainer.model)}, out / "weights.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
