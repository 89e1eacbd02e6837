"""From runs to figures: medians, ratios round by round, checks that both sides did the same work, and the tables."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .tasks import Ratio, Task


if TYPE_CHECKING:
    from rich.table import Table

FIRST_STEP = 2.0**-8
"""How far the losses of the first step may lie apart in bfloat16, as a share.

Both sides still have the same weights, and each rounds to within 2^-9 of a number. Later losses tell nothing: Adam
divides by the gradient's own size, so an entry that is smaller than its rounding error moves a weight by the whole
learning rate, one way or the other. In float32 there are hardly any such entries.
"""
EVERY_STEP = 1e-3
"""How far the losses of any step may lie apart in float32, as a share."""
DRAWN_STEPS = 4
"""Fewer steps make no curve."""
HIGHLIGHTS = (
    ("tokens_per_s", "tokens/s", 0),
    ("supervised_tokens_per_s", "learned/s", 0),
    ("concurrent_tokens_per_s", "16 at once", 0),
    ("rows_per_s", "rows/s", 0),
    ("cpu_s_per_1000_tokens", "CPU s/1000", 2),
    ("peak_rss_mib", "peak MiB", 0),
    ("peak_device_mib", "GPU MiB", 0),
    ("startup_cpu_s", "to step 1, CPU s", 1),
    ("first_step_s", "step 1, s", 1),
)
"""Figures that the tables show, where a side has them: key, heading, digits."""


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the median of every number over the rounds; the greatest memory."""
    numbers = [key for key, value in runs[0].items() if isinstance(value, int | float) and not isinstance(value, bool)]
    figures: dict[str, Any] = {key: statistics.median(run[key] for run in runs) for key in numbers}
    if "peak_rss_mib" in figures:
        figures["peak_rss_mib"] = max(run["peak_rss_mib"] for run in runs)
    return figures


