"""The cache of `precompute_ref_logps`: what is in it, what its key follows, and how a stopped run goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pairs import collator, expected_logps, make_marked, make_pairs, shift_weights

from llamafactory.model.readout import enable_readout
from llamafactory.train import reference_cache
from llamafactory.train.kto.objective import MISMATCHED
from llamafactory.train.reference_cache import Asked, add_columns, compute_columns, key_of


PAIRS = ("chosen_", "rejected_")


@pytest.fixture
def ask(make_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Asked]:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path))

    def make(method: str = "full", seed: int | None = None, ld_alpha: float | None = None) -> Asked:
        model = make_model(method)
        enable_readout(model)
        if seed is not None:
            shift_weights(model, seed)
        return Asked(model, torch.device("cpu"), None, ld_alpha, 3)

    return make


def test_columns_hold_the_log_probabilities_of_each_answer(ask: Callable[..., Asked], tmp_path: Path):
    asked, rows, marked = ask(), make_pairs(7), make_marked(5)

    pairs = add_columns(rows, compute_columns(asked, rows, [collator(True, *PAIRS)]))
    marks = add_columns(marked, compute_columns(asked, marked, [collator(True, ""), collator(True, MISMATCHED)]))

    for row in pairs:
        for side in PAIRS:
            expected = expected_logps(asked.model, row[f"{side}input_ids"], row[f"{side}labels"])
            assert row[f"{side}reference_logps"] == pytest.approx(expected.item(), abs=1e-4)
    expected = expected_logps(asked.model, marks[4]["kl_input_ids"], marks[4]["kl_labels"])
    assert marks[4]["kl_reference_logps"] == pytest.approx(expected.item(), abs=1e-4)
    assert collator(True, *PAIRS)(pairs)["reference_logps"].shape == (14,)


def test_a_stopped_computation_goes_on_where_it_was(
    ask: Callable[..., Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reference_cache, "PIECE", 4)
    rows, collate = make_pairs(18), [collator(True, *PAIRS)]
    whole = compute_columns(ask(), rows, collate)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 5
    files[1].unlink()
    kept = {file: file.stat().st_mtime_ns for file in files if file.exists()}

    assert compute_columns(ask(), rows, collate) == whole

    assert sorted(tmp_path.rglob("*.safetensors")) == files
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    assert not list(tmp_path.rglob("*.part"))


def test_the_key_follows_rows_weights_and_settings_but_not_an_adapter_that_adds_nothing(ask: Callable[..., Asked]):
    rows, collate = make_pairs(4), [collator(True, *PAIRS)]
    longer = [{**row, "chosen_labels": [-100, *row["chosen_labels"][1:]]} for row in make_pairs(5)[1:]]

    key = key_of(ask(), rows, collate)

    assert key == key_of(ask(), make_pairs(4), [collator(False, *PAIRS)])
    others = [
        key_of(ask(seed=1), rows, collate),
        key_of(ask(ld_alpha=0.5), rows, collate),
        key_of(ask(), longer, collate),
        key_of(ask(), rows[::-1], collate),
        key_of(ask("lora", seed=1), rows, collate),
        key_of(ask("lora", seed=2), rows, collate),
    ]
    assert len({key, *others}) == 7
    assert key_of(ask("lora"), rows, collate) == key_of(ask("lora"), rows, collate)
