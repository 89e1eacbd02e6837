"""`make demo`: fine-tune a real model on this machine and show its answers before and after.

Everything goes through the public commands' own functions; the configuration is the YAML file of the examples.
"""

import argparse
import gc
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from llamafactory.extras.errors import UserError


ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "examples" / "train_lora" / "smollm2_lora_sft.yaml"
QUESTIONS = ("Who are you?", "What is your name?", "Who created you?")


def ask(model_args: dict[str, Any], questions: tuple[str, ...] = QUESTIONS) -> list[str]:
    """Answer each question greedily with a freshly loaded model, then let go of its memory."""
    from llamafactory.chat import ChatModel

    chat_model = ChatModel({**model_args, "do_sample": False, "max_new_tokens": 48})
    answers = [chat_model.chat([{"role": "user", "content": question}])[0].response_text for question in questions]
    del chat_model
    gc.collect()
    return answers


def show(title: str, answers: list[str]) -> None:
    print(f"\n{title}")
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"  {question}\n    {' '.join(answer.split())}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune a 135M-parameter model and compare its answers.")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "demo_output", help="made anew by every demo")
    options = parser.parse_args()

    from llamafactory.train.tuner import run_exp

    started = time.monotonic()
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config |= {"output_dir": str(options.output_dir), "dataset_dir": str(ROOT / "data")}
    base = {"model_name_or_path": config["model_name_or_path"]}
    if (options.output_dir / "trainer_state.json").is_file():  # only ever a demo's own folder
        shutil.rmtree(options.output_dir)

    before = ask(base)
    show("Before training:", before)
    print(f"\nTraining with {CONFIG.relative_to(ROOT)}")
    run_exp(config)
    after = ask({**base, "adapter_name_or_path": str(options.output_dir)})
    show("Before training:", before)
    show("After training:", after)

    print(f"\nDone in {time.monotonic() - started:.0f} s. What is on disk now:")
    for label, name in (
        ("adapter", "adapter_model.safetensors"),
        ("loss curve", "training_loss.png"),
        ("model card", "README.md"),
    ):
        print(f"  {label:<11} {options.output_dir / name}")
    print(
        "\nTalk to it:  llamafactory-cli chat examples/inference/smollm2_lora_sft.yaml"
        f" adapter_name_or_path={options.output_dir}"
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"Error: {error}")
