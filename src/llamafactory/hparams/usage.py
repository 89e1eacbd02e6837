"""The --help of every command that takes a configuration: the usual keys first, the rest group by group."""

import textwrap
from collections.abc import Iterable

from ..extras.errors import UserError
from ..extras.registry import did_you_mean
from .config import write_value
from .schema import Param, list_params
from .tables import load_table
from .values import describe


INDENT = 6
WIDTH = 110


def format_help(command: str, topic: str | None = None) -> str:
    """Return the help of a command, or of one topic in it: a group, a key, or `all`."""
    params = list_params(command)
    groups = _groups(params.values())
    if topic is None:
        return _overview(command, params, groups)
    if topic == "all":
        return "\n".join(_group_text(group) for group in groups.values())
    if topic in groups:
        return _group_text(groups[topic])
    if topic.replace("-", "_") in params:
        return _param_text(params[topic.replace("-", "_")])
    hint = did_you_mean(topic, [*params, *groups])
    raise UserError(f"`{command} --help` has no topic {topic!r}.{hint} Give a key, a group, or `all`.")


def _overview(command: str, params: dict[str, Param], groups: dict[str, list[Param]]) -> str:
    table = load_table("usage.toml")
    shown = [params[name] for name in (*table["common"], *table[command]) if name in params]
    width = max(len(group) for group in groups)
    listing = "\n".join(f"  {name:<{width}}  {len(keys):>3}  {keys[0].title}" for name, keys in groups.items())
    return (
        f"usage: llamafactory-cli {command} [run.yaml] [key=value ...] [--key value ...]\n\n"
        f"The keys that most configurations set:\n\n{_rows(shown)}\n\n"
        f"All keys by group, with their number:\n\n{listing}\n\n"
        f"`{command} --help GROUP` lists a group, `{command} --help KEY` explains a key, `{command} --help all` "
        f"lists everything.\n`{command} run.yaml --print-config` shows every value and where it comes from.\n"
        f"{table['notes'].get(command, '')}"
    )


def _groups(params: Iterable[Param]) -> dict[str, list[Param]]:
    groups: dict[str, list[Param]] = {}
    for param in params:
        groups.setdefault(param.group, []).append(param)
    return groups


def _group_text(params: list[Param]) -> str:
    return f"{params[0].title}\n\n{_rows(params)}\n"


def _rows(params: list[Param]) -> str:
    return "\n".join(f"  {_head(param)}\n{_wrapped(param.help)}" for param in params)


def _param_text(param: Param) -> str:
    return f"{_head(param)}\n{_wrapped(param.help)}\n{_wrapped(f'Takes {describe(param)}. Group: {param.title}.')}\n"


def _head(param: Param) -> str:
    return f"{param.name} (required)" if param.is_required else f"{param.name}: {write_value(param.default)}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=" " * INDENT, subsequent_indent=" " * INDENT)
