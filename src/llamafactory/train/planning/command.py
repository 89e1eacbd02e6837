"""The command `plan run.yaml`: its words, and what it prints."""

import json
import sys
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...extras.errors import UserError
from ...hparams.parser import load_run_config


if TYPE_CHECKING:
    from .figures import Plan

USAGE = """\
usage: llamafactory-cli plan [run.yaml] [key=value ...] [--key value ...] [options]

Tells what a run will need before it starts: parameters, memory by part, time, whether it fits, and what to change when
it does not. The configuration is the one of `train`. Nothing is written to output_dir, which may be missing.

  --no-probe   estimate only: no weights are read, so a model that does not fit this machine can be planned too;
               without it, one step is run to tell the time (where the run fits)
  --json       print one JSON object; docs/plan.md describes it
"""
DEFAULTS = ("output_dir=saves", "do_train=true")  # nothing is written there; later words win


def run_plan_command(args: Sequence[str] | None = None) -> None:
    """Run `plan` with the words that follow it."""
    words = list(sys.argv[1:] if args is None else args)
    if not words or {"--help", "-h"}.intersection(words):
        sys.stdout.write(USAGE)
        return
    options, rest = read_options(words)
    words = [*DEFAULTS, *rest]
    load_run_config(words, "train")  # mistakes are told before anything heavy is imported

    from ...extras.garbage import importing

    with importing():
        from .making import make_plan
        from .show import show_plan

    plan = make_plan(words, with_probe=not options.no_probe)
    sys.stdout.write(to_json(plan) if options.json else show_plan(plan))


def read_options(words: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Take this command's own options out of the words; the rest belongs to the configuration."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-probe", action="store_true")
    try:
        return parser.parse_known_args(list(words))
    except ArgumentError as error:
        raise UserError(f"`plan`: {error}; see `llamafactory-cli plan --help`.") from None


def to_json(plan: "Plan") -> str:
    """Write one object."""
    values: dict[str, Any] = plan.to_dict()
    return json.dumps(values, ensure_ascii=False, indent=2) + "\n"
