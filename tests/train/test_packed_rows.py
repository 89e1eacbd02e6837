"""Row N9 of the correctness list: documents of a packed row are computed as if each were alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import family_model
from tiny_trainer import losses, make_rows, pad_right, trained_weights
from torch import nn
from torch.testing import assert_close

from llamafactory.data.collator import FlatCollator, MaskedCollator, PackedCollator, PaddingCollator
from llamafactory.data.packing import PackedRows
from llamafactory.extras.errors import UserError
from llamafactory.model.model_utils.flat_attention import register_flat_attention
from llamafactory.model.model_utils.isolation import measure_leak, require_isolation
from llamafactory.train.objective import Models
from llamafactory.train.sft.objective import count_supervised, objective_for
from llamafactory.train.stage import StageParts


PACKED_FAMILIES = ("llama", "qwen2", "qwen3", "mistral")


@pytest.fixture(autouse=True, scope="module")
def own_attention() -> None:
    register_flat_attention()


def loss_and_gradients(model: Any, batches: list[Any]) -> tuple[float, int, torch.Tensor]:
    """The sum of the losses, their weight, and the gradient of the sum."""
    model.train().zero_grad()
    objective = objective_for(model)
    total, weight = torch.zeros(()), 0
    for batch in batches:
        loss = objective(Models(model), batch)
        loss.total.backward()
        total, weight = total + loss.total.detach(), weight + int(loss.weight)
        assert int(loss.weight) == int(count_supervised(batch))
    gradient = torch.cat([item.grad.flatten() for item in model.parameters() if item.grad is not None])
    return total.item(), weight, gradient


def packed_batches(rows: list[Any], tokenizer: Any, rows_per_batch: int) -> list[Any]:
    packed = PackedRows(rows, 64)
    assert len(packed) < len(rows)
    collate = PackedCollator(tokenizer)
    everything = [packed[index] for index in range(len(packed))]
    return [collate(everything[start : start + rows_per_batch]) for start in range(0, len(packed), rows_per_batch)]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("rows_per_batch", [1, 2])
@pytest.mark.parametrize("attention", ["llamafactory", "sdpa", "eager"])
@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_n9_packed_rows_have_the_loss_and_gradients_of_padded_ones(
    tiny_tokenizer: Any, family: str, attention: str, rows_per_batch: int, checkpointing: bool
):
    rows = make_rows(11)
    model = family_model(family, attention)
    assert model.config.use_cache  # the default, which would break packed rows if the objective left it on
    padded = loss_and_gradients(model, [pad_right(rows[:5]), pad_right(rows[5:])])
    if checkpointing:
        model.activation_checkpointing_enable()

    packed = loss_and_gradients(model, packed_batches(rows, tiny_tokenizer, rows_per_batch))

    print(
        f"{family} {attention} {rows_per_batch} rows, checkpointing {checkpointing}: {padded[0]:.6f} {packed[0]:.6f}"
    )
    assert packed[0] == pytest.approx(padded[0], abs=1e-3)
    assert packed[1] == padded[1]
    assert_close(packed[2], padded[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["llamafactory", "sdpa", "eager"])
def test_n9_flat_batches_and_added_masks_give_the_same(tiny_tokenizer: Any, attention: str):
    rows = make_rows(6)
    model = family_model("llama", attention)
    padded = loss_and_gradients(model, [pad_right(rows)])

    flat = loss_and_gradients(model, [FlatCollator(tiny_tokenizer, 8)(rows)])
    packed = PackedRows(rows, 64)
    masked = MaskedCollator(tiny_tokenizer, torch.float32)([packed[index] for index in range(len(packed))])
    added = loss_and_gradients(model, [masked])

    for other in (flat, added):
        assert other[0] == pytest.approx(padded[0], abs=1e-3)
        assert other[1] == padded[1]
        assert_close(other[2], padded[2], rtol=1e-4, atol=1e-5)


def test_n9_a_step_over_packed_rows_is_the_step_over_the_same_documents(tiny_tokenizer: Any, make_trainer: Any):
    rows = make_rows(16)
    packed = PackedRows(rows, 64)
    results = []
    for dataset, collate in (
        (rows, pad_right),
        (packed, PackedCollator(tiny_tokenizer)),
        (rows, FlatCollator(tiny_tokenizer)),
    ):
        model = family_model("llama")
        parts = StageParts(collate=collate, objective=objective_for(model), weigh=count_supervised)
        trainer = make_trainer(
            model,
            dataset,
            parts=parts,
            eval_rows=rows,
            per_device_train_batch_size=len(dataset) if collate is pad_right else 2,
            gradient_accumulation_steps=1 if collate is pad_right else -(-len(dataset) // 2),
            optim="sgd",
            learning_rate=0.1,
        )
        trainer.train()
        results.append(
            (losses(trainer), trained_weights(model), trainer.evaluate()["eval_loss"], trainer.meter.num_tokens)
        )

    for loss, weights, eval_loss, num_tokens in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-5)
        assert_close(weights, results[0][1], rtol=0, atol=1e-5)
        assert eval_loss == pytest.approx(results[0][2], abs=1e-5)
        assert num_tokens == results[0][3] == packed.num_tokens


@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_n9_a_model_that_keeps_documents_apart_is_let_through(family: str):
    model = family_model(family).train()

    assert measure_leak(model) < 1e-5
    require_isolation(model)
    assert model.training


def test_n10_a_model_whose_layers_keep_a_state_is_refused():
    mamba = family_model("mamba", "eager")
    with pytest.raises(UserError, match=r"MambaForCausalLM cannot keep .* no position_ids.*set packing: false"):
        require_isolation(mamba)

    for family, name in (("lfm2", "Lfm2ForCausalLM"), ("qwen3_next", "Qwen3NextForCausalLM")):
        with pytest.raises(UserError, match=rf"{name} cannot keep .* changes the next one"):
            require_isolation(family_model(family))


class Deaf(nn.Module):
    """A model that takes positions and does not use them."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def get_input_embeddings(self) -> Any:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids: Any, position_ids: Any = None, use_cache: bool | None = None) -> Any:
        return self.inner(input_ids=input_ids, use_cache=use_cache)


