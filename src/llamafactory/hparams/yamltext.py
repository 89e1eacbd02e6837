"""YAML that keeps what was written: every plain scalar with its text, every top-level key with its line."""

import re
from typing import Any, NamedTuple

import yaml


MAX_NODES = 100_000
LIST_TAG = "tag:yaml.org,2002:seq"


class Scalar(NamedTuple):
    """An unquoted word: what was written, and what YAML takes it for."""

    text: str
    value: Any


class Entry(NamedTuple):
    """One top-level `key: value`."""

    key: str
    raw: Any
    line: int


class YamlError(ValueError):
    """The text is not YAML that a configuration can be read from."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class ConfigLoader(yaml.SafeLoader):
    """Plain data only. Unlike YAML 1.1, `1e-4` is a number; dates, octals and 1:30 stay text."""


_loader_class: Any = ConfigLoader  # PyYAML's stubs leave these methods untyped
_loader_class.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"(?i:true|false|yes|no|on|off)", list("tTfFyYnNoO")),
    ("int", r"[-+]?(?:0x[0-9a-fA-F]+|(?:0|[1-9][0-9_]*))", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
        r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?i:inf))|\.(?i:nan)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    _loader_class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read_entries(text: str) -> list[Entry]:
    """Read the top level of a YAML document; duplicate keys anywhere are an error."""
    try:
        return _read_root(ConfigLoader(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(str(error.problem), mark.line + 1 if mark else 1) from None
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split()), 1) from None
    except RecursionError:
        raise YamlError("it is nested too deeply", 1) from None


def read_word(text: str) -> Scalar:
    """Read one word of a command line as YAML would."""
    loader: Any = ConfigLoader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))
        return Scalar(text, loader.construct_object(yaml.ScalarNode(tag, text)))
    finally:
        loader.dispose()


def load_flow(text: str) -> Any:
    """Read `[a, b]` or `{a: 1}`; anything else is returned as the text it is."""
    try:
        return _loader_class(text).get_single_data()
    except (yaml.YAMLError, RecursionError):
        return text


def _read_root(loader: Any) -> list[Entry]:
    root = loader.get_single_node()
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise YamlError("the file must consist of `key: value` lines", root.start_mark.line + 1)
    _check_nodes(root)
    loader.flatten_mapping(root)
    return [_entry(loader, key, value) for key, value in root.value]


def _entry(loader: Any, key: yaml.Node, value: yaml.Node) -> Entry:
    if not isinstance(key, yaml.ScalarNode):
        raise YamlError("a key must be a word", key.start_mark.line + 1)
    return Entry(str(key.value), _construct(loader, value), key.start_mark.line + 1)


def _construct(loader: Any, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode) and node.style is None:
        return Scalar(node.value, loader.construct_object(node))
    if isinstance(node, yaml.SequenceNode) and node.tag == LIST_TAG:
        return [_construct(loader, item) for item in node.value]
    return loader.construct_object(node, deep=True)


def _check_nodes(root: yaml.Node) -> None:
    """Refuse duplicate keys at any depth, and aliases that blow a small file up."""
    todo, num_nodes = [root], 0
    while todo:
        node = todo.pop()
        num_nodes += 1
        if num_nodes > MAX_NODES:
            raise YamlError("its aliases repeat each other too often", root.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            todo.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            _refuse_duplicates(node)
            todo.extend(value for _, value in node.value)


def _refuse_duplicates(node: yaml.MappingNode) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        if key.value in seen:
            raise YamlError(f"the key {key.value!r} already stands in line {seen[key.value]}", line)
        seen[key.value] = line
