"""Pairs that share their prompt in one row: log-probabilities and gradients of separate dialogues."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import family_model
from torch import Tensor
from torch.testing import assert_close

from llamafactory.data.batch import documents_of, model_inputs
from llamafactory.data.collator import FlatCollator, PaddingCollator
from llamafactory.data.shared_prefix import SharedPrefixCollator, shared_length
from llamafactory.model.model_utils.attention import use_flat_attention
from llamafactory.train.collation import pair_collator
from llamafactory.train.layout import Layout


def make_pairs() -> list[dict[str, list[int]]]:
    """Three pairs: long prompt, prompt of one token, answers that begin alike; chosen first, then rejected."""
    generator = torch.Generator().manual_seed(0)
    sides: tuple[list[Any], list[Any]] = ([], [])
    for prompt_len, lengths, alike in ((17, (5, 9), 0), (1, (4, 2), 0), (8, (6, 6), 3)):
        prompt = torch.randint(3, 300, (prompt_len,), generator=generator).tolist()
        begin = torch.randint(3, 300, (alike,), generator=generator).tolist()
        for side, length in zip(sides, lengths, strict=True):
            answer = begin + torch.randint(3, 300, (length - alike,), generator=generator).tolist()
            side.append({"input_ids": prompt + answer, "labels": [-100] * prompt_len + answer})
    return [*sides[0], *sides[1]]


def answer_sums(model: Any, batch: dict[str, Any], num_answers: int) -> Tensor:
    """Sum of log p over the labels of each dialogue."""
    logps = model(**model_inputs(batch), use_cache=False).logits[0, :-1].log_softmax(dim=-1)
    targets = batch["labels"][0, 1:]
    owners = documents_of(batch)[0, 1:]
    picked = logps.gather(1, targets.clamp_min(0).unsqueeze(1)).squeeze(1) * (targets != -100)
    return torch.zeros(num_answers + 1).index_add(0, owners, picked)[:num_answers]


@pytest.mark.parametrize("multiple", [None, 64])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "qwen3"])
def test_answers_to_one_prompt_are_computed_as_if_each_had_its_own(tiny_tokenizer: Any, family: str, multiple: int):
    rows = make_pairs()
    model = family_model(family, None)
    use_flat_attention(model, "auto")
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 2.0])
    results = []
    for collate in (FlatCollator(tiny_tokenizer), SharedPrefixCollator(tiny_tokenizer, multiple)):
        model.zero_grad()
        batch = collate(rows)
        sums = answer_sums(model, batch, len(rows))
        (sums * weights).sum().backward()
        gradient = torch.cat([weight.grad.flatten() for weight in model.parameters()])
        results.append((sums.detach(), gradient, int(batch["attention_mask"].sum())))

    (separate, expected, num_tokens), (shared, found, num_shared) = results
    assert_close(shared, separate, rtol=1e-6, atol=1e-5)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert num_tokens - num_shared == 16 + 0 + 7


def test_prompts_are_shared_only_where_every_model_can(tiny_tokenizer: Any):
    own, other = family_model("llama", None), family_model("llama", "sdpa")
    use_flat_attention(own, "auto")

    def choose(model: Any, layout: Layout, *helpers: Any) -> type:
        context: Any = SimpleNamespace(tokenizer=tiny_tokenizer, layout=layout, model=model)
        return type(pair_collator(context, helpers))

    flat = Layout("flat", with_bounds=True)
    assert choose(own, flat) is choose(own, flat, own) is SharedPrefixCollator
    assert choose(own, flat, other) is choose(other, Layout("flat")) is FlatCollator
    assert choose(own, Layout()) is PaddingCollator


def test_only_tokens_that_nobody_learns_are_shared():
    rows = make_pairs()
    assert [shared_length(rows[number], rows[number + 3]) for number in range(3)] == [16, 0, 7]
    learned = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    assert shared_length(learned, learned) == 0
