"""Pre-training: every token of a stream of texts is learned, whatever way a step is cut (rows N1, N13)."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from llamafactory.data.blocks import TextBlocks
from llamafactory.data.collator import FlatCollator, PaddingCollator
from llamafactory.train.objective import Models
from llamafactory.train.pt.workflow import STAGE
from llamafactory.train.sft.objective import count_supervised, objective_for
from llamafactory.train.tuner import run_exp


@pytest.fixture
def keys(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, monkeypatch: Any) -> dict[str, Any]:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))
    return {
        "model_name_or_path": str(tiny_llama_dir),
        "stage": "pt",
        "do_train": True,
        "dataset": "tiny_alpaca",
        "dataset_dir": str(demo_dataset_dir),
        "cutoff_len": 40,
        "output_dir": str(tmp_path / "out"),
        "overwrite_output_dir": True,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_steps": 2,
        "logging_steps": 1,
        "bf16": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }


def logged(out: Path, name: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (out / "trainer_log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("finetuning_type", ["full", "lora"])
def test_n1_updates_do_not_depend_on_how_a_step_is_cut(keys: dict[str, Any], finetuning_type: str, packing: bool):
    out = Path(keys["output_dir"])
    file = "adapter_model.safetensors" if finetuning_type == "lora" else "model.safetensors"
    losses, weights = [], []
    for batch in (8, 4, 2, 1):
        cut = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 8 // batch}
        run_exp({**keys, **cut, "finetuning_type": finetuning_type, "packing": packing})
        losses.append(logged(out))
        weights.append(load_file(out / file))
    assert losses[0][1] < losses[0][0]
    for other_losses, other_weights in zip(losses[1:], weights[1:], strict=True):
        assert_close(other_losses, losses[0], rtol=0, atol=1e-5)
        for name, weight in weights[0].items():
            assert_close(other_weights[name], weight, rtol=0, atol=1e-5)


def test_an_evaluation_says_the_perplexity(keys: dict[str, Any]):
    run_exp({**keys, "val_size": 4, "do_eval": True, "finetuning_type": "lora", "plot_loss": True})
    out = Path(keys["output_dir"])
    results = json.loads((out / "all_results.json").read_text())
    assert results["eval_perplexity"] == pytest.approx(math.exp(results["eval_loss"]))
    assert STAGE.name == "pt"


def test_n13_every_token_of_a_block_but_its_first_is_a_target(tiny_llama: Callable[..., Any], tiny_tokenizer: Any):
    texts = [{"input_ids": list(range(3 + 20 * number, 20 + 20 * number))} for number in range(4)]
    blocks = [TextBlocks(texts, 25)[index] for index in range(3)]  # 25, 25 and 18 of 68 tokens; cuts inside texts
    assert [token for block in blocks for token in block["input_ids"]] == [
        n for row in texts for n in row["input_ids"]
    ]
    model = tiny_llama().eval()
    objective = objective_for(model)
    found = []
    for collate in (PaddingCollator(tiny_tokenizer), FlatCollator(tiny_tokenizer, with_bounds=False)):
        batch = collate(blocks)
        assert int(count_supervised(batch)) == 68 - 3
        found.append(objective(Models(model), batch).total)
    alone = []
    for block in blocks:
        ids = torch.tensor([block["input_ids"]])
        logits = model(input_ids=ids).logits[0, :-1]
        alone.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
    assert_close(found[0], sum(alone), rtol=1e-5, atol=1e-4)
    assert_close(found[1], found[0], rtol=1e-5, atol=1e-4)
