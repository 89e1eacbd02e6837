"""The reference of the preference stages: rows N26, N27 and N28 of the correctness list."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pairs import collator, dpo_parts, make_pairs, shift_weights
from torch.testing import assert_close

from llamafactory.model.readout import enable_readout
from llamafactory.train.answers import answer_log_probs, reference_sums
from llamafactory.train.callbacks.neftune import EmbeddingNoise
from llamafactory.train.objective import Models
from llamafactory.train.reference import REFERENCE, keep_adapter, measuring, reference_of


def with_trained_parts(model: Any, dropout: float = 0.0) -> Any:
    """LoRA with a trained embedding and a trained head beside it."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4,
        lora_dropout=dropout,
        target_modules=["q_proj", "down_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def sums(model: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return answer_log_probs(model, batch).sums_S


MAKERS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "lora": lambda make_model: make_model("lora", 0.3),
    "trained embedding and head": lambda make_model: with_trained_parts(make_model(), 0.3),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_n27_the_reference_stays_where_training_began(make_model: Callable[..., Any], make_trainer: Any, kind: str):
    rows, base = make_pairs(12), make_model()
    enable_readout(base)
    model = MAKERS[kind](make_model)
    parts = dpo_parts(model)
    batch = parts.collate(rows)
    before = sums(base.eval(), batch)
    trainer = make_trainer(model, rows, parts=parts, callbacks=[EmbeddingNoise(5)], num_train_epochs=2)
    trainer.train()

    model.train()
    assert (sums(model.eval(), batch) - before).abs().max() > 0.1
    assert_close(reference_sums(Models(model.train()), batch), before, rtol=0, atol=1e-5)
    assert model.training
    assert sum(weight.requires_grad for weight in model.parameters()) > 0


def test_n27_a_reference_model_is_frozen_and_in_evaluation_mode(make_model: Callable[..., Any], make_trainer: Any):
    rows, model, reference = make_pairs(12), make_model(), make_model()
    parts = dpo_parts(model, reference)
    before = sums(reference, parts.collate(rows))
    trainer = make_trainer(model, rows, parts=parts, num_train_epochs=2)
    trainer.train()

    assert any(weight.requires_grad for weight in model.parameters())
    assert not any(weight.requires_grad for weight in reference.parameters())
    assert not reference.training
    assert_close(sums(reference, parts.collate(rows)), before, rtol=0, atol=0)


def test_the_policy_is_as_it_was_after_the_reference_was_asked(make_model: Callable[..., Any]):
    for continued in (False, True):
        model = make_model("lora")
        shift_weights(model)
        if continued:
            keep_adapter(model)
        enable_readout(model)
        batch = collator(True, "chosen_", "rejected_")(make_pairs(3))
        needs = {name: weight.requires_grad for name, weight in model.named_parameters()}
        before = sums(model.eval(), batch)
        shift_weights(model.train())

        with reference_of(Models(model)) as reference:
            assert not reference.training
            asked = sums(reference, batch)
        after = sums(model, batch)

        assert {name: weight.requires_grad for name, weight in model.named_parameters()} == needs
        assert model.training
        assert model.active_adapter == "default"
        assert ((asked - before).abs().max() < 1e-5) == continued
        assert (after - before).abs().max() > 0.1
        with measuring(model) as measured:
            assert not measured.training
            assert not torch.is_grad_enabled()


def test_n28_training_that_goes_on_with_an_adapter_starts_at_ln_2(
    make_model: Callable[..., Any], make_trainer: Any, tmp_path: Path
):
    rows = make_pairs(8)
    model = shift_weights(make_model("lora"))
    plain = dpo_parts(model)
    batch = plain.collate(rows)
    offset = plain.objective(Models(model), batch)
    keep_adapter(model)
    parts = dpo_parts(model)

    start = parts.objective(Models(model), batch)
    before = reference_sums(Models(model), batch)
    trainer = make_trainer(model, rows, parts=parts, save_strategy="steps", save_steps=2, num_train_epochs=3)
    trainer.train()

    assert abs(float(offset.total / offset.weight) - math.log(2)) > 1e-3  # against the bare base it is not
    assert float(start.total / start.weight) == pytest.approx(math.log(2), abs=1e-6)
    assert (sums(model.eval(), batch) - before).abs().max() > 0.1
    assert_close(reference_sums(Models(model), batch), before, rtol=0, atol=0)
    saved = make_trainer.output_dir / "checkpoint-2"
    assert (saved / "adapter_model.safetensors").is_file()
    assert not (saved / REFERENCE).exists()
