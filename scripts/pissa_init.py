"""Write a base model without its main directions, and the LoRA adapter that holds them (PiSSA,
arxiv.org/abs/2404.02948).

    python scripts/pissa_init.py --model_name_or_path Qwen/Qwen3-4B --output_dir models/qwen3-pissa

Then train with model_name_or_path: models/qwen3-pissa and adapter_name_or_path: models/qwen3-pissa/pissa_init; with
quantization_bit the rest is packed, which is smaller than the whole and so loses less. Without packing,
pissa_init: true in a run does the same and needs no script.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from llamafactory.extras.errors import UserError
from llamafactory.model.quantization.loftq import split_pissa
from llamafactory.model.starting_base import StartingAdapter, write_starting_base


FOLDER = "pissa_init"


def main(words: list[str]) -> int:
    """Split and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="the model to start from")
    parser.add_argument("--output_dir", required=True, type=Path, help="receives the base, and the adapter inside")
    parser.add_argument("--pissa_iter", type=int, default=16, help="steps of the fast decomposition; -1 is exact")
    parser.add_argument("--lora_alpha", type=int, help="strength of the adapter (default: the rank)")
    parser.add_argument("--lora_rank", type=int, default=16, help="width of the adapter's matrices")
    parser.add_argument("--lora_dropout", type=float, default=0.0, help="share of the input that is dropped")
    parser.add_argument("--lora_target", default="q_proj,v_proj", help="layers, by comma, or all")
    parser.add_argument("--save_safetensors", default="true", choices=("true", "True"), help="always so")
    args = parser.parse_args(words)
    adapter = StartingAdapter(
        rank=args.lora_rank,
        alpha=args.lora_alpha or args.lora_rank,
        dropout=args.lora_dropout,
        target=tuple(args.lora_target.split(",")),
    )
    try:
        folder, num_layers = write_starting_base(
            args.model_name_or_path,
            args.output_dir,
            FOLDER,
            adapter,
            partial(split_pissa, iterations=args.pissa_iter),
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{args.output_dir}: {num_layers} layers without their main directions, which {folder} holds.")
    print(f"Train with model_name_or_path: {args.output_dir}, adapter_name_or_path: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
