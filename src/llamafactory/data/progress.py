"""How far a long pass over rows is, on stderr; nothing where stderr is no terminal."""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar


B = TypeVar("B", bound=Sized)


def counted(batches: Iterable[B], title: str) -> Iterator[B]:
    """Yield batches and show the rows that have gone by; how many will come is not known."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,} rows"))
    shows = console.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not shows) as progress:
        task = progress.add_task(title, total=None)
        for batch in batches:
            progress.advance(task, len(batch))
            yield batch
