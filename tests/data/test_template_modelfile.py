"""Ollama Modelfiles: rendered by a small reader of Go templates, they give the text the model was trained on."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from toy_tokenizer import make_toy_tokenizer

from llamafactory.data import TEMPLATES, get_template_and_fix_tokenizer
from llamafactory.extras.errors import UserError
from llamafactory.hparams import DataArguments


ACTION = re.compile(r"\{\{ (.*?) \}\}", re.S)
WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()]+')
QUESTION = {"role": "user", "content": "How are {you}?"}
ANSWER = {"role": "assistant", "content": "I am fine!"}
THOUGHTFUL = {"role": "assistant", "content": "Very.", "thinking": "Am I?"}
RESULTS = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
CHATS = [
    [QUESTION],
    [QUESTION, ANSWER, QUESTION],
    [QUESTION, ANSWER, QUESTION, ANSWER],
    [QUESTION, ANSWER, *RESULTS],
    [QUESTION, ANSWER, *RESULTS, ANSWER],
]
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda left, right: left == right,
    "ne": lambda left, right: left != right,
    "gt": lambda left, right: left > right,
    "not": lambda value: not value,
    "len": len,
    "slice": lambda items, start: items[start:],
    "and": lambda *values: next((value for value in values if not value), values[-1]),
}


class GoTemplate:
    """The part of Go's text/template that Modelfiles use: if, else if, range, variables, a few functions."""

    def __init__(self, text: str, data: dict[str, Any]) -> None:
        halves = ACTION.split(text)
        self.parts = [(bool(index % 2), half) for index, half in enumerate(halves)]
        self.data = data
        self.variables: dict[str, Any] = {"$": data}

    def render(self) -> str:
        text, place, _ = self.block(0, True)
        assert place == len(self.parts)
        return text

    def block(self, place: int, is_live: bool) -> tuple[str, int, str]:
        """Run up to the `end` or `else` of this block; return its text, the place of that word, and the word."""
        out = ""
        while place < len(self.parts):
            is_action, part = self.parts[place]
            if not is_action:
                out += part if is_live else ""
            elif part == "end" or part.startswith("else"):
                return out, place, part
            elif part.startswith("if "):
                text, place = self.branches(place, is_live)
                out += text
            elif part.startswith("range "):
                text, place = self.loop(place, is_live)
                out += text
            elif is_live:
                out += self.action(part)
            place += 1
        return out, place, ""

    def branches(self, place: int, is_live: bool) -> tuple[str, int]:
        word, out, is_open = self.parts[place][1], "", is_live
        while word != "end":
            condition = word.removeprefix("else").strip().removeprefix("if").strip()
            is_taken = is_open and (not condition or bool(self.value(condition)))
            text, place, word = self.block(place + 1, is_taken)
            out, is_open = out + text, is_open and not is_taken
        return out, place

    def loop(self, place: int, is_live: bool) -> tuple[str, int]:
        match = re.fullmatch(r"range (\$\w+), (\$\w+) := (.+)", self.parts[place][1])
        assert match
        out = ""
        _, end, _ = self.block(place + 1, False)
        for index, item in enumerate(self.value(match[3]) if is_live else []):
            self.variables |= {match[1]: index, match[2]: item}
            out += self.block(place + 1, True)[0]
        return out, end

    def action(self, part: str) -> str:
        match = re.fullmatch(r"(\$\w+) :?= (.+)", part)
        if not match:
            return str(self.value(part))
        self.variables[match[1]] = self.value(match[2])
        return ""

    def value(self, expression: str) -> Any:
        return self.call(iter([*WORD.findall(expression), ")"]))

    def call(self, words: Iterator[str]) -> Any:
        values: list[Any] = []
        for word in words:
            if word == ")":
                return values[0](*values[1:]) if callable(values[0]) else values[0]
            values.append(self.call(words) if word == "(" else self.word(word))
        raise AssertionError("a parenthesis is open")

    def word(self, word: str) -> Any:
        if word.startswith('"') or word.lstrip("-").isdigit() or word in ("true", "false"):
            return json.loads(word)
        if word in FUNCTIONS:
            return FUNCTIONS[word]
        head, *names = word.split(".")
        value = self.variables[head or "$"]
        for name in names:
            value = value.get(name, "")
        return value


def run_ollama(modelfile: str, messages: list[dict[str, str]], system: str = "") -> str:
    """Render messages as Ollama does: the system prompt is a message and a variable, thoughts stand apart."""
    template = re.search(r'TEMPLATE """(.*?)"""', modelfile, re.S)
    default = re.search(r'SYSTEM """(.*?)"""', modelfile, re.S)
    assert template
    turns = ([{"role": "system", "content": system}] if system else []) + messages
    keys = {"role": "Role", "content": "Content", "thinking": "Thinking"}
    data = [{name: turn.get(key, "") for key, name in keys.items()} for turn in turns]
    return GoTemplate(template[1], {"System": system or (default[1] if default else ""), "Messages": data}).render()


def as_rows(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Write thoughts into the answers, as data has them."""
    return [
        {**turn, "content": f"<think>{turn['thinking']}</think>{turn['content']}"} if "thinking" in turn else turn
        for turn in messages
    ]


def text_of(template: Any, tokenizer: Any, messages: list[dict[str, str]], system: str) -> str:
    pairs = template.encode_multiturn(tokenizer, as_rows(messages), system)
    return tokenizer.decode([number for pair in pairs for ids in pair for number in ids])


@pytest.mark.parametrize("name", TEMPLATES.names())
def test_a_modelfile_renders_the_same_text(name: str) -> None:
    tokenizer = make_toy_tokenizer()
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name))
    modelfile = template.get_ollama_modelfile(tokenizer)

    for chat in CHATS:
        for system in ("", "Be kind."):
            assert run_ollama(modelfile, chat, system) == text_of(template, tokenizer, chat, system)
    assert modelfile.startswith("FROM .\n")
    assert modelfile.endswith("PARAMETER num_ctx 4096\n")
    assert f"PARAMETER stop {json.dumps(tokenizer.eos_token, ensure_ascii=False)}\n" in modelfile


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5", "glm4_moe", "gpt_oss", "gemma4"])
@pytest.mark.parametrize("enable", [True, False, None])
@pytest.mark.parametrize("preserve", [True, False])
def test_thoughts_in_a_modelfile(name: str, enable: bool | None, preserve: bool) -> None:
    tokenizer = make_toy_tokenizer()
    data_args = DataArguments(template=name, enable_thinking=enable, preserve_thinking=preserve)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    modelfile = template.get_ollama_modelfile(tokenizer)

    for chat in ([QUESTION, THOUGHTFUL, QUESTION, THOUGHTFUL], [QUESTION, THOUGHTFUL, *RESULTS, ANSWER], *CHATS):
        assert run_ollama(modelfile, chat) == text_of(template, tokenizer, chat, "")


def test_the_models_own_jinja_gives_no_modelfile(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer()
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments())

    with pytest.raises(UserError, match="named template"):
        template.get_ollama_modelfile(tokenizer)
