"""Eight dialogues, put into every template with a toy tokenizer: what the golden files hold.

In a text of the golden files the supervised parts stand between double brackets.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from toy_tokenizer import make_toy_tokenizer

from llamafactory.data import TEMPLATES, get_template_and_fix_tokenizer
from llamafactory.data.conversation import RowDropped, as_conversation
from llamafactory.hparams import DataArguments


FOLDER = Path(__file__).parent / "golden"
HASHES, TEXTS = FOLDER / "hashes.json", FOLDER / "texts.json"
SHOWN = ["chatml", "llama2", "llama3", "mistral", "gemma", "qwen", "qwen3", "qwen3_5", "glm4_7", "gpt_oss", "gemma4"]
TODAY = re.compile(r"(?<=Today Date: )\d\d \w{3} \d{4}")  # the one thing that is different every day

TOOLS = [
    {
        "name": "get_weather",
        "description": "Look up the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "City name"},
                "unit": {"type": "string", "enum": ["c", "f"], "description": "Unit"},
            },
            "required": ["city"],
        },
    },
    {"name": "get_time", "description": "Tell the time.", "parameters": {"type": "object", "properties": {}}},
]
PARIS = {"name": "get_weather", "arguments": {"city": "Paris", "unit": "c"}}
TIME = {"name": "get_time", "arguments": {}}


class Dialogue(NamedTuple):
    """Turns as role and text, and the settings they are put into a template with."""

    turns: list[tuple[str, str]]
    system: str = ""
    tools: str = ""
    enable_thinking: bool = True


QUESTION, ANSWER = ("user", "Who are you?"), ("assistant", "A toy.")
THOUGHT = ("assistant", "<think>\nI am made of wood.\n</think>\n\nA toy.")
DIALOGUES = {
    "no_system": Dialogue([QUESTION, ANSWER]),
    "system": Dialogue([QUESTION, ANSWER], system="Be brief."),
    "multi_turn": Dialogue([QUESTION, ANSWER, ("user", "Really?"), ("assistant", "Yes, né?\n")]),
    "tools": Dialogue(
        [("user", "Weather?"), ("function", json.dumps(PARIS)), ("observation", '{"sky": "blue"}'), ANSWER],
        tools=json.dumps(TOOLS),
    ),
    "parallel_tools": Dialogue(
        [
            ("user", "Weather and time?"),
            ("function", json.dumps([PARIS, TIME])),
            ("observation", '{"sky": "blue"}'),
            ("observation", '"12:00"'),
            ANSWER,
        ],
        system="Be brief.",
        tools=json.dumps(TOOLS),
    ),
    "thinking_on": Dialogue([QUESTION, THOUGHT, ("user", "Really?"), THOUGHT]),
    "thinking_off": Dialogue([QUESTION, THOUGHT, ("user", "Really?"), THOUGHT], enable_thinking=False),
    "open_prompt": Dialogue([QUESTION, ANSWER, ("user", "Really?")], enable_thinking=False),
}


class Golden(NamedTuple):
    """One dialogue in one template."""

    text: str
    hash: str


def golden_cases(name: str) -> dict[str, Golden]:
    """Put every dialogue into a template."""
    tokenizer = make_toy_tokenizer()
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name))
    return {
        key: golden_case(template.with_thinking(dialogue.enable_thinking, False), tokenizer, dialogue)
        for key, dialogue in DIALOGUES.items()
    }


def golden_case(template: Any, tokenizer: Any, dialogue: Dialogue) -> Golden:
    """Put one dialogue into a template; a template that refuses it says why."""
    messages = [{"role": role, "content": text} for role, text in dialogue.turns]
    conversation = as_conversation(messages, dialogue.system, dialogue.tools)
    (encoded,) = template.encode_conversations(tokenizer, [conversation])
    if isinstance(encoded, RowDropped):
        return Golden(f"refused: {encoded}", f"refused: {encoded}")

    spans = [(ids, is_learned) for turn in encoded.turns for ids, is_learned in ((turn.source, 0), (turn.target, 1))]
    spans.append((encoded.closing, 0))
    text = "".join(mark(tokenizer.decode(ids), is_learned) for ids, is_learned in spans if ids)
    facts = TODAY.sub("<today>", text) if TODAY.search(text) else json.dumps(spans)
    return Golden(TODAY.sub("<today>", text), hashlib.sha256(facts.encode()).hexdigest()[:12])


def mark(text: str, is_learned: int) -> str:
    """Put supervised text between brackets."""
    return f"[[{text}]]" if is_learned else text


def golden_files() -> Iterator[tuple[Path, str]]:
    """Yield both files with their text."""
    cases = {name: golden_cases(name) for name in sorted(TEMPLATES.names())}
    hashes = {name: {key: case.hash for key, case in rows.items()} for name, rows in cases.items()}
    texts = {name: {key: case.text for key, case in cases[name].items()} for name in SHOWN}
    yield (
        HASHES,
        "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in hashes.items()) + "\n}\n",
    )
    yield TEXTS, json.dumps(texts, indent=1, ensure_ascii=False) + "\n"
