"""What the user wrote, with the place of every word: YAML and JSON files, overrides, flags, dicts."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from ..extras.errors import UserError
from ..extras.registry import did_you_mean
from .yamltext import Scalar, YamlError, read_entries, read_word


YAML_SUFFIXES = (".yaml", ".yml")
SUFFIXES = (*YAML_SUFFIXES, ".json")
OVERRIDE = re.compile(r"[A-Za-z_][\w.\-]*=", re.ASCII)


class Given(NamedTuple):
    """One key as it was written, and where."""

    key: str
    raw: Any
    place: str
    rank: int = 0
    """What wins when an old and a new name of the same key are given: 0 in a file, 1 on the command line."""


def read_given(args: Mapping[str, Any] | Sequence[str]) -> dict[str, Given]:
    """Read a dict, or a command line `[file] key=value --flag value ...`; later words win over earlier ones."""
    if isinstance(args, Mapping):
        return {str(key): Given(str(key), value, "argument") for key, value in args.items()}

    merged: dict[str, Given] = {}
    for given in _read_words(list(args)):
        if "." in given.key:
            _merge_dotted(merged, given)
        else:
            merged[given.key] = given
    return merged


def read_file(path: Path) -> list[Given]:
    """Read the top level of a YAML or JSON file; a file that cannot be read is a UserError with its line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        siblings = [item.name for item in path.parent.glob("*") if item.suffix in SUFFIXES]
        raise UserError(f"There is no file {str(path)!r}.{did_you_mean(path.name, siblings)}") from None
    except IsADirectoryError:
        raise UserError(f"{str(path)!r} is a folder; name a .yaml, .yml or .json file in it.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the file is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read: {error.strerror}.") from None

    return _read_json(path, text) if path.suffix == ".json" else _read_yaml(path, text)


def _read_yaml(path: Path, text: str) -> list[Given]:
    try:
        return [Given(key, raw, f"{path}:{line}") for key, raw, line in read_entries(text)]
    except YamlError as error:
        raise UserError(f"{path}:{error.line}: not a valid configuration: {error}.") from None


def _read_json(path: Path, text: str) -> list[Given]:
    repeated: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in items]
        repeated.extend(name for name in names if names.count(name) > 1)
        return dict(items)

    try:
        values: Any = json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno}).") from None
    except RecursionError:
        raise UserError(f"{path}:1: not valid JSON: it is nested too deeply.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}:1: a JSON configuration must be one object of keys and values.")
    lines = _json_lines(text)
    if repeated:
        raise UserError(f"{path}:{lines.get(repeated[0], 1)}: the key {repeated[0]!r} stands there twice.")
    return [Given(key, value, f"{path}:{lines[key]}") for key, value in cast("dict[str, Any]", values).items()]


def _json_lines(text: str) -> dict[str, int]:
    """Find the line of every top-level key of valid JSON: a string at depth one that a colon follows."""
    lines: dict[str, int] = {}
    depth, line, position = 0, 1, 0
    for token in re.finditer(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}\[\]]', text):
        line += text.count("\n", position, token.start())
        position = token.start()
        if token.group(1) is None:
            depth += 1 if token.group() in "{[" else -1
        elif depth == 1 and token.group(2) is not None:
            lines[json.loads(token.group(1), strict=False)] = line
    return lines


def _read_words(words: list[str]) -> Iterator[Given]:
    files: list[str] = []
    while words:
        word = words.pop(0)
        if word.startswith("--") and len(word) > 2:
            yield _read_flag(word[2:], words)
        elif OVERRIDE.match(word):
            key, _, text = word.partition("=")
            yield Given(_normal(key), read_word(text), "command line", 1)
        elif word.lower().endswith(SUFFIXES):
            files.append(word)
            if len(files) > 1:
                raise UserError(f"Two configuration files are named, {files[0]!r} and {word!r}; give one.")
            yield from read_file(Path(word))
        else:
            raise UserError(
                f"{word!r} was not understood: write a .yaml, .yml or .json file, then key=value or --key value."
            )


def _read_flag(body: str, words: list[str]) -> Given:
    """Read `--key=value`, `--key value`, `--key a b` (a list), `--key` (true) or `--no_key` (false)."""
    key, separator, text = body.partition("=")
    place = f"--{key}"
    if separator:
        return Given(_normal(key), read_word(text), place, 1)

    values: list[str] = []
    while words and not words[0].startswith("--") and not (values and _starts_something(words[0])):
        values.append(words.pop(0))
    if len(values) > 1:
        return Given(_normal(key), [read_word(value) for value in values], place, 1)
    if values:
        return Given(_normal(key), read_word(values[0]), place, 1)
    if _normal(key).startswith("no_") and _normal(key) != "no_cuda":
        return Given(_normal(key).removeprefix("no_"), Scalar("false", False), place, 1)
    return Given(_normal(key), Scalar("true", True), place, 1)


def _starts_something(word: str) -> bool:
    return OVERRIDE.match(word) is not None or word.lower().endswith(SUFFIXES)


def _normal(key: str) -> str:
    return key.replace("-", "_")


def _merge_dotted(merged: dict[str, Given], given: Given) -> None:
    """Put `fsdp_config.version=2` into the mapping that stands there, or start one."""
    key, *path = given.key.split(".")
    before = merged.get(key)
    root: Any = before.raw if before else {}
    if isinstance(root, Scalar) and root.value is None:
        root = {}
    if not isinstance(root, dict) or not all(path):
        raise UserError(f"{given.place}: {given.key!r} reaches into {key!r}, which is not a mapping here.")

    copy: dict[str, Any] = {**root}
    level = copy
    for name in path[:-1]:
        inner = level.get(name)
        level[name] = {**inner} if isinstance(inner, dict) else {}
        level = level[name]
    level[path[-1]] = given.raw.value if isinstance(given.raw, Scalar) else given.raw
    merged[key] = Given(key, copy, f"{before.place} and {given.place}" if before else given.place, given.rank)
