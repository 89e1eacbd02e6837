"""Rows N9, N10 and N14 of the correctness list for the attention "llamafactory", in every way a model is called."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import family_model
from torch.testing import assert_close

from llamafactory.data.batch import sequence_bounds
from llamafactory.model.model_utils.attention import attention_in_use, takes_bounds, use_flat_attention
from llamafactory.model.model_utils.isolation import find_leak, measure_leak


FLAT_FAMILIES = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "granite",
    "cohere",
    "cohere2",
    "glm4",
    "mixtral",
    "qwen3_moe",
    "gpt2",
)
LENGTHS = [9, 13, 5]


def pair_of(family: str) -> tuple[Any, Any]:
    """A model with the reference attention, and the same one with ours."""
    reference = family_model(family, "eager").eval()
    flat = family_model(family, None).eval()
    flat.load_state_dict(reference.state_dict())
    use_flat_attention(flat, "auto")
    assert attention_in_use(flat) == "llamafactory"
    assert attention_in_use(reference) == "eager"
    return reference, flat


def row_of_documents(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 300, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(seed))
    return ids, torch.cat([torch.arange(length) for length in LENGTHS]).unsqueeze(0)


def alone(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The logits of each document in a row of its own."""
    return torch.cat([model(input_ids=part, use_cache=False).logits for part in ids.split(LENGTHS, dim=1)], dim=1)


@pytest.mark.parametrize("family", FLAT_FAMILIES)
@torch.no_grad()
def test_n9_n10_documents_in_a_row_are_computed_as_if_each_were_alone(family: str):
    reference, flat = pair_of(family)
    ids, positions = row_of_documents()
    expected = alone(reference, ids)

    bounds = sequence_bounds(positions)
    found = {
        "bounds": flat(input_ids=ids, position_ids=positions, use_cache=False, **bounds).logits,
        "bounds win over a mask": flat(
            input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False, **bounds
        ).logits,
        "positions alone": flat(input_ids=ids, position_ids=positions, use_cache=False).logits,
        "the cache left on": flat(input_ids=ids, position_ids=positions).logits,
    }
    two_rows = flat(input_ids=ids.repeat(2, 1), position_ids=positions.repeat(2, 1), use_cache=False).logits

    for way, logits in found.items():
        assert_close(logits, expected, rtol=0, atol=1e-5, msg=lambda text, way=way: f"{way}: {text}")
    assert_close(two_rows, expected.repeat(2, 1, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FLAT_FAMILIES)
def test_n10_canary_a_changed_token_moves_its_own_document_only(family: str):
    _, flat = pair_of(family)
    assert measure_leak(flat) < 1e-6
    assert find_leak(flat) is None


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text", "mixtral"])
def test_n9_gradients_are_those_of_the_reference(family: str, checkpointing: bool):
    reference, flat = pair_of(family)
    ids, positions = row_of_documents()
    weights = torch.randn(1, ids.shape[1], 300, generator=torch.Generator().manual_seed(1))
    (alone(reference.train(), ids) * weights).sum().backward()

    flat.train()
    if checkpointing:
        flat.activation_checkpointing_enable()
    logits = flat(input_ids=ids, position_ids=positions, use_cache=False, **sequence_bounds(positions)).logits
    (logits * weights).sum().backward()

    for (name, ours), theirs in zip(flat.named_parameters(), reference.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def padded_prompts(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 298, (2, 13), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    hidden = slice(None, 4) if side == "left" else slice(-4, None)
    mask[0, hidden] = 0
    return ids * mask, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FLAT_FAMILIES)
@torch.no_grad()
def test_n14_padded_batches_are_computed_as_by_the_reference(family: str, side: str):
    reference, flat = pair_of(family)
    ids, mask = padded_prompts(side)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}

    assert_close(flat(**inputs).logits[mask == 1], reference(**inputs).logits[mask == 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text", "qwen3_moe"])
@pytest.mark.parametrize("case", ["padded", "one row", "static cache", "beams"])
@torch.no_grad()
def test_generation_writes_the_same_tokens(family: str, case: str):
    reference, flat = pair_of(family)
    ids, mask = padded_prompts("left")
    how: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": 299}
    how |= {"input_ids": ids[1:] if case == "one row" else ids}
    how |= {} if case == "one row" else {"attention_mask": mask}
    how |= {"cache_implementation": "static"} if case == "static cache" else {}
    how |= {"num_beams": 2} if case == "beams" else {}

    assert flat.generate(**how).tolist() == reference.generate(**how).tolist()


@torch.no_grad()
def test_a_prompt_read_in_chunks_continues_from_the_cache():
    reference, flat = pair_of("mistral")
    ids, _ = row_of_documents()
    expected = reference(input_ids=ids, use_cache=False).logits[:, -1]
    cache = None
    for chunk in ids.split([7, 13, 6, 1], dim=1):
        found = flat(input_ids=chunk, past_key_values=cache, use_cache=True)
        cache = found.past_key_values

    assert_close(found.logits[:, -1], expected, rtol=0, atol=1e-5)


def test_only_models_with_a_plain_attention_get_ours():
    for family in ("gpt_oss", "falcon"):  # sinks; a mask made by hand
        model = family_model(family, None)
        before = attention_in_use(model)
        use_flat_attention(model, "auto")
        assert attention_in_use(model) == before != "llamafactory"
        assert not takes_bounds(model)


@pytest.mark.parametrize(("word", "kernel"), [("sdpa", "sdpa"), ("disabled", "eager"), ("fa2", "sdpa")])
def test_a_kernel_that_was_asked_for_is_kept(word: str, kernel: str):
    model = family_model("llama", kernel)
    use_flat_attention(model, word)
    assert attention_in_use(model) == kernel


def test_the_choice_is_not_saved_with_the_model(tiny_llama: Callable[[], Any], tmp_path: Any):
    model = tiny_llama()
    use_flat_attention(model, "auto")
    model.save_pretrained(tmp_path)
    assert "llamafactory" not in (tmp_path / "config.json").read_text()
    assert copy.deepcopy(model).config._attn_implementation == "llamafactory"
