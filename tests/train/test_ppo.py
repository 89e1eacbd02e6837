"""Stage ppo: rows N1, N34 and N40, its numbers against plain loops, and that it learns."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout_runs import rollout_keys, run, stop_after
from safetensors.torch import load_file
from torch.testing import assert_close

from llamafactory.data.collator import FlatCollator, PaddingCollator
from llamafactory.extras.errors import UserError
from llamafactory.model.model_utils.valuehead import ValueHead
from llamafactory.model.readout import enable_readout
from llamafactory.train.objective import Models, RolloutPlan
from llamafactory.train.ppo.control import KlController, RunningMoments
from llamafactory.train.ppo.objective import (
    ADVANTAGES,
    KL,
    OLD_LOGPS,
    OLD_VALUES,
    RETURNS,
    VALUE_UNIT,
    PpoObjective,
)
from llamafactory.train.ppo.rollout import PpoRollout, PpoSettings
from llamafactory.train.rollouts.answers import LENGTHS, OWNERS, answer_batches
from llamafactory.train.rollouts.generation import Answer
from llamafactory.train.rollouts.making import AnswerMaker
from llamafactory.train.rollouts.rewards import FunctionJudge, Reward
from llamafactory.train.rollouts.samples import SampleLog


@pytest.fixture
def keys(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path) -> dict[str, Any]:
    return rollout_keys(tiny_llama_dir, demo_dataset_dir, tmp_path)


ANSWERS = [
    Answer([5, 6, 7], [8, 9, 2], True),
    Answer([5, 6], [10, 11, 12, 13, 14], False),
    Answer([15, 16, 17, 18], [2], True),
    Answer([19], [20, 21, 22, 2], True),
]
SCORES = [1.0, -0.5, 2.0, 0.25]


class FixedEngine:
    def generate(self, models: Models, prompts: Any, seed: int) -> list[Answer]:
        assert [answer.prompt_ids for answer in ANSWERS] == prompts
        return ANSWERS


def valued(model: Any) -> Any:
    head = ValueHead(model.config.hidden_size)
    with torch.no_grad():
        head.summary.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(5))
    model.add_module("v_head", head)
    enable_readout(model)
    return model


def make_rollout(tokenizer: Any, folder: Path, collate: Any, size: int, **settings: Any) -> PpoRollout:
    judge = FunctionJudge("fixed", lambda prompts, completions: SCORES)
    maker = AnswerMaker(
        engine=FixedEngine(),
        rewards=[Reward("fixed", judge)],
        decode=tokenizer.batch_decode,
        collate=collate,
        batch_size=size,
        temperature=1.0,
        seed=0,
        samples=SampleLog(folder),
    )
    plan = RolloutPlan(num_prompts=4)
    return PpoRollout(plan, maker, PpoSettings(**{"gamma": 0.9, "lam": 0.8, **settings}), KlController(0.3, 6.0))


def rows() -> list[dict[str, Any]]:
    return [{"input_ids": answer.prompt_ids, "labels": []} for answer in ANSWERS]


def plain_numbers(policy: Any, reference: Any) -> list[dict[str, torch.Tensor]]:
    """Log-probabilities, values and reference of each answer alone, one row at a time."""
    found = []
    for answer in ANSWERS:
        ids = torch.tensor([answer.prompt_ids + answer.ids])
        places = range(len(answer.prompt_ids) - 1, ids.shape[1] - 1)
        with torch.no_grad():
            hidden = policy.model(input_ids=ids).last_hidden_state[0]
            values = policy.v_head(hidden)
            logps = [model(input_ids=ids).logits[0].log_softmax(-1) for model in (policy, reference)]
        chosen = [torch.stack([rows_TV[place, ids[0, place + 1]] for place in places]) for rows_TV in logps]
        found.append({"logps": chosen[0], "reference": chosen[1], "values": values[list(places)]})
    return found


@pytest.mark.parametrize(("kind", "size"), [("flat", 4), ("right", 2), ("flat", 1)])
@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_n34_a_rollout_equals_loops_over_single_answers(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, kind: str, size: int, penalty: float
):
    policy, reference = valued(tiny_llama()), tiny_llama(seed=4)
    enable_readout(reference)
    collate = FlatCollator(tiny_tokenizer) if kind == "flat" else PaddingCollator(tiny_tokenizer)
    rollout = make_rollout(tiny_tokenizer, tmp_path, collate, size, missing_eos_penalty=penalty)
    batches = rollout(Models(policy, {"reference": reference}), rows(), 0)

    advantages, returns = [], []
    numbers = plain_numbers(policy, reference)
    for answer, score, row in zip(ANSWERS, SCORES, numbers, strict=True):
        rewards = [-0.3 * (mine - other).item() for mine, other in zip(row["logps"], row["reference"], strict=True)]
        rewards[-1] += score if answer.is_finished else score - penalty  # on the last real token
        running, values, found = 0.0, row["values"].tolist(), []
        for place in reversed(range(len(rewards))):
            ahead = values[place + 1] if place + 1 < len(values) else 0.0
            running = rewards[place] + 0.9 * ahead - values[place] + 0.9 * 0.8 * running
            found.insert(0, running)
        advantages += found
        returns += [advantage + value for advantage, value in zip(found, values, strict=True)]
    every = torch.tensor(advantages)
    expected = (every - every.mean()) / every.std()

    def joined(name: str) -> torch.Tensor:
        return torch.cat([batch[name] for batch in batches])

    assert_close(joined(OLD_LOGPS), torch.cat([row["logps"] for row in numbers]), rtol=1e-4, atol=1e-5)
    assert_close(joined(OLD_VALUES), torch.cat([row["values"] for row in numbers]), rtol=1e-4, atol=1e-5)
    assert_close(joined(RETURNS), torch.tensor(returns), rtol=1e-4, atol=1e-5)
    assert_close(joined(ADVANTAGES), expected, rtol=1e-4, atol=1e-4)
    kl = torch.stack([(row["logps"] - row["reference"]).sum() for row in numbers])
    assert_close(joined(KL), kl, rtol=1e-4, atol=1e-5)
    assert rollout.controller.coef == pytest.approx(
        0.3 * (1 + max(-0.2, min(0.2, kl.mean().item() / 6 - 1)) * 4 / 1e4)
    )


def test_the_loss_equals_its_formula_and_its_first_gradient_is_the_policy_gradient(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
):
    policy, reference = valued(tiny_llama()).eval(), tiny_llama(seed=4)
    enable_readout(reference)
    rollout = make_rollout(tiny_tokenizer, tmp_path, FlatCollator(tiny_tokenizer), 4)
    (batch,) = rollout(Models(policy, {"reference": reference}), rows(), 0)
    moved = dict(batch) | {OLD_LOGPS: batch[OLD_LOGPS] + torch.linspace(-0.5, 0.5, 13)}
    found = PpoObjective(0.2, 0.1, 0.7)(Models(policy), moved)
    ratios = (batch[OLD_LOGPS] - moved[OLD_LOGPS]).exp()
    surrogate = torch.minimum(ratios * batch[ADVANTAGES], ratios.clamp(0.8, 1.2) * batch[ADVANTAGES])
    values = 0.5 * ((batch[OLD_VALUES] - batch[RETURNS]) / batch[VALUE_UNIT]).square()
    assert found.total.item() == pytest.approx((-surrogate + 0.7 * values).sum().item(), rel=1e-4)
    assert found.weight.item() == 13
    assert found.metrics["reward"].total.item() == pytest.approx(sum(SCORES))

    fresh = PpoObjective(0.2, 0.2, 0.0)(Models(policy), batch)
    (gradient,) = torch.autograd.grad(fresh.total, policy.model.norm.weight)
    logps = []
    for answer in ANSWERS:
        ids = torch.tensor([answer.prompt_ids + answer.ids])
        rows_TV = policy(input_ids=ids).logits[0].log_softmax(-1)
        start = len(answer.prompt_ids)
        logps += [rows_TV[place - 1, ids[0, place]] for place in range(start, ids.shape[1])]
    (expected,) = torch.autograd.grad(-(torch.stack(logps) * batch[ADVANTAGES]).sum(), policy.model.norm.weight)
    assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
    assert fresh.metrics["clip_fraction"].total.item() == 0


def test_a_fresh_head_starts_at_the_mean_return_and_the_size_of_rewards_changes_no_loss(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
):
    reference = tiny_llama(seed=4)
    enable_readout(reference)
    found = []
    for scale in (1.0, 100.0):
        policy = valued(tiny_llama()).eval()
        torch.nn.init.zeros_(policy.v_head.summary.weight)
        rollout = make_rollout(tiny_tokenizer, tmp_path, FlatCollator(tiny_tokenizer), 2)
        rollout.controller.coef *= scale
        judge = FunctionJudge("fixed", lambda completions, scale=scale: [scale * score for score in SCORES])
        rollout.maker = replace(rollout.maker, rewards=[Reward("fixed", judge)])
        batches = rollout(Models(policy, {"reference": reference}), rows(), 0)

        to_go = []  # what is still to come at each token, discounted
        for answer, score, row in zip(ANSWERS, SCORES, plain_numbers(policy, reference), strict=True):
            rewards = [
                -0.3 * (mine - other).item() for mine, other in zip(row["logps"], row["reference"], strict=True)
            ]
            rewards[-1] += score
            to_go += [sum(0.9**k * r for k, r in enumerate(rewards[place:])) for place in range(len(answer.ids))]
        start = policy.v_head.summary.bias.item()
        assert start == pytest.approx(scale * sum(to_go) / len(to_go), rel=1e-4)
        assert all((batch[OLD_VALUES] == start).all() for batch in batches)
        returns = torch.cat([batch[RETURNS] for batch in batches])
        assert batches[0][VALUE_UNIT].item() == pytest.approx(returns.std().item(), rel=1e-4)
        for batch in batches:  # a value that moved too far, and logps that moved
            batch[OLD_VALUES] = batch[OLD_VALUES] + 0.5 * batch[VALUE_UNIT]
            batch[OLD_LOGPS] = batch[OLD_LOGPS] + 0.1
        found.append([PpoObjective(0.2, 0.2, 0.1)(Models(policy), batch).total.item() for batch in batches])
        rollout(Models(policy, {"reference": reference}), rows(), 1)
        assert policy.v_head.summary.bias.item() == start
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_answers_know_their_tokens_in_every_layout(tiny_tokenizer: Any):
    for collate in (FlatCollator(tiny_tokenizer, 8), PaddingCollator(tiny_tokenizer, padding_side="left")):
        for batch in answer_batches(ANSWERS, collate, 2):
            ids = batch["input_ids"].flatten()
            assert torch.equal(ids[batch["rollout_positions"] + 1], batch["rollout_targets"])
            assert torch.equal(torch.bincount(batch[OWNERS]), batch[LENGTHS])


def test_the_controller_steers_to_its_target_and_moments_equal_those_of_all_numbers():
    controller = KlController(0.2, 6.0)
    controller.update(60.0, 1000)
    assert controller.coef == pytest.approx(0.2 * (1 + 0.2 * 0.1))
    controller.update(5.7, 1000)
    assert controller.coef == pytest.approx(0.2 * 1.02 * (1 - 0.05 * 0.1))
    moments, numbers = RunningMoments(), torch.randn(50, dtype=torch.float64) * 3 + 100
    for part in numbers.split(7):
        moments.add(len(part), part.sum().item(), part.square().sum().item())
    assert moments.mean == pytest.approx(numbers.mean().item())
    assert moments.std == pytest.approx(numbers.std().item(), rel=1e-6)
    equal = RunningMoments()
    equal.add(3, 0.3, 3 * 0.1**2 + 1e-17)  # three times the same number: no spread, only rounding
    assert equal.std == 1


@pytest.mark.parametrize("method", ["full", "lora"])
def test_n1_updates_do_not_depend_on_how_a_step_is_cut(keys: dict[str, Any], tmp_path: Path, method: str):
    results = []
    for batch, accumulation, is_flat in ((8, 1, True), (4, 2, False), (1, 8, True)):
        changes = {
            "finetuning_type": method,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "padding_free": is_flat,
            "ppo_epochs": 2,
            "optim": "sgd",
            "learning_rate": 0.1,
            "output_dir": str(tmp_path / f"{batch}"),
        }
        results.append(run({**keys, **changes}))
    for weights, log in results[1:]:
        for name, weight in weights.items():
            assert_close(weight, results[0][0][name], rtol=0, atol=2e-5, msg=name)
        for entry, first in zip(log, results[0][1], strict=True):
            assert entry["loss"] == pytest.approx(first["loss"], abs=1e-4)
            assert entry["reward"] == pytest.approx(first["reward"])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_n40_a_run_stopped_in_the_middle_of_a_rollout_goes_on_bit_for_bit(
    keys: dict[str, Any], tmp_path: Path, method: str
):
    common = {
        **keys,
        "finetuning_type": method,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "ppo_buffer_size": 2,
        "ppo_epochs": 2,  # 4 steps a rollout
        "ppo_score_norm": True,
        "ppo_whiten_rewards": True,
        "ppo_kl_coef": 0.1,
        "max_steps": 7,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    whole, log = run({**common, "output_dir": str(tmp_path / "whole")})
    resumed, second = run(stop_after(common, 3))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert {"v_head.summary.weight", "v_head.summary.bias"} <= whole.keys()
    assert log == second
    samples = [(tmp_path / name / "rollout_samples.jsonl").read_text(encoding="utf-8") for name in ("whole", "out")]
    assert samples[0] == samples[1]
    assert [json.loads(line)["step"] for line in samples[0].splitlines()] == [0] * 4 + [4] * 4


def test_steps_and_epochs_count_true_updates(keys: dict[str, Any], tmp_path: Path):
    changes = {"max_steps": -1, "num_train_epochs": 1, "ppo_epochs": 3, "per_device_train_batch_size": 10}
    _, log = run({**keys, **changes})  # 24 prompts: 3 rollouts, the last one filled up
    assert [entry["step"] for entry in log] == list(range(1, 10))
    assert log[-1]["epoch"] == 1.0


def test_the_reward_rises_and_the_divergence_stays_bounded(keys: dict[str, Any], tmp_path: Path):
    changes = {"per_device_train_batch_size": 16, "max_steps": 88, "num_train_epochs": 40, "ppo_kl_coef": 0.02}
    changes["learning_rate"] = 6e-3
    _, log = run({**keys, **changes, "logging_steps": 8})
    assert log[-1]["reward"] > 2 * log[0]["reward"] + 0.5
    assert all(math.isfinite(value) for entry in log for value in entry.values())
    assert 0 < log[-1]["kl"] < 30
    names = {"reward", "kl", "clip_fraction", "value_loss", "entropy", "answer_length", "finished", "policy_change"}
    assert names <= log[-1].keys()
    assert log[-1]["value_loss"] > 0


def test_the_result_loads_with_plain_transformers_and_its_value_head_apart(keys: dict[str, Any], tmp_path: Path):
    from transformers import AutoModelForCausalLM

    run(keys)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    report = loaded[1]
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    head = load_file(tmp_path / "out" / "value_head.safetensors")
    assert {name: tuple(value.shape) for name, value in head.items()} == {
        "v_head.summary.weight": (1, 32),
        "v_head.summary.bias": (1,),
    }
    assert head["v_head.summary.weight"].any()


def test_what_cannot_work_is_refused_in_one_sentence(keys: dict[str, Any], tmp_path: Path):
    rewards = tmp_path / "rewards.py"
    for changes, words in (
        ({"reward_funcs": f"{rewards}:nothing"}, "defines no function 'nothing'"),
        ({"reward_funcs": f"{rewards}:wrong"}, "returned 1 numbers for 8"),
        ({"reward_funcs": "missing.py:f"}, "there is no file 'missing.py'"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 sets no cap"),
        ({"reward_funcs": None, "reward_model": "here", "reward_model_type": "api"}, "is no address"),
    ):
        with pytest.raises(UserError, match=words):
            run({**keys, **changes})
