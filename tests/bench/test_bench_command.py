"""The command `bench`: its words, its result file, what it says about two results, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from llamafactory.bench import command, report, rows
from llamafactory.bench.command import make_options, read_options, refuse_without_cuda, run_bench
from llamafactory.bench.compare import compare, read_result
from llamafactory.bench.machine import describe_machine
from llamafactory.bench.runner import SCHEMA, Options, Progress, run_tasks
from llamafactory.bench.tasks import TASKS, Ratio, Side, Task, find_tasks
from llamafactory.extras.errors import UserError
from llamafactory.launcher import COMMANDS


def run(
    tokens_per_s: float, *, losses: tuple[float, ...] = (2.0, 1.9), peak: float = 900.0, bf16: bool = True
) -> dict[str, Any]:
    return {
        "tokens_per_s": tokens_per_s,
        "tokens_seen": 1000,
        "losses": list(losses),
        "grad_norms": [0.5, 0.4],
        "peak_rss_mib": peak,
        "bf16": bf16,
    }


def task(goal: float | None = 3.0) -> Task:
    sides = tuple(Side(name=name, title=name, run="x:y") for name in ("reference", "ours"))
    ratio = Ratio(side="ours", over="reference", goal=goal)
    return Task(name="t", title="A task", sides=sides, ratios=(ratio,), equal_losses=(("ours", "reference"),))


def result(ours: float, *, cpu: str = "a processor") -> dict[str, Any]:
    runs = {"reference": [run(100.0)], "ours": [run(ours)]}
    sides = {name: {"title": name, "figures": report.summarise(each), "runs": each} for name, each in runs.items()}
    return {
        "schema": SCHEMA,
        "date": "2026-01-01",
        "settings": {"model": "m", "rounds": 1, "warmup_steps": 1, "batch": 4},
        "environment": {"cpu": cpu, "cores": "2"},
        "tasks": {"t": {"title": "A task", "work": {}, "sides": sides, **report.ratios(task(), runs)}},
    }


def test_ratios_are_taken_round_by_round() -> None:
    runs = {"reference": [run(100.0), run(50.0), run(80.0)], "ours": [run(310.0), run(200.0), run(160.0)]}

    lines = report.ratios(task(), runs)["ratios"]

    assert lines[0]["rounds"] == [3.1, 4.0, 2.0]
    assert lines[0]["value"] == 3.1
    assert lines[0]["is_reached"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [True, True, True]),
        ({"losses": (2.1, 1.9)}, [True, False, True]),
        ({"losses": (2.0, 2.1)}, [True, True, True]),  # bfloat16 drifts from the second step on
        ({"losses": (2.0, 1.91), "bf16": False}, [True, True, True]),  # the other side is in bfloat16 still
        ({"peak": 1000.0}, [True, True, False]),
    ],
)
def test_other_work_or_more_memory_is_said(changes: dict[str, Any], expected: list[bool]) -> None:
    runs = {"reference": [run(100.0)], "ours": [run(300.0, **changes)]}

    checks = report.ratios(task(), runs)["checks"]

    assert [check["is_equal"] for check in checks] == expected
    assert ("NOT EQUAL" in " ".join(map(report.describe_check, checks))) == (not all(expected[:2]))


@pytest.mark.parametrize(("losses", "is_equal"), [((2.0, 1.9), True), ((2.0, 1.9005), True), ((2.0, 1.91), False)])
def test_in_float32_every_step_must_show_the_same_loss(losses: tuple[float, ...], is_equal: bool) -> None:
    runs = {"reference": [run(100.0, bf16=False)], "ours": [run(300.0, losses=losses, bf16=False)]}

    check = report.ratios(task(), runs)["checks"][1]

    assert check["what"] == "loss of every step"
    assert check["is_equal"] is is_equal
    assert "at most 0.10% is rounding" in report.describe_check(check)


def test_both_curves_are_drawn() -> None:
    runs = {name: [run(100.0, losses=(2.0, 1.9, 1.8, shift))] for name, shift in (("reference", 1.7), ("ours", 1.6))}
    for each in runs.values():
        each[0]["grad_norms"] = [0.5] * 4
    shown = result(300.0)
    shown["tasks"]["t"]["sides"] = {
        name: {"title": name, "figures": report.summarise(each), "runs": each} for name, each in runs.items()
    }

    text = report.markdown(shown)

    assert "line [2.0000, 1.9000, 1.8000, 1.7000]\n    line [2.0000, 1.9000, 1.8000, 1.6000]\n```" in text


def test_a_missed_goal_is_called_missed() -> None:
    runs = {"reference": [run(100.0)], "ours": [run(250.0)]}

    line = report.describe_ratio(report.ratios(task(), runs)["ratios"][0])

    assert line == "ours / reference: 2.50x (goal 3x: missed)"


def test_markdown_holds_every_figure_of_the_file() -> None:
    text = report.markdown(result(321.0))

    assert "| ours | 321 | 900 |" in text
    assert "ours / reference: 3.21x (goal 3x: reached)" in text
    assert "| reference | 2.0000 (0.500) | 1.9000 (0.400) |" in text


def test_two_results_are_compared_by_ratio_and_on_one_machine_by_speed() -> None:
    same = list(compare(result(300.0), result(240.0)))
    other = list(compare(result(300.0), result(240.0, cpu="another")))

    assert "t: ours / reference: 3 -> 2.4 (-20.0%, WORSE)" in same
    assert any("ours tokens_per_s: 300 -> 240" in line for line in same)
    assert not any("tokens_per_s" in line for line in other)
    assert next(iter(compare(result(300.0), result(306.0)))).endswith("equal)")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["sft-lor"], "sft-lora"),
        (["--stepz", "3"], "--stepz"),
        (["--steps", "0"], "at least 1"),
        (["--steps", "many"], "--steps"),
        (["--data", "no/such/folder"], "no folder"),
        (["--show", "no/such.json"], "cannot be read"),
    ],
)
def test_words_that_make_no_sense_are_refused(words: list[str], part: str) -> None:
    with pytest.raises(UserError, match=part):
        run_bench(words)


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    (tmp_path / "y.json").write_text("no json", encoding="utf-8")

    for name, part in (("x.json", "not a result"), ("y.json", "not JSON")):
        with pytest.raises(UserError, match=part):
            read_result(tmp_path / name)


def test_a_task_for_a_gpu_is_refused_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu_tasks = [each for each in TASKS if each.needs_cuda]

    assert {each.name for each in gpu_tasks} == {"gpu-8b-lora", "gpu-0.6b-full"}
    with pytest.raises(UserError, match="needs a CUDA device"):
        refuse_without_cuda(gpu_tasks)
    refuse_without_cuda(find_tasks(["sft-lora"]))


def test_a_task_about_a_package_is_refused_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "is_available", lambda module: False)

    with pytest.raises(UserError, match=r"llamafactory\[bnb\]"):
        run_bench(["sft-qlora"])
    assert [each.name for each in TASKS if command.lacks_package(each)] == ["sft-qlora"]


def test_a_result_is_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result(300.0)), encoding="utf-8")

    run_bench(["--show", str(path), "--compare", str(path)])
    run_bench(["--show", str(path), "--markdown"])

    printed = capsys.readouterr().out
    assert "3.00x (goal 3x: reached)" in printed
    assert "+0.0%, equal" in printed
    assert "### t: A task" in printed


def test_the_environment_names_no_host_user_or_path() -> None:
    import getpass
    import socket

    facts = describe_machine()

    assert {"torch", "cpu", "cores", "python", "load"} <= set(facts)
    text = json.dumps(facts)
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text
    assert f"/{getpass.getuser()}" not in text


def test_bench_is_a_command_that_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMANDS["bench"].startswith("llamafactory.bench.command:")
    run_bench(["--help"])

    printed = capsys.readouterr().out
    assert all(each.name in printed for each in TASKS)


def test_the_chosen_rows_waste_what_the_data_wastes() -> None:
    lengths = [[5 + 7 * number % 300] for number in range(300)]

    order = rows.choose_rows(lengths, batch=4, num_rows=32, warmup=16)
    measured = [lengths[index] for index in order[16:]]

    assert len(set(order)) == 32
    assert rows.padding_share(measured, 4) == pytest.approx(rows.mean_padding(lengths, 4), abs=0.02)


def test_padding_is_counted_over_all_sequences_of_a_batch() -> None:
    assert rows.padding_share([[4], [2]], batch=2) == pytest.approx(0.25)
    assert rows.padding_share([[4, 2], [3, 1]], batch=2) == pytest.approx(1 - 10 / 16)


class Listener(Progress):
    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, total: int) -> None:
        self.total = total

    def advance(self, steps: int) -> None:
        self.done += steps


@pytest.mark.slow
def test_a_small_run_through_processes(tmp_path: Path, tiny_llama_dir: Path) -> None:
    options = Options(model=str(tiny_llama_dir), data=None, steps=1, warmup=1, rounds=1, rows=20, new_tokens=4)
    progress = Listener()

    measured = run_tasks(find_tasks(["sft-lora", "preprocess", "decode"]), options, progress)

    json.dumps(measured)
    assert {name for name, each in measured["tasks"].items() if "error" in each} == set()
    assert all(check["is_equal"] for check in measured["tasks"]["sft-lora"]["checks"][:2])
    assert progress.total == progress.done


def test_a_side_that_fails_is_told_and_the_others_go_on(tmp_path: Path, tiny_llama_dir: Path) -> None:
    broken = Task(
        name="broken",
        title="Asks for a module that is not there",
        sides=(Side(name="ours", title="", run="llamafactory.bench.nothing:run"),),
        ratios=(),
    )
    given = read_options(["--model", str(tiny_llama_dir), "--rounds", "1"])

    measured = run_tasks([broken], make_options(given), Progress())

    assert "llamafactory.bench.nothing" in measured["tasks"]["broken"]["error"]
