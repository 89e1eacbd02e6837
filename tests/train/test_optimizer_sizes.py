"""What an optimizer is said to keep is what it keeps after a step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import load, tuning
from torch.optim import Optimizer
from transformers import TrainingArguments

from llamafactory.extras.packages import is_available
from llamafactory.hparams.optimizer_states import state_sizes
from llamafactory.hparams.optimizers import OPTIM_FAMILIES
from llamafactory.model.memory import StepShape, estimate_step
from llamafactory.train.optimizers.making import optimizer_maker
from llamafactory.train.optimizers.recipe import Recipe, weights_of
from llamafactory.train.optimizers.sizes import optimizer_sizes


IDS = torch.arange(3, 20)[None]
OWN: dict[str, dict[str, Any]] = {
    "galore": {"use_galore": True, "galore_rank": 4},
    "galore, both sides": {"use_galore": True, "galore_rank": 4, "galore_proj_type": "full"},
    "apollo": {"use_apollo": True, "apollo_rank": 4},
    "badam": {"use_badam": True, "badam_switch_mode": "ascending"},
    "badam, a share": {"use_badam": True, "badam_mode": "ratio", "badam_update_ratio": 0.25},
    "adam_mini": {"use_adam_mini": True},
    "muon": {"use_muon": True},
}


def tensors_in(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def kept_bytes(optimizer: Optimizer) -> int:
    """Bytes of all states; the counters of steps, one number each, are left out."""
    tensors = [tensor for tensor in tensors_in(optimizer.state_dict()) if tensor.numel() > 1]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def recipe_of(folder: Path, out: Path, optim: str = "adamw_torch", **values: Any) -> Recipe:
    model = load(folder, tuning("full", **values), disable_gradient_checkpointing=True)
    hf = TrainingArguments(output_dir=str(out), optim=optim, use_cpu=True)
    return Recipe(model=model, weights=weights_of(model, 0.0, ()), hf=hf, finetuning=tuning("full", **values))


def step(recipe: Recipe, optimizer: Optimizer) -> None:
    recipe.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("name", OWN)
def test_our_own_optimizers_keep_what_they_are_said_to(tiny_llama_dir: Path, tmp_path: Path, name: str) -> None:
    recipe = recipe_of(tiny_llama_dir, tmp_path, **OWN[name])
    expected = optimizer_sizes(recipe, on_device=False)
    make = optimizer_maker(recipe.finetuning)
    assert make is not None
    optimizer = make(recipe.model, recipe.hf, ())

    step(recipe, optimizer)

    kept = kept_bytes(optimizer)
    if name == "badam, a share":  # which numbers were chosen is not saved: they are drawn again
        kept += sum(chosen.numel() * chosen.element_size() for chosen in vars(optimizer)["_chosen"].values())
    if name.startswith("galore"):  # so are the stand-ins
        inner = vars(optimizer["parts"][0] if isinstance(optimizer, dict) else optimizer.parts[0])["inner"]
        kept += sum(weight.numel() * 4 for group in inner.param_groups for weight in group["params"])
    assert expected.states == pytest.approx(kept, rel=0.01)
    gradients = [weight.grad for weight in recipe.model.parameters() if weight.grad is not None]
    if name != "badam":  # which has moved on to the next block by now
        assert expected.gradients == sum(gradient.numel() * gradient.element_size() for gradient in gradients)


def weight_storage(model: torch.nn.Module) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in (*model.parameters(), *model.buffers())}
    return sum(storage.nbytes() for storage in storages.values())


def test_q_galore_keeps_directions_and_weights_in_as_few_bytes_as_it_is_said_to(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_llama_dir, tmp_path, use_galore=True, galore_rank=4, galore_quantize=True)
    expected, before = optimizer_sizes(recipe, on_device=False), weight_storage(recipe.model)
    plain = replace(recipe, finetuning=tuning("full", use_galore=True, galore_rank=4))
    make = optimizer_maker(recipe.finetuning)
    assert make is not None
    optimizer: Any = make(recipe.model, recipe.hf, ())

    step(recipe, optimizer)

    galore, others = optimizer.parts
    stand_ins = sum(weight.numel() * 4 for group in galore.inner.param_groups for weight in group["params"])
    parts = (dict(galore.state), dict(galore.inner.state), dict(others.state))
    kept = sum(t.numel() * t.element_size() for t in tensors_in(parts) if t.numel() > 1)
    assert expected.states == pytest.approx(kept + stand_ins, rel=0.01)
    assert expected.states < optimizer_sizes(plain, on_device=False).states
    assert expected.saved == pytest.approx(before - weight_storage(recipe.model), rel=0.01)
    shape = StepShape(tokens=8, optimizer=expected)
    whole = estimate_step(plain.model, StepShape(tokens=8, optimizer=expected._replace(saved=0)))
    assert estimate_step(plain.model, shape).weights == whole.weights - expected.saved


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop", "schedule_free_adamw"])
def test_named_optimizers_keep_what_the_table_says(tiny_llama_dir: Path, tmp_path: Path, optim: str) -> None:
    if optim.startswith("schedule_free") and not is_available("schedulefree"):
        pytest.skip("schedulefree is not installed")
    recipe = recipe_of(tiny_llama_dir, tmp_path, optim)
    optimizer = recipe.plain(recipe.weights)
    if hasattr(optimizer, "train"):
        optimizer.train()  # pyright: ignore

    step(recipe, optimizer)

    assert optimizer_sizes(recipe, on_device=False).states == pytest.approx(kept_bytes(optimizer), rel=0.01)


def test_every_optimizer_that_is_taken_has_a_row() -> None:
    taken = {name for family in OPTIM_FAMILIES if not family.instead for name in family.names}

    assert taken <= set(state_sizes())
