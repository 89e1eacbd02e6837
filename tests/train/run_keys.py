"""One rank of a run from a configuration file: `run_keys.py KEYS.json`."""

import json
import sys
from pathlib import Path

import torch

from llamafactory.train.tuner import run_exp


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_exp(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
