"""One rank of a streamed run on several processes: `stream_ranks.py CONFIG`."""

import json
import sys
from pathlib import Path

import torch

from llamafactory.train.ranks import leave_ranks
from llamafactory.train.tuner import run_exp


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_exp(json.loads(Path(sys.argv[1]).read_text()))
    leave_ranks()
