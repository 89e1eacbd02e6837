"""Losses of supervised fine-tuning on whole models: rows N5 and N6, and what an evaluation measures."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainer import make_rows, pad_right, with_lora
from torch.testing import assert_close

from llamafactory.hparams import FinetuningArguments
from llamafactory.ops.cross_entropy import TokenLoss
from llamafactory.train.objective import Models
from llamafactory.train.reference import REFERENCE
from llamafactory.train.sft.metric import perplexity
from llamafactory.train.sft.objective import SupervisedObjective, count_supervised, objective_for, variant_of
from llamafactory.train.tuner import run_exp


BATCH = pad_right(make_rows(5, seed=4))


def log_probs(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """All log-probabilities at the supervised positions, and those of the labels."""
    logits = model(input_ids=BATCH["input_ids"], attention_mask=BATCH["attention_mask"]).logits[:, :-1]
    targets = BATCH["labels"][:, 1:]
    all_logps = logits[targets != -100].log_softmax(dim=-1)
    return all_logps, all_logps.gather(1, targets[targets != -100][:, None])[:, 0]


def moved(model: Any) -> Any:
    """The model with an adapter that changes what it says."""
    adapted = with_lora(model)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.add_(0.2)
    return adapted


def of_arguments(model: Any, **values: Any) -> SupervisedObjective:
    arguments = FinetuningArguments(**values)
    strength = arguments.asft_alpha if arguments.use_asft_loss else 0.0
    return replace(objective_for(model), loss=variant_of(arguments), anchor_strength=strength)


def test_n6_dft_and_eaft_weigh_the_loss_of_each_token(tiny_llama: Callable[..., Any]):
    model = tiny_llama()
    all_logps, logps = log_probs(model)
    dft = of_arguments(model, use_dft_loss=True)(Models(model), BATCH)
    assert_close(dft.total, -(logps.exp() * logps).sum(), rtol=1e-5, atol=1e-5)

    top = all_logps.topk(20).values.softmax(dim=-1)
    entropies = -(top * top.log()).sum(dim=-1)
    eaft = of_arguments(model, use_eaft_loss=True, eaft_alpha=2.0)(Models(model), BATCH)
    assert_close(eaft.total, -((entropies / 3) ** 2 * logps).sum(), rtol=1e-5, atol=1e-5)
    assert dft.weight == eaft.weight == count_supervised(BATCH)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_n6_asft_adds_the_divergence_from_the_starting_model(method: str, tiny_llama: Callable[..., Any]):
    start = tiny_llama().eval()
    model: Any = moved(tiny_llama()) if method == "lora" else tiny_llama(seed=1)
    objective = of_arguments(model, use_asft_loss=True, asft_alpha=0.3)
    helper = copy.deepcopy(start)
    objective_for(helper)
    models = Models(model, {} if method == "lora" else {REFERENCE: helper})
    found = objective(models, BATCH)
    found.total.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()

    all_logps, logps = log_probs(model)
    anchor = log_probs(start)[0].detach()
    divergence = (all_logps.exp() * (all_logps - anchor)).sum()
    assert divergence > 0.1
    expected = -(logps.detach().exp() * logps).sum() + 0.3 * divergence
    assert_close(found.total, expected, rtol=1e-5, atol=1e-5)
    expected.backward()
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            assert_close(gradients[name], weight.grad, rtol=1e-4, atol=1e-5)


def test_n6_nothing_but_the_plain_loss_is_measured_in_evaluation(tiny_llama: Callable[..., Any]):
    model = moved(tiny_llama())
    plain = -log_probs(model)[1].sum()
    for objective in (
        of_arguments(model, use_dft_loss=True),
        of_arguments(model, use_eaft_loss=True),
        of_arguments(model, use_asft_loss=True),
        SupervisedObjective(TokenLoss(label_smoothing=0.2, z_loss=0.1)),
    ):
        assert (objective(Models(model.train()), BATCH).total - plain).abs() > 1e-2
        assert_close(objective(Models(model.eval()), BATCH).total, plain, rtol=1e-5, atol=1e-5)


def test_n6_weights_of_messages_count_in_loss_and_weight(tiny_llama: Callable[..., Any]):
    model = tiny_llama()
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(BATCH["labels"].shape, generator=generator)
    batch = {**BATCH, "loss_weights": weights}
    found = objective_for(model)(Models(model), batch)
    chosen = weights[:, 1:][BATCH["labels"][:, 1:] != -100]
    assert_close(found.total, -(chosen * log_probs(model)[1]).sum(), rtol=1e-5, atol=1e-5)
    assert_close(found.weight, chosen.sum())
    assert_close(count_supervised(batch), found.weight)


def test_perplexity_is_the_exponential_of_the_loss():
    assert perplexity({"loss": math.log(7.0)}) == {"perplexity": pytest.approx(7.0)}
    assert perplexity({"loss": 1e4}) == {"perplexity": math.inf}
    assert perplexity({"rouge-l": 3.0}) == {}


@pytest.fixture
def keys(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, monkeypatch: Any) -> dict[str, Any]:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))
    return {
        "model_name_or_path": str(tiny_llama_dir),
        "stage": "sft",
        "do_train": True,
        "do_eval": True,
        "dataset": "tiny_alpaca",
        "dataset_dir": str(demo_dataset_dir),
        "template": "chatml",
        "cutoff_len": 128,
        "val_size": 4,
        "output_dir": str(tmp_path / "out"),
        "learning_rate": 0.01,
        "max_steps": 3,
        "logging_steps": 1,
        "bf16": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }


def first_and_eval_loss(keys: dict[str, Any], **changes: Any) -> tuple[float, float]:
    out = Path(keys["output_dir"])
    run_exp({**keys, "overwrite_output_dir": True, **changes})
    lines = [json.loads(line) for line in (out / "trainer_log.jsonl").read_text().splitlines()]
    return lines[0]["loss"], json.loads((out / "all_results.json").read_text())["eval_loss"]


@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
def test_a_run_with_asft_has_a_reference_and_an_evaluation(keys: dict[str, Any], finetuning_type: str):
    loss, eval_loss = first_and_eval_loss(keys, finetuning_type=finetuning_type, use_asft_loss=True)
    plain, _ = first_and_eval_loss(keys, finetuning_type=finetuning_type)
    assert 0 < loss < 0.1 * plain
    assert eval_loss > 1


def test_n6_neftune_noise_is_in_training_only(keys: dict[str, Any]):
    noisy = first_and_eval_loss(keys, neftune_noise_alpha=50.0, learning_rate=0.0)
    plain = first_and_eval_loss(keys, learning_rate=0.0)
    assert abs(noisy[0] - plain[0]) > 1e-4
    assert noisy[1] == pytest.approx(plain[1], abs=1e-6)