def test_n9_a_model_that_does_not_use_positions_is_refused():
    with pytest.raises(UserError, match=r"Deaf cannot keep .* changes the next one in its row"):
        require_isolation(Deaf(family_model("llama")))


def test_n9_the_check_looks_through_adapters_and_at_half_precision(make_model: Callable[..., Any]):
    require_isolation(make_model("lora"))
    require_isolation(make_model("full").bfloat16())


def test_packing_is_a_key_of_a_run(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path):
    from llamafactory.train.tuner import run_exp

    keys: dict[str, Any] = {
        "model_name_or_path": str(tiny_llama_dir),
        "dataset": "tiny_alpaca",
        "dataset_dir": str(demo_dataset_dir),
        "finetuning_type": "lora",
        "do_train": True,
        "template": "chatml",
        "cutoff_len": 128,
        "per_device_train_batch_size": 24,  # the whole epoch is one step, however it is cut
        "val_size": 4,
        "seed": 1,
        "use_cpu": True,
        "bf16": False,
    }
    losses: dict[str, float] = {}
    off = {"padding_free": False}
    for name in ("cutoff_len", "packing", "neat_packing", "padding_free"):
        run_exp({**keys, **off, "output_dir": str(tmp_path / name), name: keys.get(name, True)})
        losses[name] = json.loads((tmp_path / name / "train_results.json").read_text())["train_loss"]

    assert list(losses.values()) == pytest.approx([losses["cutoff_len"]] * 4, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_n14_a_row_has_the_same_loss_alone_and_padded_in_any_company(tiny_tokenizer: Any, family: str):
    rows = make_rows(5)
    model = family_model(family).eval()
    objective = objective_for(model)
    collates = {
        "right": PaddingCollator(tiny_tokenizer, pad_to_multiple_of=8),
        "packed": PackedCollator(tiny_tokenizer, 8),
        "flat": FlatCollator(tiny_tokenizer),
    }
    if family == "llama":  # positions that count from the left edge are another input to a model like GPT-2
        collates["left"] = PaddingCollator(tiny_tokenizer, padding_side="left")

    with torch.no_grad():
        alone = sum(objective(Models(model), pad_right([row])).total.item() for row in rows)
        found = {name: objective(Models(model), collate(rows)).total.item() for name, collate in collates.items()}

    assert found == pytest.approx(dict.fromkeys(collates, alone), abs=1e-3)
