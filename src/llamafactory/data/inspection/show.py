"""How checks, rows and figures look in a terminal, and in a file or a pipe."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from .check import CheckResult
from .figures import DataFigures, DatasetFigures, RunFigures
from .findings import MAX_PLACES, Finding
from .preview import PreviewRow, Segment


if TYPE_CHECKING:
    from rich.console import Console

COLOURS = {"error": "bold red", "warning": "yellow"}
LINE_END = "\u21b5\n"  # a visible mark in front of every line break
BAR_WIDTH = 40
HEADS = ("dataset", "rows", "kept", "cut", "dropped", "tokens", "learned", "p50", "p95", "p99", "max")


def show_check(result: CheckResult, console: "Console") -> None:
    """Print the findings, errors first."""
    for finding in result.findings:
        _show_finding(finding, console)
    num_rows = sum(dataset.num_read for dataset in result.datasets)
    verdict = f"{_many(result.num_errors, 'error')}, {_many(result.num_warnings, 'warning')}"
    colour = COLOURS["error"] if result.num_errors else COLOURS["warning"] if result.num_warnings else "green"
    datasets = _many(len(result.datasets), "dataset")
    console.print(Text().append(verdict, colour).append(f" in {_many(num_rows, 'row')} of {datasets}"))


def show_row(row: PreviewRow, console: "Console", with_ids: bool) -> None:
    """Print a row, one segment below the other, with the number of each segment's first token."""
    is_plain = not console.is_terminal or console.no_color
    head = f"{row.side} {row.dataset}: {row.where}: "
    if row.dropped:
        console.print(Text().append(head, "bold").append(f"dropped: {row.dropped}\n", COLOURS["warning"]))
        return
    cut = ", cut" if row.is_truncated else ""
    counts = f"{row.num_tokens} tokens, {row.num_supervised} learned{cut}"
    console.print(Text().append(head, "bold").append(counts))
    width = max((len(segment.role) for segment in row.segments), default=0)
    for segment in row.segments:
        lead = f"{segment.start:>6}  {segment.role:<{width}}  "
        console.print(Text().append(lead, "dim").append_text(_indented(_segment_text(segment, is_plain), len(lead))))
        if with_ids:
            _show_numbers("ids", row.input_ids[segment.start : segment.end], len(lead), console)
            if row.answer is None:
                _show_numbers("labels", row.labels[segment.start : segment.end], len(lead), console)
    for name, text in row.others.items():
        console.print(Text().append(f"  {name}: ", "dim").append(text))
    if row.answer is not None:
        console.print(Text().append("  compared with: ", "dim").append(row.answer))
        if with_ids:
            _show_numbers("labels", row.labels, len("  compared with: "), console)
    console.print()


def show_figures(figures: DataFigures, cutoff_len: int, console: "Console") -> None:
    """Print tables, a histogram and what the run makes of the rows."""
    for side in ("train", "eval"):
        own = [figure for figure in figures.datasets if figure.side == side]
        rows = [*own, *(figure for figure in figures.together if figure.side == side)]
        if not rows:
            continue
        console.print(Text(f"{side}: lengths in tokens, cut at {cutoff_len}", "bold"))
        for line in _table([HEADS, *(_cells(figure) for figure in rows)]):
            console.print(line)
        for figure in own:
            for reason, count in figure.dropped.items():
                console.print(
                    f"  dropped of {figure.name}: {count} x {reason} (first: {figure.first_dropped[reason]})"
                )
        console.print()
        _show_histogram(rows[-1], console)
    if figures.run is not None:
        _show_run(figures.run, cutoff_len, console)


