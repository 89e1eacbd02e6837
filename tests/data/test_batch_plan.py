"""Which rows share a batch: every row once (N24), budgets kept, the same number of batches for every rank."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory.data.batch_plan import ROUNDS, BatchPlan, BatchSize
from llamafactory.data.blocks import TextBlocks
from llamafactory.data.lengths import SequenceLengths, sequence_lengths
from llamafactory.data.mismatch import MismatchedRows
from llamafactory.data.packing import PackedRows


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)
ORDERS = st.sampled_from(["random", "sequential", "group_by_length"])


def lengths_of(*lengths: int) -> SequenceLengths:
    return SequenceLengths({"": np.asarray(lengths, dtype=np.int64)})


def batches_of(plan: BatchPlan, epoch: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch in plan.epoch(epoch)]


SIZES = st.builds(
    BatchSize,
    num_rows=st.integers(1, 9),
    max_tokens=st.one_of(st.none(), st.integers(8, 120)),
    pads=st.booleans(),
    multiple=st.sampled_from([1, 8]),
)


def places_of(size: BatchSize, lengths: list[int]) -> int:
    """The places that rows of these lengths take in a batch."""
    widths = [-(-length // size.multiple) * size.multiple for length in lengths]
    places = max(widths) * len(lengths) if size.pads else sum(lengths)
    return -(-places // size.multiple) * size.multiple


@settings(deadline=None)
@given(lengths=LENGTHS, order=ORDERS, num_ranks=st.integers(1, 5), size=SIZES)
def test_n24_every_row_comes_once_an_epoch_and_no_batch_exceeds_its_budget(
    lengths: list[int], order: Any, num_ranks: int, size: BatchSize
) -> None:
    plan = BatchPlan(lengths_of(*lengths), size, order, seed=3, num_ranks=num_ranks)

    for epoch in range(ROUNDS + 2):
        batches = batches_of(plan, epoch)
        assert len(batches) == plan.num_batches * num_ranks
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        for batch in batches:
            if size.max_tokens is None:
                assert len(batch) <= size.num_rows
            elif len(batch) > 1:
                assert places_of(size, [lengths[row] for row in batch]) <= size.max_tokens
        fillers = [batch for batch in batches if not batch]
        assert not fillers or len(fillers) < num_ranks or len(lengths) < plan.num_batches * num_ranks


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    lengths = lengths_of(*np.random.default_rng(0).integers(1, 60, 200).tolist())

    def plan(seed: int) -> BatchPlan:
        return BatchPlan(lengths, BatchSize(max_tokens=256), "random", seed)

    assert batches_of(plan(1), 7) == batches_of(plan(1), 7)
    assert batches_of(plan(1), 7) != batches_of(plan(2), 7)
    assert batches_of(plan(1), 0) != batches_of(plan(1), 1)
    assert batches_of(plan(1), 0) != batches_of(plan(1), ROUNDS)  # the same batches in another order
    assert sorted(batches_of(plan(1), 0)) == sorted(batches_of(plan(1), ROUNDS))


def test_a_budget_takes_rows_in_order_as_long_as_they_fit() -> None:
    lengths = lengths_of(4, 4, 2, 6, 3)

    flat = BatchPlan(lengths, BatchSize(max_tokens=10, pads=False), "sequential")
    padded = BatchPlan(lengths, BatchSize(max_tokens=10), "sequential")

    assert batches_of(flat) == [[0, 1, 2], [3, 4]]
    assert batches_of(padded) == [[0, 1], [2], [3], [4]]
    assert [padded.tokens_of(batch) for batch in padded.epoch(0)] == [8, 2, 6, 3]


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    plan = BatchPlan(lengths_of(3, 50, 3), BatchSize(max_tokens=10, pads=False), "sequential")

    assert batches_of(plan) == [[0], [1], [2]]
    assert plan.num_oversized == 1


def test_ranks_share_what_is_left_and_get_fillers_only_when_rows_run_out() -> None:
    def by_rows(num_rows: int) -> list[list[int]]:
        return batches_of(BatchPlan(lengths_of(*[1] * num_rows), BatchSize(4), "sequential", num_ranks=2))

    assert by_rows(14) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10], [11, 12, 13]]
    assert by_rows(9)[2:] == [[8], []]
    halved = BatchPlan(lengths_of(*[1] * 9), BatchSize(max_tokens=3), "sequential", num_ranks=2)
    assert sorted(map(len, batches_of(halved))) == [1, 2, 3, 3]
    filled = BatchPlan(lengths_of(9, 9, 9), BatchSize(max_tokens=9), "sequential", num_ranks=2)
    assert batches_of(filled) == [[0], [1], [2], []]


def test_the_rest_of_an_epoch_can_be_left_out() -> None:
    plan = BatchPlan(lengths_of(*[1] * 9), BatchSize(2, drops_rest=True), "sequential", num_ranks=2)

    assert plan.num_batches == 2
    assert batches_of(plan) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_both_answers_of_a_pair_count() -> None:
    pairs = SequenceLengths({"chosen_": np.array([3, 4, 2]), "rejected_": np.array([5, 2, 2])})

    flat = BatchPlan(pairs, BatchSize(max_tokens=14, pads=False), "sequential")
    padded = BatchPlan(pairs, BatchSize(max_tokens=20), "sequential")

    assert batches_of(flat) == [[0, 1], [2]]  # 8 + 6, then 4
    assert batches_of(padded) == [[0, 1], [2]]  # four answers of 5
    assert padded.tokens_of(padded.epoch(0)[0]) == 20


def test_marked_answers_count_with_their_mismatched_ones() -> None:
    from datasets import Dataset

    rows = [
        {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, 3, 4, 5]},
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
        {"input_ids": [1] * 9, "labels": [-100] * 4 + [1] * 5},
    ]
    for source in (rows, Dataset.from_list(rows)):
        mismatched = MismatchedRows(source, cutoff_len=8)
        found = sequence_lengths(mismatched)
        assert found.by_prefix["kl_"].tolist() == [len(mismatched[index]["kl_input_ids"]) for index in range(3)]
        assert found.padded.tolist() == [[5, 4], [3, 6], [9, 7]]


@given(lengths=LENGTHS)
@settings(deadline=None)
def test_rows_that_are_put_together_know_their_lengths(lengths: list[int]) -> None:
    documents = [{"input_ids": [1] * length, "labels": [1] * length} for length in lengths]

    for rows in (PackedRows(documents, 64), TextBlocks(documents, 16)):
        expected = [len(rows[index]["input_ids"]) for index in range(len(rows))]
        assert sequence_lengths(rows).total.tolist() == expected


def test_grouping_by_length_pads_less_than_chance() -> None:
    lengths = lengths_of(*np.random.default_rng(0).integers(1, 300, 2000).tolist())

    def padding(order: Any) -> float:
        plan = BatchPlan(lengths, BatchSize(max_tokens=2048), order)
        places = sum(plan.tokens_of(batch) for batch in plan.epoch(0))
        return 1 - int(lengths.total.sum()) / places

    assert padding("group_by_length") < 0.05 < padding("random")


@pytest.mark.parametrize("pads", [True, False])
def test_planning_is_fast_and_fills_batches(pads: bool) -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 0.8, 50_000).astype(int), 1, 2048)
    order = "group_by_length" if pads else "random"

    start = time.perf_counter()
    plan = BatchPlan(SequenceLengths({"": lengths}), BatchSize(max_tokens=8192, pads=pads), order)
    num_batches = plan.num_batches
    plan.epoch(0)
    seconds = time.perf_counter() - start

    assert seconds < 20  # 0.5 s on an idle laptop
    assert lengths.sum() / (num_batches * 8192) > 0.9
    print(f"{seconds:.2f} s, {lengths.sum() / (num_batches * 8192):.1%} filled")
