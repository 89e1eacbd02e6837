"""Stage grpo: rows N1, N35 and N40 for its four measures, rewards of several sources, and that it learns."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout_runs import rollout_keys, run, stop_after
from torch.testing import assert_close

from llamafactory.data.collator import FlatCollator, PaddingCollator
from llamafactory.extras.errors import UserError
from llamafactory.model.readout import enable_readout
from llamafactory.train.grpo.objective import (
    ADVANTAGES,
    EQUAL,
    OLD_LOGPS,
    REFERENCE_LOGPS,
    REWARDS,
    WEIGHT,
    GrpoObjective,
    weight_of,
)
from llamafactory.train.objective import Models
from llamafactory.train.rollouts.answers import answer_batches
from llamafactory.train.rollouts.generation import Answer


KINDS = ["grpo", "dapo", "dr_grpo", "gspo"]
ANSWERS = [
    Answer([5, 6, 7], [8, 9, 2], True),
    Answer([5, 6, 7], [10, 11, 12, 13, 14, 15], False),
    Answer([16, 17], [2], True),
    Answer([16, 17], [20, 21, 22, 2], True),
]
ADVANTAGE = torch.tensor([1.0, -1.0, -0.7, 0.7])


@pytest.fixture
def keys(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path) -> dict[str, Any]:
    changes = {"stage": "grpo", "num_generations": 4}
    return rollout_keys(tiny_llama_dir, demo_dataset_dir, tmp_path, **changes)


def logps_of(model: Any, answer: Answer) -> torch.Tensor:
    ids = torch.tensor([answer.prompt_ids + answer.ids])
    rows_TV = model(input_ids=ids).logits[0].log_softmax(-1)
    start = len(answer.prompt_ids)
    return torch.stack([rows_TV[place - 1, ids[0, place]] for place in range(start, ids.shape[1])])


def by_hand(kind: str, policy: Any, old: Any, reference: Any, beta: float) -> torch.Tensor:
    """The loss of all answers as the papers write it, one answer after another: a mean, not a sum."""
    losses = []
    for answer, advantage in zip(ANSWERS, ADVANTAGE, strict=True):
        logps = logps_of(policy, answer)
        with torch.no_grad():
            before, anchor = logps_of(old, answer), logps_of(reference, answer)
        ratios = ((logps - before).mean() if kind == "gspo" else logps - before).exp()
        surrogate = torch.minimum(ratios * advantage, ratios.clamp(0.8, 1.3) * advantage)
        kl = (anchor - logps).exp() - 1 - (anchor - logps)
        losses.append(-surrogate + beta * (kl.mean() if kind == "gspo" else kl))
    if kind in ("grpo", "gspo"):
        return torch.stack([loss.mean() for loss in losses]).mean()
    return torch.cat(losses).sum() / (14 if kind == "dapo" else 4 * 10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [4, 1])
def test_losses_and_gradients_equal_the_papers_however_the_step_is_cut(
    tiny_llama: Any, tiny_tokenizer: Any, kind: Any, size: int
):
    policy, old, reference = (tiny_llama(seed=seed).eval() for seed in (0, 1, 2))
    for number, weight in enumerate(old.parameters()):
        with torch.no_grad():
            fresh = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
            weight.copy_(list(policy.parameters())[number] + 0.05 * fresh)
    enable_readout(policy)
    collate = FlatCollator(tiny_tokenizer) if size == 4 else PaddingCollator(tiny_tokenizer)
    objective, start = GrpoObjective(kind, 0.2, 0.3, beta=0.1), 0
    total, weight = torch.zeros(()), torch.zeros(())
    for batch in answer_batches(ANSWERS, collate, size):
        chosen = ANSWERS[start : start + size]
        with torch.no_grad():
            batch[OLD_LOGPS] = torch.cat([logps_of(old, answer) for answer in chosen])
            batch[REFERENCE_LOGPS] = torch.cat([logps_of(reference, answer) for answer in chosen])
        batch |= dict.fromkeys((ADVANTAGES, REWARDS, EQUAL), ADVANTAGE[start : start + size])
        batch[WEIGHT] = weight_of(kind, batch, longest=10)
        found = objective(Models(policy), batch)
        total, weight, start = total + found.total, weight + found.weight, start + size
    expected = by_hand(kind, policy, old, reference, beta=0.1)
    assert_close(total / weight, expected, rtol=1e-4, atol=1e-5)
    parameters = list(policy.model.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(total / weight, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", ["grpo", "dapo"])
def test_n1_n35_updates_do_not_depend_on_how_a_step_is_cut(
    keys: dict[str, Any], tmp_path: Path, method: str, kind: str
):
    results = []
    for batch, accumulation, is_flat in ((8, 1, True), (2, 4, False), (1, 8, True)):
        changes = {
            "finetuning_type": method,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "padding_free": is_flat,
            "grpo_loss": kind,
            "grpo_epochs": 2,
            "grpo_beta": 0.05,
            "optim": "sgd",
            "learning_rate": 0.1,
            "output_dir": str(tmp_path / f"{batch}"),
        }
        results.append(run({**keys, **changes}))
    for weights, log in results[1:]:
        for name, weight in weights.items():
            assert_close(weight, results[0][0][name], rtol=0, atol=2e-5, msg=name)
        assert [entry["reward"] for entry in log] == pytest.approx([entry["reward"] for entry in results[0][1]])


def test_n35_groups_of_equal_rewards_change_nothing(keys: dict[str, Any], tmp_path: Path):
    (tmp_path / "rewards.py").write_text("def same(completions): return [0.1] * len(completions)", encoding="utf-8")
    weights, log = run({**keys, "reward_funcs": f"{tmp_path / 'rewards.py'}:same", "optim": "sgd"})
    from safetensors.torch import load_file

    before = load_file(Path(keys["model_name_or_path"]) / "model.safetensors")
    assert all(torch.equal(weight, before[name]) for name, weight in weights.items())
    assert [entry["equal_groups"] for entry in log] == [1.0] * 4
    assert [entry["loss"] for entry in log] == [0.0] * 4


@pytest.mark.parametrize("changes", [{"do_sample": False}, {"temperature": 0.0}])
def test_n35_answers_that_cannot_differ_are_refused(keys: dict[str, Any], changes: dict[str, Any]):
    with pytest.raises(UserError, match="writes the same one each time"):
        run({**keys, **changes})


@pytest.mark.parametrize("method", ["full", "lora"])
def test_n40_a_run_stopped_in_the_middle_of_a_rollout_goes_on_bit_for_bit(
    keys: dict[str, Any], tmp_path: Path, method: str
):
    common = {
        **keys,
        "finetuning_type": method,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "grpo_buffer_size": 2,
        "grpo_epochs": 2,  # 4 steps a rollout
        "grpo_beta": 0.01,
        "max_steps": 7,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    whole, log = run({**common, "output_dir": str(tmp_path / "whole")})
    resumed, second = run(stop_after(common, 3))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert log == second


def test_the_reward_rises(keys: dict[str, Any]):
    changes = {"per_device_train_batch_size": 16, "num_generations": 8, "max_steps": 64, "num_train_epochs": 99}
    _, log = run({**keys, **changes, "logging_steps": 8, "grpo_epochs": 2})
    assert log[-1]["reward"] > 2 * log[0]["reward"] + 0.5
    assert 0 < log[-1]["entropy"] < log[0]["entropy"]


def test_rewards_of_several_sources_are_weighed_and_logged_apart(keys: dict[str, Any], tmp_path: Path):
    file = tmp_path / "rewards.py"
    _, log = run({**keys, "reward_funcs": f"{file}:letters,{file}:odd", "reward_weights": "1,-2"})
    for entry in log:
        assert entry["reward/odd"] == pytest.approx(1.0)  # the mean of those it applies to
        assert {"reward", "reward/letters", "answer_length", "clip_fraction"} <= entry.keys()
        assert entry["reward/letters"] - 2 <= entry["reward"] + 1e-6 <= entry["reward/letters"] + 2e-6


def test_an_evaluation_judges_the_likeliest_answers_at_any_batch_size(keys: dict[str, Any], tmp_path: Path):
    found = []
    for size in (1, 5):
        out = tmp_path / f"size{size}"
        changes = {"val_size": 6, "do_eval": True, "do_predict": True, "eval_strategy": "steps", "eval_steps": 2}
        run({**keys, **changes, "per_device_eval_batch_size": size, "output_dir": str(out), "max_steps": 2})
        lines = (out / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
        results = json.loads((out / "all_results.json").read_text(encoding="utf-8"))
        records = [json.loads(line) for line in lines]
        mean = sum(record["reward"] for record in records) / len(records)
        assert results["eval_reward"] == pytest.approx(mean) == results["predict_reward"]
        assert all(record["reward"] == record["predict"].count("o") for record in records)
        found.append(records)
    assert found[0] == found[1]
    assert len(found[0]) == 6
