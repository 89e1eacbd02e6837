"""Two results of the benchmark side by side: what became faster or slower between them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..extras.errors import UserError
from .runner import SCHEMA


NOISE = 0.05
"""Changes below this share are called equal: two runs of the same code lie that far apart."""
ABSOLUTE = ("tokens_per_s", "concurrent_tokens_per_s", "rows_per_s", "cpu_s_per_1000_tokens", "peak_rss_mib")
LESS_IS_BETTER = ("cpu_s_per_1000_tokens", "peak_rss_mib")


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file; anything else is a UserError."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The result {str(path)!r} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not JSON; name a file that `bench --output` wrote.") from error
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise UserError(f"{str(path)!r} is not a result of this version's `bench` (schema {SCHEMA}).")
    return result


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for every figure that both have; ratios first, they hold across machines."""
    is_same_machine = all(old["environment"].get(key) == new["environment"].get(key) for key in ("cpu", "cores"))
    for name in new["tasks"]:
        before, after = old["tasks"].get(name, {}), new["tasks"][name]
        if "sides" not in before or "sides" not in after:
            yield f"{name}: only one of the two has it"
            continue
        yield from _compare_ratios(name, before, after)
        if is_same_machine:
            yield from _compare_sides(name, before, after)
    if not is_same_machine:
        yield "The machines differ, so only ratios were compared."


def _compare_ratios(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    known = {(line["side"], line["over"], line["what"]): line["value"] for line in before["ratios"]}
    for line in after["ratios"]:
        value = known.get((line["side"], line["over"], line["what"]))
        if value is not None:
            yield _line(f"{name}: {line['side']} / {line['over']}", value, line["value"])


def _compare_sides(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for side, facts in after["sides"].items():
        figures = before["sides"].get(side, {"figures": {}})["figures"]
        for key in ABSOLUTE:
            if figures.get(key) and facts["figures"].get(key):
                yield _line(f"{name}: {side} {key}", figures[key], facts["figures"][key], key in LESS_IS_BETTER)


def _line(what: str, old: float, new: float, less_is_better: bool = False) -> str:
    change = new / old - 1
    verdict = "better" if (change < 0) == less_is_better else "WORSE"
    verdict = "equal" if abs(change) < NOISE else verdict
    return f"{what}: {old:.4g} -> {new:.4g} ({change:+.1%}, {verdict})"
