"""The checked configuration of one run, and where every value in it came from."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from ..extras.version import VERSION
from .kinds import Arguments
from .schema import Param, list_params
from .yamltext import read_word


A = TypeVar("A", bound=Arguments)

SECRET_NAMES = re.compile(r"(token|secret|password|passwd|api_?key|credential)s?$", re.IGNORECASE)
BARE_WORD = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./\-]*")
NEEDS_ESCAPE = re.compile("[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class RunConfig:
    """Argument objects of one command with the source of each value."""

    command: str
    arguments: tuple[Arguments, ...]
    """In the order of the command's documented tuple."""
    sources: Mapping[str, str]
    """key -> "run.yaml:3", "--key", "command line", "argument", "default" or "derived"."""
    notices: tuple[str, ...] = ()
    """What the user should hear once: translated keys, keys without effect."""

    def get(self, cls: type[A]) -> A:
        """Return the argument object of one class."""
        return next(item for item in self.arguments if isinstance(item, cls))

    @property
    def values(self) -> dict[str, Any]:
        """Every value that is no secret; secrets inside mappings are left out too."""
        return {
            name: _without_secrets(getattr(self._holder(name), name))
            for name, param in list_params(self.command).items()
            if not param.is_secret
        }

    def to_yaml(self) -> str:
        """Write the configuration as YAML that repeats the run; every line says where its value came from."""
        command = f"llamafactory-cli {self.command}"
        head = f"# Resolved by llamafactory {VERSION}. `{command} <this file>` repeats the run.\n"
        return head + "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        values = self.values
        params = [param for param in list_params(self.command).values() if param.name in values]
        own = [param for param in params if self.sources[param.name] not in ("default", "derived")]
        derived = [param for param in params if self.sources[param.name] == "derived"]
        yield "\n# Set for this run."
        for param in own:
            yield f"{param.name}: {write_value(values[param.name])}  # {self.sources[param.name]}"
        yield "\n# Derived from the values above."
        for param in derived:
            yield f"# {param.name}: {write_value(values[param.name])}"
        yield "\n# Defaults."
        yield from _grouped([param for param in params if self.sources[param.name] == "default"], values)

    def _holder(self, name: str) -> Arguments:
        return next(item for item in self.arguments if hasattr(item, name))


def write_value(value: Any) -> str:
    """Write a value on one line that YAML 1.1, YAML 1.2 and our reader take for the same."""
    if isinstance(value, str) and _is_bare(value):
        return value
    if isinstance(value, tuple):
        value = list(cast("tuple[Any, ...]", value))
        joined = ",".join(str(item) for item in value)
        if value and all(isinstance(item, str) and BARE_WORD.fullmatch(item) for item in value) and _is_text(joined):
            return joined
    text = json.dumps(value, ensure_ascii=False)
    return NEEDS_ESCAPE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _is_bare(text: str) -> bool:
    return BARE_WORD.fullmatch(text) is not None and _is_text(text)


def _is_text(text: str) -> bool:
    """Tell whether YAML takes the unquoted word for text."""
    return isinstance(read_word(text).value, str)


def _grouped(params: list[Param], values: Mapping[str, Any]) -> Iterator[str]:
    title = ""
    for param in params:
        if param.title != title:
            title = param.title
            yield f"\n# {title}"
        yield f"{param.name}: {write_value(values[param.name])}"


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {key: _without_secrets(item) for key, item in items if not SECRET_NAMES.search(str(key))}
    if isinstance(value, list):
        return [_without_secrets(item) for item in cast("list[Any]", value)]
    return value
