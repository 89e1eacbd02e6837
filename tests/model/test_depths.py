"""Mixture of depths: which tokens a layer computes, what comes out, and that nothing looks ahead when it answers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from families import family_model
from model_making import load, logits, model_args, tuning
from torch.testing import assert_close

from llamafactory.extras.errors import UserError
from llamafactory.model.depths import NOTE, depths_of, has_depths
from llamafactory.model.depths.layers import PART, add_routers
from llamafactory.model.depths.router import DepthRouter


FAMILIES = ["llama", "qwen3", "mistral", "gemma2"]


def routed(family: str, capacity: float = 0.25, attention: str = "sdpa") -> Any:
    """A model whose second layer has a router that tells tokens apart."""
    model = family_model(family, "eager" if family == "gemma2" else attention)
    (router,) = add_routers(model, [1], capacity)
    with torch.no_grad():
        router.score.mul_(5)
        router.guess_bias.fill_(0.05)
    return model


def layer_input(model: Any, index: int, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """What a layer gets, what it gives, and what else it is given."""
    seen: list[Any] = []
    layer = model.model.layers[index]
    hook = layer.register_forward_hook(
        lambda module, args, given, out: seen.extend((args[0], out, given)), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs, use_cache=False)
    hook.remove()
    return seen[0], seen[1], seen[2]


def by_hand(layer: Any, hidden: torch.Tensor, angles: Any, length: int, *, is_training: bool) -> torch.Tensor:
    """Equation 1 of the paper for one row without padding: x + r f(x) for the chosen tokens, x for the others."""
    router: DepthRouter = layer.depth
    row = hidden[:length].float()
    seen = row / (row.pow(2).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    numbers = [1 + float(token @ router.score) for token in seen]
    if is_training:
        size = math.ceil(length * router.capacity)
        chosen = sorted(sorted(range(length), key=lambda place: -numbers[place])[:size])
    else:
        inner = [torch.nn.functional.silu(router.guess_in @ token) for token in seen]
        chosen = [place for place in range(length) if float(router.guess_out @ inner[place] + router.guess_bias) > 0]
    out = hidden[:length].clone()
    places = torch.tensor(chosen)
    some = hidden[None, places]
    mask = torch.full((len(chosen), len(chosen)), torch.finfo(torch.float32).min).triu(1)[None, None]
    own = layer.self_attn if hasattr(layer.self_attn, "sliding_window") else layer.self_attn.config  # mistral
    window = getattr(own, "sliding_window", None) or length
    far = places[:, None] - places[None] >= window
    mask = mask.masked_fill(far[None, None], torch.finfo(torch.float32).min)
    turned = tuple(part[:1].expand(1, -1, -1)[:, places] for part in angles)
    computed = type(layer).forward(layer, some, attention_mask=mask, position_embeddings=turned)[0]
    for number, place in enumerate(chosen):
        out[place] = hidden[place] + numbers[place] * (computed[number] - some[0, number])
    return out


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_layer_adds_to_the_chosen_tokens_what_the_paper_says(family: str, is_training: bool) -> None:
    model = routed(family).train(is_training)
    ids = torch.randint(3, 300, (3, 16), generator=torch.Generator().manual_seed(0))
    lengths = [16, 9, 4]
    mask = torch.tensor([[1] * length + [0] * (16 - length) for length in lengths])

    hidden, found, given = layer_input(model, 1, input_ids=ids, attention_mask=mask)

    for row, length in enumerate(lengths):
        expected = by_hand(
            model.model.layers[1], hidden[row], given["position_embeddings"], length, is_training=is_training
        )
        assert_close(found[row, :length], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(found[row, length:], hidden[row, length:])
    changed = (found != hidden).any(-1).sum(1)
    assert changed.tolist() == [4, 3, 1] if is_training else (changed > 0).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_router_that_takes_all_and_counts_one_leaves_the_model_as_it_was(attention: str) -> None:
    plain = family_model("llama", attention)
    model = family_model("llama", attention)
    for router in add_routers(model, [0, 1], 1.0):
        router.score.zero_()
    ids = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0

    found = model.train()(input_ids=ids, attention_mask=mask, use_cache=False).logits

    assert_close(found[mask.bool()], plain(input_ids=ids, attention_mask=mask).logits[mask.bool()], atol=1e-5, rtol=0)


@torch.no_grad()
def test_only_training_looks_ahead() -> None:
    model = routed("llama", capacity=0.2)
    ids = torch.randint(3, 300, (1, 16), generator=torch.Generator().manual_seed(0))

    def moved() -> float:
        """How far the first half of a text moves with the second, at most."""
        first = model(input_ids=ids, use_cache=False).logits[0, :8]
        found = []
        for seed in range(1, 6):
            other = ids.clone()
            other[0, 8:] = torch.randint(3, 300, (8,), generator=torch.Generator().manual_seed(seed))
            found.append((model(input_ids=other, use_cache=False).logits[0, :8] - first).abs().max())
        return float(torch.stack(found).max())

    model.eval()
    assert moved() < 1e-6
    model.train()
    assert moved() > 1e-4


def test_the_guess_learns_and_moves_no_other_weight() -> None:
    model = routed("llama").train()
    depths = depths_of(model)
    assert depths is not None
    ids = torch.randint(3, 300, (4, 32), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    told: list[float] = []
    for _ in range(60):
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, use_cache=False)
        term = depths.take()
        assert term is not None
        term.backward()
        moved = {name.rpartition(".")[2] for name, weight in model.named_parameters() if weight.grad is not None}
        assert moved == {"guess_in", "guess_out", "guess_bias"}
        optimizer.step()
        told.append(float(term.detach()))
    assert told[-1] < 0.2 * told[0]

    router: Any = model.model.layers[1].depth
    hidden, _, _ = layer_input(model, 1, input_ids=ids)
    numbers, guesses = router(hidden)
    chosen = torch.zeros_like(numbers).scatter(1, numbers.topk(8, dim=1).indices, 1.0).bool()
    assert float(((guesses > 0) == chosen).float().mean()) > 0.95


@pytest.mark.parametrize("checkpointing", [False, True])
def test_n37_routers_learn_from_the_loss_and_layers_through_them(checkpointing: bool) -> None:
    model = routed("llama").train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    depths = depths_of(model)
    assert depths is not None
    ids = torch.randint(3, 300, (2, 16), generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # a backward pass that computes again leaves nothing for the next step
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        term = depths.take()
        assert term is not None
        (loss + term).backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in model.parameters())


def convert(folder: Path, base: Path, **values: Any) -> Any:
    model = load(base, tuning("full"), mixture_of_depths="convert", disable_gradient_checkpointing=True, **values)
    model.save_pretrained(folder, max_shard_size="40KB")
    return model.eval()


def test_a_converted_model_is_saved_with_its_routers_and_found_again(
    tiny_llama_dir: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = convert(tmp_path / "m", tiny_llama_dir)
    tiny_tokenizer.save_pretrained(tmp_path / "m")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    with torch.no_grad():
        expected = logits(model)

    for asked in (None, "load"):
        again = load(tmp_path / "m", mixture_of_depths=asked)
        assert getattr(again.config, NOTE) == {"capacity": 0.125, "layers": [1]}
        assert has_depths(again)
        assert not again.config.use_cache
        assert_close(logits(again), expected, rtol=0, atol=1e-6)  # training computes with fused layers
    written = again.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False, eos_token_id=None)
    ids = [5, 6, 7]
    for _ in range(4):
        with torch.no_grad():
            ids.append(int(again(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert written[0].tolist() == ids
    with pytest.raises(UserError, match="cannot keep keys and values"):
        again(input_ids=torch.tensor([[5, 6]]), use_cache=True)


def test_what_cannot_be_is_refused(tiny_llama_dir: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is none; `convert` makes one"):
        load(tiny_llama_dir, mixture_of_depths="load")
    convert(tmp_path / "m", tiny_llama_dir)
    tiny_tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match="already; set mixture_of_depths: load"):
        load(tmp_path / "m", mixture_of_depths="convert")
    for family, words in (
        ("gpt2", "no rotary positions"),
        ("mixtral", "mixture of experts"),
        ("lfm2", "running state"),
    ):
        with pytest.raises(UserError, match=words):
            add_routers(family_model(family, None), [1], 0.5)
    for file in (tmp_path / "m").glob("*.safetensors"):
        drop(file)
    with pytest.raises(UserError, match="lacks the routers"):
        load(tmp_path / "m")


def drop(file: Path) -> None:
    """Take the routers out of a file of weights."""
    from safetensors.torch import load_file, save_file

    kept = {name: tensor for name, tensor in load_file(file).items() if f".{PART}." not in name}
    save_file(kept, file, metadata={"format": "pt"})


def test_adapters_leave_routers_alone(tiny_llama_dir: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    convert(tmp_path / "m", tiny_llama_dir)
    tiny_tokenizer.save_pretrained(tmp_path / "m")
    base = load(tmp_path / "m")

    adapted = load(tmp_path / "m", tuning("lora"), disable_gradient_checkpointing=True).eval()

    assert_close(logits(adapted), logits(base), atol=1e-6, rtol=0)
    assert not any(PART in name for name, weight in adapted.named_parameters() if weight.requires_grad)
    assert model_args(tmp_path).mixture_of_depths is None
