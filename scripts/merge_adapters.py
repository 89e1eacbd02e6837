"""Add LoRA adapters of one base up into one adapter, each with a weight.

    python scripts/merge_adapters.py saves/a saves/b --weights 0.7,0.3 --output-dir saves/both
    python scripts/merge_adapters.py saves/a --weights 0.5 --output-dir saves/half

The sum is exact: the new rank is the sum of the ranks. `--rank N` keeps its N largest directions per layer instead.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llamafactory.extras.errors import UserError


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
A, B = "lora_A.weight", "lora_B.weight"
Tensors = dict[str, torch.Tensor]


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs="+", type=Path)
    parser.add_argument("--weights", required=True, help="one number per adapter, with commas between")
    parser.add_argument("--rank", type=int, help="rank of the result; unset keeps everything")
    parser.add_argument("--output-dir", type=Path, required=True)
    given = parser.parse_args(words)
    try:
        weights = [float(word) for word in given.weights.split(",")]
        rank = merge(given.adapters, weights, given.output_dir, given.rank)
    except (UserError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{given.output_dir}: {len(weights)} adapters in one of rank {rank}.")
    return 0


def merge(folders: list[Path], weights: list[float], target: Path, rank: int | None = None) -> int:
    """Write the weighted sum and return its rank."""
    if len(folders) != len(weights):
        raise UserError(f"{len(folders)} adapters need as many weights, not {len(weights)}.")
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} already holds something: remove it or choose another folder.")
    configs = [read_config(folder) for folder in folders]
    parts = [load_file(folder / WEIGHTS) for folder in folders]
    names = sorted(parts[0])
    for folder, config, part in zip(folders, configs, parts, strict=True):
        if sorted(part) != names or config["base_model_name_or_path"] != configs[0]["base_model_name_or_path"]:
            raise UserError(f"{folder} and {folders[0]} do not adapt the same layers of the same base.")
    total = sum(config["r"] for config in configs)
    sums: Tensors = {}
    for name in names:
        if name.endswith(A):
            twin = name.removesuffix(A) + B
            factors = [weight * scale_of(config) for weight, config in zip(weights, configs, strict=True)]
            sums[name], sums[twin] = add_up([(part[name], part[twin]) for part in parts], factors, rank)
    target.mkdir(parents=True, exist_ok=True)
    kept = min(rank or total, total)
    save_file(sums, target / WEIGHTS, metadata={"format": "pt"})
    config = configs[0] | {"r": kept, "lora_alpha": kept, "use_rslora": False}
    (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return kept


def read_config(folder: Path) -> dict[str, Any]:
    """Read an adapter's config; only plain LoRA can be added up."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    odd = [name for name in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(name)]
    if config.get("peft_type") != "LORA" or odd or config.get("bias", "none") != "none":
        raise UserError(
            f"{folder} is not a plain LoRA adapter ({', '.join(odd) or config.get('peft_type')}): merge it by export."
        )
    return config


def scale_of(config: dict[str, Any]) -> float:
    """What PEFT multiplies B A by."""
    return config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])


def add_up(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], factors: list[float], rank: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B whose product, with scale 1, is the sum of factor * B A."""
    down = torch.cat([pair[0].float() for pair in pairs])
    up = torch.cat([factor * pair[1].float() for factor, pair in zip(factors, pairs, strict=True)], dim=1)
    if rank is None or rank >= down.shape[0]:
        return down.contiguous(), up.contiguous()
    left, upper = torch.linalg.qr(up)
    right, lower = torch.linalg.qr(down.T)
    u, s, v = torch.linalg.svd(upper @ lower.T)  # of the small core only
    root = s[:rank].sqrt()
    return (root[:, None] * (v[:rank] @ right.T)).contiguous(), (left @ u[:, :rank] * root).contiguous()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
