"""HTML of the messages. Everything that comes from a form, a log or a file is escaped here, in one place."""

import html
from collections.abc import Iterable, Sequence


LINK_BREAK = "]\u200b("  # an invisible space keeps `](` from becoming a link


def escape(text: object) -> str:
    """Return text that a browser shows as it is."""
    return html.escape(str(text), quote=True)


def plain_info(text: str) -> str:
    """Return text for the line under a field: gradio escapes HTML there, and makes links and code."""
    return " ".join(text.split()).replace("](", LINK_BREAK)


def notice(text: str, kind: str = "info", items: Sequence[str] = ()) -> str:
    """Return a box with a sentence and, below it, a list. `kind` is info, good, warning or problem."""
    points = "".join(f"<li>{escape(item)}</li>" for item in items)
    listing = f"<ul>{points}</ul>" if points else ""
    role = "alert" if kind == "problem" else "status"
    return f'<div class="notice {kind}" role="{role}"><p>{escape(text)}</p>{listing}</div>'


def link(text: str, address: str) -> str:
    """Return a link that opens beside the page; an address that is none of the web stays text."""
    if not address.startswith(("https://", "http://")):
        return escape(address)
    return f'<a href="{escape(address)}" target="_blank" rel="noopener noreferrer">{escape(text)}</a>'


def cards(pairs: Iterable[tuple[str, str]]) -> str:
    """Return small figures side by side, each with its name."""
    boxes = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="cards">{boxes}</dl>'


def progress_bar(share: float | None, text: str, state: str) -> str:
    """Return a bar with a text over it; a share of None is a bar without end."""
    percent = 0 if share is None else max(0.0, min(share, 1.0)) * 100
    filled = f'<span class="filled" style="width: {percent:.1f}%"></span>'
    label = f'<span class="text">{escape(text)}</span>'
    values = f'role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent:.0f}"'
    return f'<div class="progress {escape(state)}" {values}>{filled}{label}</div>'


def log_text(text: str) -> str:
    """Return the end of a log in a box that can be scrolled."""
    return f'<pre class="log" tabindex="0">{escape(text)}</pre>'


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    top = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f'<div class="table"><table>{top}<tbody>{body}</tbody></table></div>'
