"""Shifted sparse attention (LongLoRA): the paper's rolled groups, written down, against ours; N9 and N14 with it."""

from typing import Any

import pytest
import torch
from families import family_model
from torch.testing import assert_close

from llamafactory.data.batch import sequence_bounds
from llamafactory.extras.errors import UserError
from llamafactory.model.model_utils.attention import attention_in_use, takes_bounds, use_shifted_attention
from llamafactory.model.model_utils.shifted_attention import attend_shifted


Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Layer(torch.nn.Module):
    """What an attention function gets as its module."""

    is_causal = True


def rolled_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Section 3.2 of the paper: [B, H, T, D] with T a multiple of 8; half of the heads rolled back by half a group.

    In the group that holds the end and the beginning of the text, these two are hidden from each other: the paper
    names the leak and leaves the mask to the implementation.
    """
    num_rows, num_heads, length, width = query.shape
    size = length // 4
    groups = []
    for heads in (query, key.repeat_interleave(num_heads // key.shape[1], 1), value):
        if heads.shape[1] != num_heads:
            heads = heads.repeat_interleave(num_heads // heads.shape[1], 1)
        first, second = heads.chunk(2, dim=1)
        rolled = torch.cat([first, second.roll(-size // 2, dims=2)], dim=1)
        groups.append(rolled.reshape(num_rows, num_heads, 4, size, width))
    scores = groups[0] @ groups[1].transpose(-1, -2) / width**0.5
    seen = torch.ones(size, size, dtype=torch.bool).tril().expand(num_heads, 4, size, size).clone()
    seen[num_heads // 2 :, 3, size // 2 :, : size // 2] = False
    read = (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ groups[2]).reshape(num_rows, num_heads, length, width)
    first, second = read.chunk(2, dim=1)
    return torch.cat([first, second.roll(size // 2, dims=2)], dim=1).transpose(1, 2)


GROUP = 8
"""A quarter of 32 tokens."""


def read_shifted(heads: Any, mask: torch.Tensor | None, **case: Any) -> torch.Tensor:
    return attend_shifted(Layer(), heads[0], heads[1], heads[2], mask, group_len=GROUP, **case)[0]


def heads_of(num_rows: int, num_heads: int, num_keys: int, length: int) -> Heads:
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(num_rows, num_heads, length, 16, generator=draw)
    key, value = (torch.randn(num_rows, num_keys, length, 16, generator=draw) for _ in range(2))
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


@pytest.mark.parametrize(("num_heads", "num_keys"), [(4, 4), (4, 2), (4, 1), (6, 3), (8, 2)])
def test_half_of_the_heads_read_shifted_groups_as_in_the_paper(num_heads: int, num_keys: int) -> None:
    ours, theirs = heads_of(2, num_heads, num_keys, 32), heads_of(2, num_heads, num_keys, 32)
    slope = torch.randn(2, 32, num_heads, 16, generator=torch.Generator().manual_seed(1))

    found, expected = read_shifted(ours, None), rolled_attention(*theirs)

    assert_close(found, expected)
    for read in (found, expected):
        (read * slope).sum().backward()
    for one, two in zip(ours, theirs, strict=True):
        assert_close(one.grad, two.grad)


def test_texts_in_one_row_and_padded_texts_each_begin_with_a_group_of_their_own() -> None:
    lengths = [32, 16, 3, 1, 8]
    alone: Any = [heads_of(1, 4, 2, length) for length in lengths]
    expected = torch.cat([read_shifted(heads, None) for heads in alone], dim=1)
    row: Any = [torch.cat(parts, dim=2) for parts in zip(*alone, strict=True)]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]

    assert_close(read_shifted(row, None, position_ids=positions), expected)
    assert_close(read_shifted(row, None, **sequence_bounds(positions)), expected)

    for left, right in ((0, 7), (7, 0), (3, 4)):
        padded: Any = [torch.nn.functional.pad(heads, (0, 0, left, right)) for heads in alone[1]]
        mask = torch.zeros(1, 23, dtype=torch.long)
        mask[:, left : left + 16] = 1
        found = read_shifted(padded, mask)[:, left : left + 16]
        assert_close(found, read_shifted(alone[1], None))


def test_a_text_shorter_than_half_a_group_is_read_as_with_full_attention() -> None:
    query, key, value = heads_of(1, 4, 2, GROUP // 2)

    full = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    assert_close(read_shifted((query, key, value), None), full.transpose(1, 2))


FAMILIES = ["llama", "qwen3", "gemma2", "mistral", "gpt2"]


def shifted(family: str) -> tuple[Any, Any]:
    plain, model = family_model(family, "eager"), family_model(family, None)
    model.load_state_dict(plain.state_dict())
    use_shifted_attention(model, "auto", 24)
    return plain.eval(), model


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_n9_n14_a_shifted_model_answers_with_full_attention(family: str) -> None:
    plain, model = shifted(family)
    ids = torch.randint(3, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 11:] = 0
    expected = plain(input_ids=ids, attention_mask=mask).logits

    assert attention_in_use(model) == "llamafactory_shifted_6"
    assert takes_bounds(model)
    model.eval()
    for use_cache in (False, True):
        found = model(input_ids=ids, attention_mask=mask, use_cache=use_cache).logits
        assert_close(found[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-5)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    padded, left = ids.flip(1), mask.flip(1)
    written = [each.generate(padded, attention_mask=left, **options) for each in (plain, model)]
    assert torch.equal(*written)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_n14_in_training_a_padded_row_is_the_row_alone_and_differs_from_full_attention(family: str) -> None:
    plain, model = shifted(family)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    vars(model.config).update({name: 0.0 for name in vars(model.config) if name.endswith(("pdrop", "dropout"))})
    ids = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 16:] = 0

    found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, :16]
    single = model(input_ids=ids[:1, :16], use_cache=False).logits[0]

    assert_close(found, single, rtol=0, atol=1e-5)
    assert (plain(input_ids=ids[:1, :16]).logits[0] - single).abs().max() > 1e-4


def test_an_attention_that_cannot_be_exchanged_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be exchanged"):
        use_shifted_attention(family_model("mamba", None), "auto", 24)