def _show_finding(finding: Finding, console: "Console") -> None:
    kind = finding.kind
    text = Text().append(f"{kind.severity.upper():<8}", COLOURS[kind.severity])
    count = f" ({finding.count})" if finding.places else ""
    subject = f": {finding.subject}" if finding.subject else ""
    text.append(f"{finding.code:<17}", "bold").append(f"{kind.title}{subject}{count}")
    console.print(text)
    console.print(Text(f"         {kind.advice}", "dim"))
    for place in finding.places:
        note = f": {place.note}" if place.note else ""
        console.print(f"           {place.side} {place.dataset}: {place.where}{note}")
    if finding.count > MAX_PLACES:
        console.print(f"           and {finding.count - MAX_PLACES} more")


def _show_numbers(name: str, numbers: Sequence[int], width: int, console: "Console") -> None:
    listed = " ".join(str(number) for number in numbers)
    console.print(Text(f"{name:>{width - 2}}  {listed}", "dim"))


def _segment_text(segment: Segment, is_plain: bool) -> Text:
    text = Text()
    for stretch in segment.stretches:
        colour = "magenta" if stretch.is_control else "green" if segment.is_learned else ""
        text.append(stretch.text, f"{colour} bold" if segment.is_learned else colour)
    shown = Text("[[").append_text(text).append("]]") if is_plain and segment.is_learned else text
    return shown if segment.weight == 1 else shown.append(f" x {segment.weight:g}", "bold yellow")


def _indented(text: Text, width: int) -> Text:
    """Put the lines below each other, with a visible mark where one ends."""
    lines = text.split("\n", include_separator=False, allow_blank=True)
    indented = Text()
    for index, line in enumerate(lines):
        if index:
            indented.append(LINE_END, "dim").append(" " * width if index < len(lines) - 1 or line.plain else "")
        indented.append_text(line)
    indented.rstrip()
    return indented


def _cells(figure: DatasetFigures) -> tuple[str, ...]:
    counts = (figure.num_read, figure.num_kept, figure.num_truncated, figure.num_dropped, figure.num_tokens)
    lengths = figure.lengths
    levels = (lengths.p50, lengths.p95, lengths.p99, lengths.max)
    share = f"{figure.supervised_share:.1%}"
    return (figure.name, *(f"{count:,}" for count in counts), share, *(f"{level:,}" for level in levels))


def _table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for name, *numbers in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=True)]
        yield f"  {name:<{widths[0]}}  " + "  ".join(cells)


def _show_histogram(figure: DatasetFigures, console: "Console") -> None:
    most = max((bar.num_rows for bar in figure.histogram), default=0)
    width = max((len(str(bar.end)) for bar in figure.histogram), default=0)
    for bar in figure.histogram:
        blocks = "#" * -(-bar.num_rows * BAR_WIDTH // most)
        console.print(f"  {bar.start:>{width}} to {bar.end:>{width}}  {blocks:<{BAR_WIDTH}}  {bar.num_rows:,}")
    console.print()


def _show_run(run: RunFigures, cutoff_len: int, console: "Console") -> None:
    batch = f"{run.batch_size} rows"
    if run.max_batch_tokens is not None:
        batch = f"{run.max_batch_tokens:,} tokens"
    lines = [
        ("rows", f"{run.num_rows:,} with {run.num_tokens:,} tokens in an epoch"),
        (
            "steps",
            f"{run.steps_per_epoch:,} an epoch, {run.num_steps:,} in all ({run.num_epochs:g} epochs; "
            f"{batch} x {run.gradient_accumulation_steps} accumulated x {_many(run.num_ranks, 'rank')})",
        ),
        ("padding", f"{run.padding_share:.1%} of the places in batches of {batch}"),
    ]
    if run.batch_fill is not None:
        lines.append(("batches", f"{run.rows_per_batch:g} rows on average, {run.batch_fill:.1%} of {batch} filled"))
    if run.num_packed_rows is not None:
        used = "used" if run.packing else "not used; packing: true packs"
        share = f"{run.packing_efficiency:.1%} of them tokens ({used})"
        lines.append(("packing", f"{run.num_packed_rows:,} rows of {cutoff_len}, {share}"))
    console.print(Text("run", "bold"))
    for name, text in lines:
        console.print(f"  {name:<8} {text}")


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
