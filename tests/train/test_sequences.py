"""Supervised positions and sums per sequence, for padded and flat batches alike (rows N11, N14, N30)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_trainer import make_rows, pad_right, with_lora
from torch.testing import assert_close

from llamafactory.data.collator import FlatCollator, PackedCollator, PaddingCollator
from llamafactory.model.readout import enable_readout
from llamafactory.train.sequences import sequence_log_probs, shift_labels, sum_sequences, supervised_positions


ROWS = make_rows(5, seed=4)


def expected_sums(model: Any) -> torch.Tensor:
    """One row after the other, by the logits of all its tokens."""
    sums = []
    for row in ROWS:
        batch = pad_right([row])
        logps = model(input_ids=batch["input_ids"]).logits[0, :-1].log_softmax(dim=-1)
        targets = batch["labels"][0, 1:]
        sums.append(logps.gather(1, targets.clamp_min(0)[:, None])[:, 0][targets != -100].sum())
    return torch.stack(sums)


def test_positions_name_the_next_label_of_the_row():
    labels = torch.tensor([[-100, 5, 6, -100], [1, -100, 3, 4]])
    positions, targets = supervised_positions({"labels": labels})
    assert positions.tolist() == [0, 1, 5, 6]
    assert targets.tolist() == [5, 6, 3, 4]
    assert shift_labels(labels).tolist() == [[5, 6, -100, -100], [-100, 3, 4, -100]]


@pytest.mark.parametrize("side", ["right", "left", "packed", "flat"])
def test_n14_n30_sums_are_those_of_each_row_alone(side: str, tiny_llama: Callable[..., Any], tiny_tokenizer: Any):
    model = tiny_llama().eval()
    collators: dict[str, Any] = {
        "right": PaddingCollator(tiny_tokenizer),
        "left": PaddingCollator(tiny_tokenizer, padding_side="left"),
        "packed": PackedCollator(tiny_tokenizer),
        "flat": FlatCollator(tiny_tokenizer, 8, with_bounds=False),
    }
    enable_readout(model)
    batch = collators[side](ROWS)
    if side == "packed":  # rows of one document, whose padding counts as a document behind each
        found = sequence_log_probs(model, batch, 2 * len(ROWS))
        kept = found.counts_S > 0
        sums, counts = found.sums_S[kept], found.counts_S[kept]
    else:
        found = sequence_log_probs(model, batch, len(ROWS))
        sums, counts = found.sums_S, found.counts_S
    assert_close(sums, expected_sums(model), rtol=1e-5, atol=1e-5)
    assert counts.tolist() == [sum(label != -100 for label in row["labels"][1:]) for row in ROWS]
    assert_close(sum_sequences(found.logps_K, found), found.sums_S)


def test_n30_gradients_are_those_of_the_rows(tiny_llama: Callable[..., Any], tiny_tokenizer: Any):
    model = with_lora(tiny_llama()).eval()
    enable_readout(model)
    factors = torch.linspace(-1, 1, len(ROWS))
    batch = FlatCollator(tiny_tokenizer, with_bounds=False)(ROWS)
    (sequence_log_probs(model, batch, len(ROWS)).sums_S * factors).sum().backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    (expected_sums(model) * factors).sum().backward()
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-5)
