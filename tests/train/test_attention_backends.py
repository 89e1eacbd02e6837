"""Rows N3, N5, N9 to N14 of the correctness list on every attention backend, with `use_cache` at its default.

Flex attention has no backward pass on a CPU, and torch 2.13 writes C++ for it that does not compile once lengths vary:
it runs uncompiled, on everything that takes no gradient.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import family_model
from tiny_trainer import make_rows, pad_right
from torch.testing import assert_close

from llamafactory.data.collator import FlatCollator, PackedCollator, PaddingCollator
from llamafactory.data.packing import PackedRows
from llamafactory.model.model_utils.flat_attention import register_flat_attention
from llamafactory.model.model_utils.isolation import measure_leak
from llamafactory.train.objective import Models
from llamafactory.train.sft.objective import objective_for


LEARNING = ("eager", "sdpa", "llamafactory")
ALL = (*LEARNING, "flex_attention")


@pytest.fixture(autouse=True, scope="module")
def own_attention() -> Iterator[None]:
    register_flat_attention()
    with torch.compiler.set_stance("force_eager"):
        yield


def make(attention: str) -> Any:
    model = family_model("llama", attention)
    assert model.config.use_cache
    return model


def measure(model: Any, batches: list[Any]) -> tuple[torch.Tensor, int]:
    """The sum of the losses and its weight, without gradients."""
    objective = objective_for(model.eval())
    with torch.no_grad():
        found = [objective(Models(model), batch) for batch in batches]
    return torch.stack([loss.total for loss in found]).sum(), sum(int(loss.weight) for loss in found)


def gradient(model: Any, batches: list[Any]) -> torch.Tensor:
    """The gradient of the sum of the losses."""
    model.train().zero_grad()
    objective = objective_for(model)
    for batch in batches:
        objective(Models(model), batch).total.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def packed_batch(rows: list[Any], tokenizer: Any) -> Any:
    packed = PackedRows(rows, 64)
    assert len(packed) < len(rows)
    return PackedCollator(tokenizer)([packed[index] for index in range(len(packed))])


@pytest.mark.parametrize("attention", LEARNING)
def test_n3_n12_a_step_is_the_same_however_its_rows_are_cut_into_batches(attention: str, tiny_tokenizer: Any):
    rows = make_rows(8)
    model = make(attention)
    cuts = {size: [pad_right(rows[start : start + size]) for start in range(0, 8, size)] for size in (8, 4, 1)}
    ways = {f"{size} rows": batches for size, batches in cuts.items()}
    ways |= {"packed": [packed_batch(rows, tiny_tokenizer)], "flat": [FlatCollator(tiny_tokenizer)(rows)]}

    sums = {name: measure(model, batches) for name, batches in ways.items()}
    gradients = {name: gradient(model, batches) for name, batches in ways.items()}

    for name in ways:
        assert sums[name][1] == sums["8 rows"][1], name
        assert_close(sums[name][0], sums["8 rows"][0], rtol=1e-5, atol=0)
        assert_close(gradients[name], gradients["8 rows"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ALL)
def test_n5_the_fused_loss_is_the_cross_entropy_of_the_logits(attention: str):
    batch = pad_right(make_rows(4))
    model = make(attention).eval()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        plain = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
        )

    fused, _ = measure(model, [batch])

    assert_close(fused, plain, rtol=1e-5, atol=0)


@pytest.mark.parametrize("attention", ALL)
def test_n9_n11_n13_documents_of_a_row_have_the_loss_that_each_has_alone(attention: str, tiny_tokenizer: Any):
    """N11: a first token that was learned would add to the sum; N13: blocks of text are rows with positions too."""
    rows = make_rows(6)
    model = make(attention)
    alone = measure(model, [pad_right([row]) for row in rows])

    for batch in (packed_batch(rows, tiny_tokenizer), FlatCollator(tiny_tokenizer)(rows)):
        found = measure(model, [batch])
        assert found[1] == alone[1]
        assert_close(found[0], alone[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("attention", ALL)
def test_n10_a_changed_token_moves_its_own_document_only(attention: str):
    assert measure_leak(make(attention)) < 1e-5


@pytest.mark.parametrize("attention", ALL)
def test_n14_a_row_has_the_same_loss_with_padding_on_either_side(attention: str, tiny_tokenizer: Any):
    rows = make_rows(5)
    model = make(attention)
    alone = measure(model, [pad_right([row]) for row in rows])

    for side in ("left", "right"):
        found = measure(model, [PaddingCollator(tiny_tokenizer, padding_side=side)(rows)])
        assert found[1] == alone[1]
        assert_close(found[0], alone[0], rtol=1e-5, atol=0)
