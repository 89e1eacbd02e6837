"""The list of runs: found by their files, narrowed down, compared, copied and deleted."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llamafactory.extras.errors import UserError
from llamafactory.webui import jobs
from llamafactory.webui.jobs import progress
from llamafactory.webui.jobs.failures import find_reason


OLD = 1_700_000_000


def make_run(
    root: Path, run_id: str, config: dict[str, Any], losses: tuple[float, ...] = (), done: bool = True
) -> Path:
    """Leave what a run of the command line leaves."""
    folder = root / run_id
    folder.mkdir(parents=True)
    head = "".join(f"{key}: {json.dumps(value)}  # run.yaml:1\n" for key, value in config.items())
    (folder / "resolved_config.yaml").write_text(f"# Set for this run.\n{head}\n# Derived from the values above.\n")
    lines = [
        json.dumps({"current_steps": step, "total_steps": 3, "loss": loss, "percentage": 10.0 * step})
        for step, loss in enumerate(losses, 1)
    ]
    (folder / "trainer_log.jsonl").write_text("".join(f"{line}\n" for line in lines))
    for path in folder.iterdir():
        os.utime(path, (OLD, OLD))
    if done:
        (folder / "train_results.json").write_text("{}")
        (folder / "all_results.json").write_text(json.dumps({"train_loss": losses[-1]}))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "saves"
    make_run(root, "qwen/lora/a", {"stage": "sft", "lora_rank": 8, "output_dir": "saves/qwen/lora/a"}, (3.0, 2.0, 1.0))
    make_run(
        root, "qwen/lora/b", {"stage": "sft", "lora_rank": 16, "output_dir": "saves/qwen/lora/b"}, (3.0, 2.5), False
    )
    make_run(root, "llama/full/c", {"stage": "dpo"}, (0.7, 0.6))
    return root


def test_the_listing_finds_runs_of_the_command_line_too(root: Path, tmp_path: Path) -> None:
    outside = make_run(tmp_path / "elsewhere", "x", {}, (1.0,))
    (root / "link").symlink_to(outside)
    (root / "qwen" / "lora" / "a" / "checkpoint-3").mkdir()
    (root / "qwen" / "lora" / "a" / "checkpoint-3" / "trainer_log.jsonl").write_text("")

    states = {row.run_id: row.state for row in jobs.list_runs(root)}
    assert states == {"qwen/lora/a": "finished", "qwen/lora/b": "stopped", "llama/full/c": "finished"}
    assert [row.run_id for row in jobs.list_runs(root, text="DPO")] == ["llama/full/c"]
    assert {row.run_id for row in jobs.list_runs(root, text="qwen sft", states=["stopped"])} == {"qwen/lora/b"}
    assert jobs.list_runs(root / "nothing") == []


def test_runs_are_compared_by_what_differs(root: Path) -> None:
    compared = jobs.compare_runs(root, ["qwen/lora/a", "qwen/lora/b"])

    assert compared.differences["lora_rank"] == {"qwen/lora/a": 8, "qwen/lora/b": 16}
    assert "stage" not in compared.differences
    assert compared.curves["loss"]["qwen/lora/b"] == [(1, 3.0), (2, 2.5)]
    assert compared.results == {"train_loss": {"qwen/lora/a": 1.0}}


def test_a_copy_takes_everything_but_the_place(root: Path) -> None:
    assert jobs.clone_run(root, "qwen/lora/b").config == {"stage": "sft", "lora_rank": 16}


@pytest.mark.parametrize(
    "run_id",
    ["", ".", "..", "../saves/qwen/lora/a", "qwen", "qwen/../qwen/lora/a", "/etc", "qwen//lora/a", "a\0b", "link"],
)
def test_only_what_is_listed_can_be_named(root: Path, tmp_path: Path, run_id: str) -> None:
    (root / "link").symlink_to(make_run(tmp_path / "elsewhere", "x", {}, (1.0,)))
    for act in (jobs.find_run, jobs.clone_run):
        with pytest.raises(UserError, match="There is no run"):
            act(root, run_id)
    with pytest.raises(UserError, match="There is no run"):
        jobs.delete_runs(root, ["qwen/lora/a", run_id])
    assert (root / "qwen/lora/a").is_dir()
    assert (tmp_path / "elsewhere" / "x" / "all_results.json").is_file()


def test_deleting_takes_empty_parents_along_and_follows_no_link(root: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").write_text("x")
    (root / "llama/full/c/inner").symlink_to(keep)

    assert jobs.delete_runs(root, ["llama/full/c"]) == ["llama/full/c"]
    assert sorted(item.name for item in root.iterdir()) == ["qwen"]
    assert (keep / "file").is_file()


def test_a_line_that_is_still_being_written_waits(root: Path) -> None:
    log = root / "qwen/lora/b/trainer_log.jsonl"
    with log.open("a") as file:
        file.write('not json\n[1]\n{"current_steps": 3, "total_ste')

    status = jobs.read_status(root / "qwen/lora/b")
    assert (status.progress.step, status.progress.total_steps) == (2, 3)
    assert status.curves["loss"] == [(1, 3.0), (2, 2.5)]


def test_a_long_log_costs_no_more_than_a_short_one_and_keeps_both_ends(root: Path) -> None:
    log = root / "qwen/lora/a/trainer_log.jsonl"
    with log.open("w") as file:
        for step in range(1, 100_001):
            file.write(
                json.dumps({"current_steps": step, "total_steps": 100_000, "loss": 1 / step, "lr": 1e-5}) + "\n"
            )
    assert log.stat().st_size > progress.CURVE_BYTES

    points = jobs.read_curves(root / "qwen/lora/a")["loss"]
    assert points[0] == (1, 1.0)
    assert points[-1] == (100_000, 1e-5)
    assert len(points) < 80_000
    steps = [step for step, _ in points]
    assert steps == sorted(set(steps))
    assert jobs.read_progress(root / "qwen/lora/a").step == 100_000


def test_the_log_is_what_a_person_would_have_seen(root: Path) -> None:
    output = "\x1b[31mred\x1b[0m\n 0%| | 0/3\r 33%| | 1/3\r100%| | 3/3\nwith hf_abcdefghijklmnop1234 <b>\r\n"
    (root / "qwen/lora/a/webui_subprocess.log").write_bytes(output.encode())

    assert jobs.read_status(root / "qwen/lora/a").log_tail == "red\n100%| | 3/3\nwith hf_*** <b>"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            "Traceback (most recent call last):\n  File x\ntorch.OutOfMemoryError: CUDA out of memory.\n",
            "torch.OutOfMemoryError: CUDA out of memory.",
        ),
        (
            "[rank1]: ValueError: bad\n[ERROR] Rank 1 ended with exit code 1; its messages are above.\n",
            "ValueError: bad",
        ),
        ("ValueError: first\nmore\nKeyError: 'last'\n 3%|  | 1/30 [00:01<00:02, 1.0it/s]\n", "KeyError: 'last'"),
        ("nothing to see", "nothing to see"),
        ("", "The run ended with exit code 1 and said nothing."),
    ],
)
def test_the_reason_is_the_last_error(output: str, reason: str) -> None:
    assert find_reason(output, 1) == reason


def test_a_list_of_mistakes_is_told_whole() -> None:
    output = "[INFO] x\nThe configuration has 2 problems:\n  - a is wrong\n  - b is missing\n"
    assert find_reason(output, 2) == "The configuration has 2 problems: - a is wrong - b is missing"


def test_what_a_run_said_last_is_no_reason_when_nobody_saw_it_end() -> None:
    assert find_reason("step 3/9  loss 1.5", None) == "The run ended while nothing watched it, and left no result."
    assert find_reason("x\nValueError: bad\n", None) == "ValueError: bad"
    assert "no memory left" in find_reason("ValueError: earlier", -9)


def test_a_run_of_the_command_line_that_still_writes_is_not_deleted(root: Path) -> None:
    (root / "qwen/lora/b/trainer_log.jsonl").touch()

    assert [row.run_id for row in jobs.list_runs(root, states=["running"])] == ["qwen/lora/b"]
    with pytest.raises(UserError, match="runs or waits"):
        jobs.delete_runs(root, ["qwen/lora/a", "qwen/lora/b"])
    assert (root / "qwen/lora/a").is_dir()
