"""Make a tiny Qwen 3 with random weights, for tests.

python scripts/convert_ckpt/tiny_qwen3.py --tokenizer Qwen/Qwen3-0.6B --output_dir tiny-qwen3
"""

import sys

from tiny_model import run


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}

if __name__ == "__main__":
    sys.exit(run(__doc__, "qwen3", SIZES, sys.argv[1:]))
