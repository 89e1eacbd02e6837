"""Rows and figures of data as HTML. Every text of the data is escaped here; the page shows it as it stands."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

from ...data.inspection.preview import PreviewRow, Segment


Labels: TypeAlias = Mapping[str, str]
"""Words of the page's language: tokens, learned, cut, dropped, compared, legend_learned, legend_control, ..."""
Figures: TypeAlias = Mapping[str, Any]
"""What `data stats --json` prints."""

LINE_END = '<span class="eol">\u21b5</span>\n'
MAX_SHOWN = 20_000
"""Characters of one row that are shown; a page with a book in it helps nobody."""
COLUMNS = ("num_read", "num_kept", "num_truncated", "num_dropped", "num_tokens")


def show_rows(rows: Iterable[PreviewRow], labels: Labels) -> str:
    """Return rows one below the other, what is learned highlighted."""
    shown = [show_row(row, labels) for row in rows]
    if not shown:
        return f'<p class="empty">{escape(labels["no_rows"])}</p>'
    legend = (
        f'<div class="legend"><span class="learned">{escape(labels["legend_learned"])}</span> '
        f'<span class="control">{escape(labels["legend_control"])}</span></div>'
    )
    return f'<div class="rows">{legend}{"".join(shown)}</div>'


def show_row(row: PreviewRow, labels: Labels) -> str:
    """Return one row: where it stands, its counts, its turns, and what else belongs to it."""
    head = f"<b>{escape(row.dataset)}</b> {escape(_place(row))}"
    if row.dropped:
        reason = f"{escape(labels['dropped'])}: {escape(row.dropped)}"
        return f'<div class="row dropped"><div class="head">{head}</div><div class="reason">{reason}</div></div>'
    counts = f"{row.num_tokens:,} {escape(labels['tokens'])}, {row.num_supervised:,} {escape(labels['learned'])}"
    if row.is_truncated:
        counts += f', <span class="warn">{escape(labels["cut"])}</span>'
    turns = "".join(_turns(row.segments, labels))
    more = "".join(
        f'<div class="turn"><span class="role">{escape(name)}</span><span class="text">{_text(text)}</span></div>'
        for name, text in (*row.others.items(), *(((labels["compared"], row.answer),) if row.answer else ()))
    )
    return (
        f'<div class="row"><div class="head">{head}<span class="counts">{counts}</span></div>'
        f'<div class="turns">{turns}{more}</div></div>'
    )


def show_figures(figures: Figures, labels: Labels) -> str:
    """Return the tables, the histogram and the steps of `data stats`."""
    parts: list[str] = []
    for side in ("train", "eval"):
        own = [row for row in figures["datasets"] if row["side"] == side]
        rows = [*own, *(row for row in figures["together"] if row["side"] == side)]
        if rows:
            parts += [_dataset_table(rows, labels), *_dropped(own, labels), _histogram(rows[-1], labels)]
    if figures["run"] is not None:
        parts.append(_run_table(figures["run"], labels))
    return f'<div class="figures">{"".join(parts)}</div>'


def _place(row: PreviewRow) -> str:
    """Say where a row stands, without the folders that lead there."""
    return row.where.replace("\\", "/").rpartition("/")[2]


def _turns(segments: Sequence[Segment], labels: Labels) -> Iterable[str]:
    left = MAX_SHOWN
    for segment in segments:
        if left <= 0:
            yield f'<div class="turn"><span class="text">{escape(labels["more"])}</span></div>'
            return
        kind = "learned" if segment.is_learned else "read"
        pieces = "".join(
            f'<span class="control">{_text(stretch.text[:left])}</span>'
            if stretch.is_control
            else _text(stretch.text[:left])
            for stretch in segment.stretches
        )
        weight = f' <b class="weight">x {segment.weight:g}</b>' if segment.weight != 1 else ""
        yield (
            f'<div class="turn"><span class="role">{escape(segment.role)}</span>'
            f'<span class="text {kind}">{pieces}{weight}</span></div>'
        )
        left -= len(segment.text)


def _text(text: str) -> str:
    return escape(text).replace("\n", LINE_END)


def _dataset_table(rows: Sequence[Figures], labels: Labels) -> str:
    names = ("dataset", *COLUMNS, "supervised_share", "p50", "p95", "p99", "max")
    heads = "".join(f"<th>{escape(labels[name])}</th>" for name in names)
    body = "".join(
        "<tr>"
        + f"<td>{escape(str(row['name']))}</td>"
        + "".join(f"<td>{row[name]:,}</td>" for name in COLUMNS)
        + f"<td>{row['supervised_share']:.1%}</td>"
        + "".join(f"<td>{row['lengths'][name]:,}</td>" for name in ("p50", "p95", "p99", "max"))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _dropped(rows: Sequence[Figures], labels: Labels) -> Iterable[str]:
    for row in rows:
        for reason, count in row["dropped"].items():
            yield (
                f'<p class="warn">{escape(labels["dropped"])} ({escape(str(row["name"]))}): '
                f"{count:,} x {escape(str(reason))}</p>"
            )


def _histogram(row: Figures, labels: Labels) -> str:
    most = max((bar["num_rows"] for bar in row["histogram"]), default=0)
    bars = "".join(
        f'<div class="bar"><span>{bar["start"]:,}-{bar["end"]:,}</span>'
        f'<i style="width:{100 * bar["num_rows"] / most:.1f}%"></i><b>{bar["num_rows"]:,}</b></div>'
        for bar in row["histogram"]
    )
    return f'<div class="histogram"><h4>{escape(labels["histogram"])}</h4>{bars}</div>' if bars else ""


def _run_table(run: Figures, labels: Labels) -> str:
    rows = [
        ("run_rows", f"{run['num_rows']:,}"),
        ("run_tokens", f"{run['num_tokens']:,}"),
        ("run_steps", f"{run['num_steps']:,} ({run['steps_per_epoch']:,} x {run['num_epochs']:g})"),
        ("run_padding", f"{run['padding_share']:.1%}"),
    ]
    if run["num_packed_rows"] is not None:
        rows.append(("run_packed", f"{run['num_packed_rows']:,} ({run['packing_efficiency']:.1%})"))
    cells = "".join(f"<tr><th>{escape(labels[name])}</th><td>{escape(text)}</td></tr>" for name, text in rows)
    return f'<table class="run">{cells}</table>'
