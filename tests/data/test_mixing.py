"""Several datasets to one: how many rows of each come, in which order, and that validation rows never leak."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafactory.data.mixing import Part, end_to_end, hold_out, mix
from llamafactory.data.store import HASH
from llamafactory.extras.errors import UserError


def part(name: str, num_rows: int, **options: Any) -> Part:
    from datasets import Dataset

    rows = [{"x": f"{name}{index}", HASH: index * 7919 % 1009 + ord(name) * 104_729} for index in range(num_rows)]
    return Part(name, Dataset.from_list(rows), **options)


def mixed(parts: list[Part], strategy: Any, chances: Any = None, seed: int = 0) -> list[str]:
    rows = mix(parts, strategy, chances, seed)
    return [] if rows is None else list(rows["x"])


def test_end_to_end_keeps_the_order() -> None:
    assert mixed([part("a", 2), part("b", 1)], "concat") == ["a0", "a1", "b0"]
    assert mixed([], "concat") == []


def test_alternating_under_stops_with_the_first_that_is_used_up() -> None:
    assert mixed([part("a", 3), part("b", 2)], "interleave_under") == ["a0", "b0", "a1", "b1"]


def test_alternating_over_repeats_until_the_last_is_used_up() -> None:
    rows = mixed([part("a", 4), part("b", 2)], "interleave_over")

    assert rows[:6] == ["a0", "b0", "a1", "b1", "a2", "b0"]
    assert {"a0", "a1", "a2", "a3"} <= set(rows)


@pytest.mark.parametrize("chances", [None, (0.5, 0.5), (0.9, 0.1)])
def test_alternating_once_takes_each_row_once(chances: Any) -> None:
    rows = mixed([part("a", 5), part("b", 2)], "interleave_once", chances)

    assert sorted(rows) == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]
    assert [row for row in rows if row[0] == "a"] == ["a0", "a1", "a2", "a3", "a4"]


def test_chances_are_met_within_the_luck_of_the_draw() -> None:
    rows = mixed([part("a", 4000), part("b", 4000)], "interleave_under", (0.75, 0.25))

    share = sum(row[0] == "a" for row in rows) / len(rows)
    assert abs(share - 0.75) < 3 * (0.75 * 0.25 / len(rows)) ** 0.5


def test_the_draw_follows_the_seed() -> None:
    parts = [part("a", 50), part("b", 50)]

    assert mixed(parts, "interleave_under", (0.5, 0.5), 1) == mixed(parts, "interleave_under", (0.5, 0.5), 1)
    assert mixed(parts, "interleave_under", (0.5, 0.5), 1) != mixed(parts, "interleave_under", (0.5, 0.5), 2)


def test_chances_need_not_add_up_to_one_and_zero_leaves_a_dataset_out() -> None:
    rows = mixed([part("a", 30), part("b", 30), part("c", 30)], "interleave_over", (3.0, 1.0, 0.0))

    assert {row[0] for row in rows} == {"a", "b"}


def test_a_weight_multiplies_rows_end_to_end() -> None:
    counts = Counter(mixed([part("a", 10, weight=2.5), part("b", 10, weight=0.3), part("c", 4)], "concat"))

    amounts = [sum(count for row, count in counts.items() if row[0] == name) for name in "abc"]
    assert amounts == [25, 3, 4]
    assert Counter(count for row, count in counts.items() if row[0] == "a") == {2: 5, 3: 5}


def test_weights_are_chances_when_alternating_and_given_chances_are_stronger() -> None:
    parts = [part("a", 2000, weight=3), part("b", 2000)]

    by_weight = mixed(parts, "interleave_under")
    by_chance = mixed(parts, "interleave_under", (0.5, 0.5))

    assert 0.7 < sum(row[0] == "a" for row in by_weight) / len(by_weight) < 0.8
    assert 0.45 < sum(row[0] == "a" for row in by_chance) / len(by_chance) < 0.55


def test_n23_held_out_rows_are_not_trained_on_even_when_rows_are_repeated() -> None:
    parts = [part("a", 40, weight=3), part("b", 10, num_samples=50)]

    left, held = hold_out(parts, 10)
    train = mix(left, "concat", None, 0)

    assert train is not None
    assert len(held) >= 10
    assert len(set(held["x"])) == len(held)
    assert not set(held["x"]) & set(train["x"])
    assert sum(row[0] == "b" for row in train["x"]) == 50


def test_evaluation_counts_every_row_once_whatever_its_weight() -> None:
    rows = end_to_end([part("a", 3, weight=5), part("b", 4, num_samples=2)], 0)

    assert rows is not None
    assert [row[0] for row in rows["x"]] == ["a", "a", "a", "b", "b"]


def test_a_wrong_number_of_chances_is_one_sentence() -> None:
    with pytest.raises(UserError, match="interleave_probs has 1 values for 2 datasets"):
        mixed([part("a", 3), part("b", 4)], "interleave_under", (1.0,))


def test_get_dataset_mixes(load: Callable[..., Any]) -> None:
    names = "tiny_alpaca,tiny_sharegpt"
    apart = load(names)["train_dataset"]

    rows = load(names, mix_strategy="interleave_under")["train_dataset"]

    assert len(rows) == 16
    assert rows[0] == apart[0]
    assert rows[1] == apart[24]


def test_get_dataset_weighs(load: Callable[..., Any], demo_dataset_dir: Path) -> None:
    path = str(demo_dataset_dir / "tiny_alpaca.json")
    info = {"twice": {"file_name": path, "weight": 2}, "half": {"file_name": path, "weight": 0.5}}

    assert len(load("twice,half", dataset_dir=info)["train_dataset"]) == 48 + 12
    held = load("twice", dataset_dir=info, val_size=6)
    assert len(held["eval_dataset"]) == 6
    assert len(held["train_dataset"]) == 36


def test_rows_kept_in_a_folder_are_not_read_with_another_mixing(load: Callable[..., Any], tmp_path: Path) -> None:
    folder = str(tmp_path / "rows")
    load("tiny_alpaca,tiny_sharegpt", tokenized_path=folder)

    with pytest.raises(UserError, match=r"other settings \(the mixing\)"):
        load("tiny_alpaca,tiny_sharegpt", tokenized_path=folder, mix_strategy="interleave_once")
