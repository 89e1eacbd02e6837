"""The commands about the configuration itself: `config` prints it resolved, `schema` describes it for editors."""

import json
import sys
from collections.abc import Sequence

from ..extras.errors import UserError
from ..extras.registry import did_you_mean
from .json_schema import build_schema
from .parser import load_run_config
from .schema import COMMAND_CLASSES


def show_config(args: Sequence[str]) -> None:
    """Print the resolved configuration: `config [command] run.yaml key=value`."""
    command, rest = _command_of(args)
    sys.stdout.write(load_run_config(rest, command).to_yaml())


def show_schema(args: Sequence[str] = ()) -> None:
    """Print the JSON schema of a command's configuration: `schema [command]`."""
    command, rest = _command_of(args)
    if rest:
        raise UserError(f"`schema` does not know {rest[0]!r}.{did_you_mean(rest[0], COMMAND_CLASSES)}")
    sys.stdout.write(json.dumps(build_schema(command), indent=2, ensure_ascii=False) + "\n")


def _command_of(args: Sequence[str]) -> tuple[str, list[str]]:
    words = list(args)
    return (words[0], words[1:]) if words and words[0] in COMMAND_CLASSES else ("train", words)
