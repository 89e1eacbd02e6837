"""Make a tiny Llama 4 (its language model) with random weights, for tests.

python scripts/convert_ckpt/tiny_llama4.py --tokenizer meta-llama/Llama-4-Scout-17B-16E --output_dir tiny-llama4
"""

import sys

from tiny_model import run


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "intermediate_size_mlp": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 2,
    "moe_layers": [1],
}

if __name__ == "__main__":
    sys.exit(run(__doc__, "llama4_text", SIZES, sys.argv[1:]))
