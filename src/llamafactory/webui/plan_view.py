"""The answer of the command `plan` as HTML: does it fit, how long does it take, where does the memory go."""

import time
from collections.abc import Mapping
from typing import Any

from ..hparams.view import word
from .markup import cards, notice, table
from .wording import say


GIB = 2**30
SHOWN_BYTES = 2**20  # smaller parts say nothing


def show_plan(plan: Mapping[str, Any], language: str) -> str:
    """Return the estimate: a sentence, the figures, the memory by part, and what to change."""
    memory, data, model = plan["memory"], plan["data"], plan["model"]
    probe = plan.get("probe") or {}
    figures = [
        ("plan_peak", _gib(memory["peak"])),
        ("plan_usable", _gib(memory.get("usable"))),
        ("plan_trained", f"{model['trained']:,} / {model['parameters']:,}"),
        ("plan_steps", f"{data['num_steps']:,}"),
        ("plan_time", _duration(probe.get("total_seconds"))),
        ("word_speed", "" if not probe else f"{probe['tokens_per_second']:,.0f}"),
    ]
    parts = [(name, _gib(size)) for name, size in memory["parts"].items() if size >= SHOWN_BYTES]
    return (
        _verdict(plan, language)
        + cards([(say(name, language), text) for name, text in figures if text])
        + table((say("plan_part", language), "GiB"), parts)
    )


def _verdict(plan: Mapping[str, Any], language: str) -> str:
    hints = [*map(_sentence, plan.get("suggestions", ())), *map(_sentence, plan.get("notes", ()))]
    fits = plan.get("fits")
    if fits is None:
        return notice(say("plan_unknown", language), "info", hints)
    return notice(say("plan_fits" if fits else "plan_too_big", language), "good" if fits else "problem", hints)


def _sentence(item: Any) -> str:
    """Return a suggestion (what to change, why, and the peak it leads to) or a note as one line."""
    if not isinstance(item, Mapping):
        return str(item)
    changes = ", ".join(f"{key}: {word(value)}" for key, value in item.get("changes", {}).items())
    return f"{changes} - {item.get('why', '')} ({_gib(item.get('peak'))} GiB)"


def _gib(size: Any) -> str:
    return f"{size / GIB:,.2f}" if isinstance(size, int | float) else ""


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return ""
    days, rest = divmod(int(seconds), 86_400)
    clock = time.strftime("%H:%M:%S", time.gmtime(rest))
    return f"{days} d {clock}" if days else clock
