"""The command `data check|preview|stats run.yaml`: its words, its exit code, and what it prints."""

import json
import sys
from argparse import ArgumentError, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...extras.errors import UserError
from ...extras.registry import did_you_mean
from ...hparams.parser import load_run_config


if TYPE_CHECKING:
    from rich.console import Console

    from .bench import Bench

USAGE = """\
usage: llamafactory-cli data check|preview|stats [run.yaml] [key=value ...] [--key value ...] [options]

  check      look for trouble in the data of a run; exit code 1 when there are errors
  preview    show rows as the model will see them, what is learned in green (in [[ ]] where there are no colours)
  stats      count rows, tokens, padding and steps

The configuration is the one of `train`; the model's weights are not read, and output_dir may be missing.

  --json       print one JSON object
  --rows N     preview: rows of each dataset (3)
  --offset N   preview: rows to skip in each dataset (0)
  --ids        preview: token ids and labels too
"""
DEFAULTS = ("output_dir=saves",)  # train asks for it, nothing is written to it here; later words win
CHECK_FAILED = 1
ONLY_PREVIEW = ("rows", "offset", "ids")


def run_data(args: Sequence[str] | None = None) -> None:
    """Run `data` with the words that follow it."""
    words = list(sys.argv[1:] if args is None else args)
    if not words or {"--help", "-h"}.intersection(words):
        sys.stdout.write(USAGE)
        return
    name, *rest = words
    if name not in ACTIONS:
        raise UserError(f"`data` does not know {name!r}.{did_you_mean(name, ACTIONS)}\n\n{USAGE.rstrip()}")
    options, rest = read_options(name, rest)
    config = load_run_config([*DEFAULTS, *rest], "train")

    from .bench import load_bench

    exit_code = ACTIONS[name](load_bench(config), options)
    if exit_code:
        sys.stdout.flush()
        sys.exit(exit_code)


def read_options(name: str, words: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Take this command's own options out of the words; the rest belongs to the configuration."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=_natural)
    parser.add_argument("--offset", type=_natural)
    parser.add_argument("--ids", action="store_true", default=None)
    try:
        options, rest = parser.parse_known_args(list(words))
    except ArgumentError as error:
        raise UserError(f"`data {name}`: {error}; see `llamafactory-cli data --help`.") from None
    for option in ONLY_PREVIEW:
        if name != "preview" and getattr(options, option) is not None:
            raise UserError(f"`data {name}` has no option --{option}; it belongs to `data preview`.")
    return options, rest


def run_check(bench: "Bench", options: Namespace) -> int:
    """Print what a check found."""
    from .check import check_data
    from .show import show_check

    result = check_data(bench)
    if options.json:
        print_json(result.to_dict())
    else:
        show_check(result, make_console())
    return CHECK_FAILED if result.num_errors else 0


def run_preview(bench: "Bench", options: Namespace) -> int:
    """Print rows."""
    from .preview import preview_data
    from .show import show_row

    num_rows = 3 if options.rows is None else options.rows
    rows = preview_data(bench, num_rows, options.offset or 0)
    if options.json:
        print_json({"rows": [row.to_dict(with_ids=bool(options.ids)) for row in rows]})
        return 0
    console = make_console()
    for row in rows:
        show_row(row, console, with_ids=bool(options.ids))
    return 0


def run_stats(bench: "Bench", options: Namespace) -> int:
    """Print figures; the prepared rows stay in the store, so that training finds them there."""
    from dataclasses import replace

    from ..loader import get_dataset
    from .figures import data_figures
    from .show import show_figures

    data_args = replace(bench.data_args, streaming=False, tokenized_path=None)
    module = get_dataset(
        bench.template, bench.model_args, data_args, bench.training_args, bench.stage, tokenizer=bench.tokenizer
    )
    figures = data_figures(module, data_args, bench.training_args, stage=bench.stage)
    if options.json:
        print_json(figures.to_dict())
    else:
        show_figures(figures, data_args.cutoff_len, make_console())
    return 0


def print_json(value: Mapping[str, Any]) -> None:
    """Print one object."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def make_console() -> "Console":
    """Return a console on stdout that changes nothing in what it is given."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} must be a whole number >= 0")
    return int(text)


ACTIONS: Mapping[str, Callable[["Bench", Namespace], int]] = {
    "check": run_check,
    "preview": run_preview,
    "stats": run_stats,
}
