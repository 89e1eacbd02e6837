"""What methods add to a loss: once for each step however it is cut, in training only, and without padding (row N7)."""

from typing import Any

import pytest
import torch
from families import family_model
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from llamafactory.data.collator import FlatCollator, PaddingCollator
from llamafactory.extras.errors import UserError
from llamafactory.model.model_utils.mixture import balance_of, find_routers
from llamafactory.ops.load_balance import load_balance
from llamafactory.train.objective import LossSum, Models
from llamafactory.train.penalty import PenalizedObjective
from llamafactory.train.sft.objective import objective_for


class Pad:
    pad_token_id = 0


def make_rows(num_rows: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(num_rows):
        ids = torch.randint(3, 300, (5 + 3 * index,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    return rows


def test_n7_the_balance_is_that_of_transformers_with_and_without_padding() -> None:
    generator = torch.Generator().manual_seed(1)
    layers = [torch.randn(12, 4, generator=generator, requires_grad=True) for _ in range(3)]
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])

    for given in (None, mask):
        gates: Any = tuple(layers)
        expected: Any = load_balancing_loss_func(gates, 4, 2, given)
        found = load_balance(layers, 2, None if given is None else given.flatten())
        ours, theirs = (torch.autograd.grad(loss, layers, retain_graph=True) for loss in (found, expected))
        assert torch.allclose(found, expected)
        assert all(torch.allclose(one, two) for one, two in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_n7_padding_does_not_move_the_balance(family: str) -> None:
    model = family_model(family).train()
    balance = balance_of(model, 0.5)
    assert balance is not None
    rows = make_rows(3)
    wide = PaddingCollator(Pad(), pad_to_multiple_of=32)(rows)  # type: ignore[arg-type]
    flat = FlatCollator(Pad(), with_bounds=False)(rows)  # type: ignore[arg-type]
    alone = [PaddingCollator(Pad())([row]) for row in rows]  # type: ignore[arg-type]

    found = []
    for batch in (wide, flat):
        inputs = {name: batch[name] for name in batch if name in ("input_ids", "position_ids")}
        if "position_ids" not in batch:
            inputs["attention_mask"] = batch["attention_mask"]
        model(**inputs, use_cache=False)
        found.append(balance.take(batch))
    logits = [[], []]  # type: ignore[var-annotated]
    for batch in alone:
        output = model(input_ids=batch["input_ids"], use_cache=False, output_router_logits=True)
        for place, layer in enumerate(output.router_logits):
            logits[place].append(layer)
    balance.take({})
    expected = 0.5 * load_balance([torch.cat(layer) for layer in logits], 2)

    assert torch.allclose(found[0], expected, rtol=1e-5)
    assert torch.allclose(found[1], expected, rtol=1e-5)


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_n7_a_step_holds_the_term_once_however_it_is_cut(num_parts: int) -> None:
    weight = torch.nn.Parameter(torch.tensor(2.0))
    policy = torch.nn.Linear(1, 1).train()

    def plain(models: Models, batch: dict[str, Any]) -> LossSum:
        return LossSum(weight * 0.0 + batch["loss"], batch["weight"])

    objective = PenalizedObjective(plain, {"term": lambda batch: weight.square()})
    losses, weights = torch.arange(8.0), torch.arange(1.0, 9.0)

    sums = [
        objective(Models(policy), {"loss": losses[part].sum(), "weight": weights[part].sum()})
        for part in torch.arange(8).chunk(num_parts)
    ]
    step = sum((part.total for part in sums), torch.zeros(())) / weights.sum()

    assert torch.allclose(step, losses.sum() / weights.sum() + 4.0)
    (gradient,) = torch.autograd.grad(step, weight)
    assert torch.allclose(gradient, torch.tensor(4.0))
    totals = [part.metrics["term"] for part in sums]
    assert torch.allclose(sum_of(totals, 0) / sum_of(totals, 1), torch.tensor(4.0))
    measured = objective(Models(policy.eval()), {"loss": losses.sum(), "weight": weights.sum()})
    assert float(measured.total) == float(losses.sum())
    assert not measured.metrics


def sum_of(pairs: list[Any], place: int) -> Tensor:
    return torch.stack([pair[place] for pair in pairs]).sum()


def test_n7_the_balance_is_the_same_where_layers_are_computed_again() -> None:
    """What a backward pass computes again is no part of the next step."""
    found: list[list[float]] = []
    ids = torch.randint(3, 300, (2, 16), generator=torch.Generator().manual_seed(0))
    for is_checkpointed in (False, True):
        model = family_model("mixtral").train()
        if is_checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        balance = balance_of(model, 1.0)
        assert balance is not None
        steps: list[float] = []
        for _ in range(2):
            model.zero_grad()
            loss = model(input_ids=ids, use_cache=False).logits.logsumexp(-1).sum()
            term = balance.take({})
            assert term is not None
            (loss + term).backward()
            steps += [float(term.detach()), *(float(weight.grad.norm()) for weight in model.parameters())]
        found.append(steps)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("reference", [True, False])
def test_n7_the_balance_moves_the_routers_and_a_reference_pass_is_not_heard(reference: bool) -> None:
    model = family_model("mixtral").train()
    balance = balance_of(model, 10.0)
    assert balance is not None
    objective = PenalizedObjective(objective_for(model), {"aux_loss": balance.take})
    batch = PaddingCollator(Pad())(make_rows(4))  # type: ignore[arg-type]
    if reference:
        with torch.no_grad():
            model(input_ids=batch["input_ids"], use_cache=False)

    loss = objective(Models(model), batch)
    loss.total.backward()

    router = next(iter(find_routers(model)))
    assert float(loss.metrics["aux_loss"].total / loss.weight) > 10.0  # even use gives 2 choices a token, times 10
    assert float(router.weight.grad.abs().max()) > 0  # type: ignore[union-attr,operator]
    assert loss.metrics["aux_loss"].total.requires_grad is False


def test_a_model_without_experts_has_no_balance() -> None:
    assert balance_of(family_model("llama"), None) is None
    assert balance_of(family_model("mixtral"), None) is None
    assert balance_of(family_model("mixtral", output_router_logits=True), None) is not None
    with pytest.raises(UserError, match="needs a mixture of experts"):
        balance_of(family_model("llama"), 0.1)
