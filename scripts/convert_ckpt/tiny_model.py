"""Makes a tiny model with random weights and the tokenizer of a real one: what the scripts beside this file share."""

import argparse
import sys
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def run(doc: str | None, kind: str, values: dict[str, Any], words: list[str]) -> int:
    """Read the command line, make the model and write it."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder or hub id whose tokenizer the model gets")
    parser.add_argument("--output_dir", required=True)
    given = parser.parse_args(words)
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    named = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **named, **values)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(given.output_dir)
    tokenizer.save_pretrained(given.output_dir)
    print(f"{given.output_dir}: {sum(p.numel() for p in model.parameters()):,} parameters.")
    return 0


if __name__ == "__main__":
    sys.exit("Run tiny_qwen3.py or tiny_llama4.py.")
