"""Row N2: two processes with very uneven numbers of tokens train exactly like one."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from test_checkpoints import wait_for_step
from tiny_trainer import make_rows
from torch.testing import assert_close

from llamafactory.extras.env import child_environment
from llamafactory.train.checkpoints import list_checkpoints


SCRIPTS = Path(__file__).parent


def start(script: Path, num_ranks: int, *arguments: str) -> list["subprocess.Popen[bytes]"]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for rank in range(num_ranks):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        environment = child_environment(**({**ranks, **meeting} if num_ranks > 1 else {"OMP_NUM_THREADS": "1"}))
        processes.append(subprocess.Popen([sys.executable, str(script), *arguments], env=environment))
    return processes


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_n2_two_ranks_equal_one(tiny_llama_dir: Path, tmp_path: Path, method: str):
    outcomes: list[dict[str, Any]] = []
    weights = []
    for num_ranks, batch in ((1, 4), (2, 2)):
        out = tmp_path / f"{method}{num_ranks}"
        processes = start(SCRIPTS / "two_ranks.py", num_ranks, str(tiny_llama_dir), str(out), str(batch))
        assert [process.wait(timeout=300) for process in processes] == [0] * num_ranks
        outcomes.append(json.loads((out / "outcome.json").read_text()))
        weights.append(load_file(out / "weights.safetensors")["weights"])
        assert [folder.name for folder in list_checkpoints(out)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
        states = sorted(file.name for file in (out / "checkpoint-6").glob("rng_state*"))
        assert states == (["rng_state.pth"] if num_ranks == 1 else ["rng_state_0.pth", "rng_state_1.pth"])

    one, two = outcomes
    assert_close(weights[1], weights[0], rtol=0, atol=1e-6)
    assert one["resumed equally"]
    assert two["resumed equally"]
    for name in ("loss", "eval_loss", "train_loss", "loss of one row"):
        assert two[name] == pytest.approx(one[name], abs=1e-5)
    assert one["tokens"] == two["tokens"] == 2 * sum(len(row["input_ids"]) for row in make_rows(24))
    assert one["predictions"] == two["predictions"] == [{"first": row["input_ids"][0]} for row in make_rows(7, seed=3)]


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_ranks_after_the_same_step(tiny_llama_dir: Path, tmp_path: Path):
    out = tmp_path / "out"
    processes = start(SCRIPTS / "endless_run.py", 2, str(tiny_llama_dir), str(out))
    wait_for_step(out, processes[0], 3)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=120) for process in processes] == [143, 143]
    states = sorted(file.name for file in list_checkpoints(out)[-1].glob("rng_state*"))
    assert states == ["rng_state_0.pth", "rng_state_1.pth"]