def ratios(task: Task, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Divide round by round, and compare what the sides say about their work."""
    lines = [_ratio(ratio, runs) for ratio in task.ratios]
    checks = [check for pair in task.equal_losses for check in _compare(*pair, runs)]
    checks += [check for each in runs.values() for check in each[0].get("checks", ())]
    return {"ratios": lines, "checks": checks}


def _ratio(ratio: Ratio, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    if ratio.over:
        pairs = zip(runs[ratio.side], runs[ratio.over], strict=True)
        rounds = [side[ratio.what] / over[ratio.what] for side, over in pairs]
    else:
        rounds = [side[ratio.what] for side in runs[ratio.side]]
    value = statistics.median(rounds)
    line: dict[str, Any] = {
        "side": ratio.side,
        "over": ratio.over,
        "what": ratio.what,
        "value": round(value, 3),
        "rounds": [round(each, 3) for each in rounds],
    }
    if ratio.goal is not None:
        line |= {"goal": ratio.goal, "is_reached": value >= ratio.goal}
    return line


def _compare(side: str, over: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The same tokens, the same losses, and no more memory."""
    mine, theirs = runs[side][0], runs[over][0]
    yield _check(side, over, "tokens", mine["tokens_seen"], theirs["tokens_seen"], 0.0)
    yield _compare_losses(side, over, runs)
    peaks = [max(run["peak_rss_mib"] for run in runs[name]) for name in (side, over)]
    yield {
        "side": side,
        "over": over,
        "what": "peak memory below",
        "share": round(peaks[0] / peaks[1], 3),
        "is_equal": peaks[0] <= peaks[1],
    }


def _compare_losses(side: str, over: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """In bfloat16 the first step tells, and what follows is only shown; in float32 every step does."""
    mine, theirs = runs[side][0], runs[over][0]
    apart = [abs(a / b - 1) for a, b in zip(mine["losses"], theirs["losses"], strict=False) if b]
    is_short = bool(mine["bf16"] or theirs["bf16"])
    judged, limit = (apart[:1], FIRST_STEP) if is_short else (apart, EVERY_STEP)
    check = {
        "side": side,
        "over": over,
        "what": "loss of the first step" if is_short else "loss of every step",
        "largest_difference": round(max(judged, default=0.0), 6),
        "limit": limit,
        "is_equal": bool(judged) and max(judged) <= limit,
    }
    return check | ({"later_difference": round(max(apart[1:]), 6)} if is_short and apart[1:] else {})


def _check(side: str, over: str, what: str, mine: float, theirs: float, tolerance: float) -> dict[str, Any]:
    apart = abs(mine - theirs) / max(abs(theirs), 1e-9)
    return {
        "side": side,
        "over": over,
        "what": what,
        "largest_difference": round(apart, 5),
        "is_equal": apart <= tolerance,
    }


def describe_ratio(line: Mapping[str, Any]) -> str:
    """Say a ratio in a few words."""
    if not line["over"]:
        verdict = "reached" if line["is_reached"] else "missed"
        return f"{line['side']}: {line['value']:.0f} tokens/s (goal {line['goal']:.0f}: {verdict})"
    is_share = line["over"] in ("gemm", "encode")
    value = f"{line['value']:.0%}" if is_share else f"{line['value']:.2f}x"
    what = " (sixteen at once)" if line["what"].startswith("concurrent") else ""
    text = f"{line['side']} / {line['over']}{what}: {value}"
    if "goal" in line:
        goal = f"{line['goal']:.0%}" if is_share else f"{line['goal']:g}x"
        text += f" (goal {goal}: {'reached' if line['is_reached'] else 'missed'})"
    return text


def describe_check(line: Mapping[str, Any]) -> str:
    """Say a check in a few words."""
    if "share" in line:
        return f"{line['side']} takes {line['share']:.0%} of the memory of {line['over']}"
    if "theirs" in line:
        verdict = "no farther than" if line["is_equal"] else "FARTHER than"
        return (
            f"{line['what']}: {line['mine']:.2%} from those in float32, {verdict} {line['theirs']:.2%} of "
            f"{line['over']} (difference {line['mean_difference']:+.3%} with a standard error of "
            f"{line['standard_error']:.3%}, {line['num_batches']} batches)"
        )
    sign = "equal" if line["is_equal"] else "NOT EQUAL"
    digits = 4 if 0 < line["largest_difference"] < 1e-4 else 2
    text = f"{line['what']} of {line['side']} and {line['over']}: {sign} ("
    text += f"largest difference {line['largest_difference']:.{digits}%}"
    text += f", at most {line['limit']:.2%} is rounding" if line.get("limit") else ""
    text += f"; {line['later_difference']:.2%} in later steps" if "later_difference" in line else ""
    return text + ")"


def tables(result: Mapping[str, Any]) -> "Iterator[Table | str]":
    """Yield what the terminal shows: a table and a few lines for every task."""
    from rich.table import Table

    for name, task in result["tasks"].items():
        if "error" in task:
            yield f"{name}: not measured: {task['error']}\n"
            continue
        heads, rows = _cells(task)
        table = Table("side", *heads, title=f"{name}: {task['title']}", title_justify="left")
        for row in rows:
            table.add_row(*row)
        yield table
        yield "".join(f"  {line}\n" for line in _lines(task))


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables as they stand in docs/performance.md."""
    facts = result["environment"]
    machine = ", ".join(f"{key} {facts[key]}" for key in ("cpu", "cores", "memory", "cpu features") if key in facts)
    software = ", ".join(f"{key} {facts[key]}" for key in ("torch", "transformers", "peft") if key in facts)
    settings = result["settings"]
    parts = [
        f"Measured {result['date']}: {machine}; {software}. Model {settings['model']}, {settings['rounds']} rounds, "
        f"the first {settings['warmup_steps']} steps of each are not counted (they are shown as they are below).\n"
    ]
    for name, task in result["tasks"].items():
        parts.append(f"### {name}: {task['title']}\n")
        if "error" in task:
            parts.append(f"Not measured: {task['error'].splitlines()[-1]}\n")
            continue
        heads, rows = _cells(task)
        if heads:
            parts.append("".join(_row(cells) for cells in (("side", *heads), ("---",) * (len(heads) + 1), *rows)))
        parts.append("".join(f"- {line}\n" for line in _lines(task)))
        parts.extend(_curves(task))
    return "\n".join(parts)


def _cells(task: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    sides = task["sides"]
    shown = [row for row in HIGHLIGHTS if any(row[0] in side["figures"] for side in sides.values())]
    rows: list[list[str]] = []
    for name, side in sides.items():
        cells = [name]
        for key, _, digits in shown:
            value = side["figures"].get(key)
            cells.append("" if value is None else f"{value:.{digits}f}")
        rows.append(cells)
    return [heading for _, heading, _ in shown], rows


def _lines(task: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{name}: {side['title']}" for name, side in task["sides"].items())
    yield from map(describe_ratio, task["ratios"])
    yield from map(describe_check, task["checks"])
    ours = task["sides"].get("ours", {"figures": {}})["figures"]
    if "trainer_share" in ours:
        yield f"ours spends {ours['trainer_share']:.2%} of a step outside forward, backward and update"
    for kind, work in task.get("work", {}).items():
        if kind == "plain":
            yield (
                f"padding: {work['padding_share']:.0%} of the measured padded batches, "
                f"{work['padding_share_of_all']:.0%} in the whole data ({work['origin']})"
            )


def _curves(task: Mapping[str, Any]) -> Iterator[str]:
    """Yield the loss and the gradient norm of every step, side beside side."""
    curves = {name: side["runs"][0] for name, side in task["sides"].items() if side["runs"][0].get("losses")}
    for group in (("reference", "ours"), ("reference-packed", "ours-packed")):
        names = [name for name in group if name in curves]
        if len(names) != len(group):
            continue
        yield f"\nLoss (and gradient norm) of every step, {' and '.join(names)}:\n"
        steps = range(min(len(curves[name]["losses"]) for name in names))
        if len(steps) >= DRAWN_STEPS:
            yield _chart([curves[name]["losses"] for name in names])
        rows = [("side", *(f"step {step + 1}" for step in steps)), ("---",) * (len(steps) + 1)]
        for name in names:
            pairs = [(curves[name]["losses"][step], curves[name]["grad_norms"][step]) for step in steps]
            rows.append((name, *(f"{loss:.4f} ({norm:.3f})" for loss, norm in pairs)))
        yield "".join(map(_row, rows))


def _chart(losses: Sequence[Sequence[float]]) -> str:
    """Draw the losses over each other, in the language of charts that GitHub shows."""
    steps = ", ".join(str(step + 1) for step in range(len(losses[0])))
    lines = "".join(f"    line [{', '.join(f'{loss:.4f}' for loss in curve)}]\n" for curve in losses)
    return f'```mermaid\nxychart-beta\n    x-axis "step" [{steps}]\n    y-axis "loss"\n{lines}```\n'


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
