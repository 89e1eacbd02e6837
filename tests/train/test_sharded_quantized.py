"""QLoRA whose packed weights are split over two ranks (FSDP-QLoRA): it learns what one process learns."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close


pytestmark = pytest.mark.quantized

SHARDED = {
    "fsdp": "full_shard auto_wrap",
    "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}


def train(config: dict[str, Any], folder: Path, num_ranks: int) -> list[float]:
    """Train in processes of their own, and return the losses."""
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**config, "output_dir": str(folder)}), encoding="utf-8")
    several = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(num_ranks)} if num_ranks > 1 else {}
    command = [sys.executable, "-m", "llamafactory.cli", "train", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **several}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def test_n2_two_ranks_that_share_four_bits_equal_one(
    wide_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path
) -> None:
    config = {
        "model_name_or_path": str(wide_llama_dir),
        "quantization_bit": 4,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 4,
        "dataset": "tiny_alpaca",
        "dataset_dir": str(demo_dataset_dir),
        "cutoff_len": 96,
        "learning_rate": 1e-2,
        "max_steps": 4,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": True,
    }

    one = train({**config, "per_device_train_batch_size": 4}, tmp_path / "one", 1)
    two = train({**config, **SHARDED, "per_device_train_batch_size": 2}, tmp_path / "two", 2)

    assert one[-1] < one[0] - 0.1
    assert two == pytest.approx(one, rel=5e-3)
    alone, split = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert alone.keys() == split.keys()
    for name in alone:
        assert_close(split[name].float(), alone[name].float(), rtol=0, atol=5e-3, msg=name)
