"""Write the weights of a model folder as a torch distributed checkpoint, under the key `model`.

python scripts/hf2dcp.py convert --hf_path Qwen3-0.6B --dcp_path checkpoint
"""

import argparse
import sys
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("convert",), default="convert")
    parser.add_argument("--hf_path", type=Path, required=True)
    parser.add_argument("--dcp_path", type=Path, required=True)
    given = parser.parse_args(words)
    files = sorted(given.hf_path.glob("*.safetensors"))
    if not files:
        print(f"{given.hf_path} holds no .safetensors weights.", file=sys.stderr)
        return 1
    state = {name: weight for file in files for name, weight in load_file(file).items()}
    dcp.save({"model": state}, storage_writer=dcp.FileSystemWriter(given.dcp_path), no_dist=True)
    print(f"{given.dcp_path}: {len(state)} tensors.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
