"""Write a base model that loses little when it is packed to few bits, and the LoRA adapter that makes up for the loss
(LoftQ, arxiv.org/abs/2310.08659).

    python scripts/loftq_init.py --model_name_or_path Qwen/Qwen3-4B --output_dir models/qwen3-loftq

Then train with model_name_or_path: models/qwen3-loftq, adapter_name_or_path: models/qwen3-loftq/loftq_init and the
quantization_bit that was given here as --loftq_bits. Chat and export take the same model, with the trained adapter.
"""

import argparse
import sys
from pathlib import Path

from torch import Tensor

from llamafactory.extras.errors import UserError
from llamafactory.model.quantization.loftq import Split, round_trip_of, split_loftq
from llamafactory.model.starting_base import StartingAdapter, write_starting_base


FOLDER = "loftq_init"


def main(words: list[str]) -> int:
    """Split, save, and say by how much the packed model is nearer to the original."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="the model to start from")
    parser.add_argument("--output_dir", required=True, type=Path, help="receives the base, and the adapter inside")
    parser.add_argument("--loftq_bits", type=int, default=4, help="the quantization_bit of the training")
    parser.add_argument("--loftq_iter", type=int, default=4, help="how often base and adapter take turns")
    parser.add_argument("--quantization_method", default="bnb", choices=("bnb", "hqq"), help="that of the training")
    parser.add_argument("--quantization_type", default="nf4", choices=("nf4", "fp4"), help="that of the training")
    parser.add_argument("--lora_alpha", type=int, help="strength of the adapter (default: twice the rank)")
    parser.add_argument("--lora_rank", type=int, default=16, help="width of the adapter's matrices")
    parser.add_argument("--lora_dropout", type=float, default=0.0, help="share of the input that is dropped")
    parser.add_argument("--lora_target", default="q_proj,v_proj", help="layers, by comma, or all")
    parser.add_argument("--save_safetensors", default="true", choices=("true", "True"), help="always so")
    args = parser.parse_args(words)
    lost: list[tuple[float, float]] = []
    try:
        round_trip = round_trip_of(args.quantization_method, args.loftq_bits, args.quantization_type)

        def split(weight: Tensor, rank: int, scale: float) -> Split:
            parts = split_loftq(weight, round_trip, rank, scale, args.loftq_iter)
            wide, used = weight.float(), round_trip(parts.base_OD.float()) + scale * parts.b_OR @ parts.a_RD
            lost.append((float((wide - round_trip(wide)).norm()), float((wide - used).norm())))
            return parts

        adapter = StartingAdapter(
            rank=args.lora_rank,
            alpha=args.lora_alpha or 2 * args.lora_rank,
            dropout=args.lora_dropout,
            target=tuple(args.lora_target.split(",")),
        )
        folder, num_layers = write_starting_base(args.model_name_or_path, args.output_dir, FOLDER, adapter, split)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    before, after = (sum(column) for column in zip(*lost, strict=True))
    print(f"{args.output_dir}: {num_layers} layers; distance to the original {after / before:.2f} of plain packing.")
    print(
        f"Train with model_name_or_path: {args.output_dir}, adapter_name_or_path: {folder}, "
        f"quantization_bit: {args.loftq_bits}, quantization_method: {args.quantization_method}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
