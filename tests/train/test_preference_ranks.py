"""Rows N2 and N32: preference tuning on two processes equals one, with adapters switched under DDP."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from test_two_ranks import SCRIPTS, start
from torch.testing import assert_close


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dpo-lora", "dpo-continued", "dpo-full", "kto-lora"])
def test_n2_n32_two_ranks_equal_one(tiny_llama_dir: Path, tmp_path: Path, kind: str):
    outcomes: list[dict[str, Any]] = []
    weights = []
    for num_ranks, batch in ((1, 4), (2, 2)):
        out = tmp_path / f"{kind}-{num_ranks}"
        script = SCRIPTS / "two_ranks_preference.py"
        processes = start(script, num_ranks, str(tiny_llama_dir), str(out), str(batch))
        assert [process.wait(timeout=300) for process in processes] == [0] * num_ranks
        outcomes.append(json.loads((out / "outcome.json").read_text()))
        weights.append(load_file(out / "weights.safetensors")["weights"])

    one, two = outcomes
    assert_close(weights[1], weights[0], rtol=0, atol=1e-6)
    assert len(one["loss"]) == 4
    for name in ("loss", "margins"):
        assert two[name] == pytest.approx(one[name], abs=1e-5)
    for name in ("eval_loss", "eval_rewards/margins", "eval_logits/chosen"):
        assert two["eval"][name] == pytest.approx(one["eval"][name], abs=1e-5)
