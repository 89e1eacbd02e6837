"""The terminal: what is typed and what is printed, with a real model behind it."""

import io
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llamafactory.chat import ChatModel
from llamafactory.chat.requests import ChatRequest, StreamChunk, generation_options
from llamafactory.chat.terminal import DIM, PLAIN, WELCOME, talk
from llamafactory.data.formatter import split_calls
from llamafactory.data.template import TEMPLATES
from llamafactory.hparams import GeneratingArguments


@pytest.fixture(scope="module")
def model(tiny_llama_dir: Path) -> ChatModel:
    return ChatModel({"model_name_or_path": str(tiny_llama_dir), "max_new_tokens": 8, "do_sample": False})


class Screen(io.StringIO):
    """An output that presses Ctrl-C after a number of writes."""

    def __init__(self, interrupt_after: int) -> None:
        super().__init__()
        self.left = interrupt_after

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_it_answers_until_the_input_ends(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "Count.", "")
    output = io.StringIO()

    talk(model, output)

    expected = model.chat([{"role": "user", "content": "Count."}])[0].response_text
    assert output.getvalue() == f"{WELCOME}\nAssistant: {expected}\n\n"


def test_exit_leaves_and_clear_forgets(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "Count.", "Again.", "clear", "Count.", "exit", "never read")
    output = io.StringIO()

    talk(model, output)

    lines = output.getvalue().split("Assistant: ")
    assert lines[1].strip() == lines[3].strip()  # the same answer after `clear`
    assert "A new conversation." in output.getvalue()
    assert sys.stdin.read() == "never read\n"


def test_the_conversation_so_far_is_part_of_the_prompt(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "Count.", "Again.")
    output = io.StringIO()

    talk(model, output)

    messages = [{"role": "user", "content": "Count."}]
    messages.append({"role": "assistant", "content": model.chat(messages)[0].response_text})
    messages.append({"role": "user", "content": "Again."})
    assert output.getvalue().endswith(f"Assistant: {model.chat(messages)[0].response_text}\n\n")


def test_ctrl_c_stops_the_answer_not_the_program(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "Count.", "exit")
    output = Screen(interrupt_after=4)

    talk(model, output)

    assert output.getvalue().endswith("[stopped]\n")


class Keyboard(io.StringIO):
    """Lines that are typed; ^C stands for the key."""

    def readline(self, size: int | None = -1, /) -> str:
        line = super().readline(-1 if size is None else size)
        if line == "^C\n":
            raise KeyboardInterrupt
        return line


def test_ctrl_c_twice_at_the_prompt_leaves(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard("^C\n^C\nnever read\n"))
    output = io.StringIO()

    talk(model, output)

    assert output.getvalue() == f"{WELCOME}\n\nCtrl-C once more leaves, and so does /exit.\n\n"
    assert sys.stdin.read() == "never read\n"


def test_one_ctrl_c_at_the_prompt_keeps_the_conversation(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard("^C\nCount.\n^C\nexit\nnever read\n"))
    output = io.StringIO()

    talk(model, output)

    answer = model.chat([{"role": "user", "content": "Count."}])[0].response_text
    assert f"Assistant: {answer}\n" in output.getvalue()
    assert output.getvalue().count("Ctrl-C once more") == 2
    assert sys.stdin.read() == "never read\n"


def test_a_turn_that_cannot_be_answered_leaves_no_trace(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "one " * 600, "Count.")
    output = io.StringIO()

    talk(model, output)

    assert "no room" in output.getvalue()
    assert output.getvalue().endswith(model.chat([{"role": "user", "content": "Count."}])[0].response_text + "\n\n")


SAID = WELCOME + "\n"
CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "CET"}}\n</tool_call>'


class Scripted:
    """A model that gives the texts of a script, with a real template."""

    def __init__(self, tokenizer: Any, *texts: str) -> None:
        self.texts = list(texts)
        self.asked: list[Any] = []
        self.engine: Any = SimpleEngine(tokenizer, TEMPLATES.get("qwen3"))

    def chat_request(self, messages: Any, system: str | None, tools: str | None, **options: Any) -> ChatRequest:
        made = generation_options(GeneratingArguments(), options)
        return ChatRequest(messages=list(messages), system=system, tools=tools, options=made)

    def stream_chunks(self, request: ChatRequest) -> Iterator[StreamChunk]:
        self.asked.append(request)
        text = self.texts.pop(0)
        for char in text:
            yield StreamChunk(char, 1, 1)
        yield StreamChunk("", 1, 1, "stop")


class SimpleEngine(NamedTuple):
    tokenizer: Any
    template: Any

    def encode_prompt(self, request: ChatRequest) -> list[int]:
        return self.template.encode_prompt(self.tokenizer, request.messages, request.system, request.tools)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def talk_with(model: Any, monkeypatch: pytest.MonkeyPatch, *lines: str, output: io.StringIO | None = None) -> str:
    typed(monkeypatch, *lines)
    output = output or io.StringIO()
    talk(model, output)
    return output.getvalue().removeprefix(SAID)


def test_messages_of_several_lines(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scripted(tiny_tokenizer, "a", "b")

    talk_with(model, monkeypatch, "one \\", "two", '"""', "  three", "", "four", '"""')

    assert [request.messages[-1].content for request in model.asked] == ["one \ntwo", "  three\n\nfour"]


def test_the_system_message_and_regenerate(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scripted(tiny_tokenizer, "a", "b", "c")

    screen = talk_with(
        model, monkeypatch, "/regenerate", "/system Be brief.", "Hi.", "/regenerate", "More.", "/system"
    )

    assert "There is nothing to answer yet." in screen
    assert screen.count("System: Be brief.") == 2
    assert {request.system for request in model.asked} == {"Be brief."}
    assert [[turn.content for turn in request.messages] for request in model.asked] == [
        ["Hi."],
        ["Hi."],
        ["Hi.", "b", "More."],
    ]


def test_thoughts_are_dim_on_a_terminal_only(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "<think>\nhm\n</think>\n\nYes."

    plain = talk_with(Scripted(tiny_tokenizer, text), monkeypatch, "Hi.")
    dim = talk_with(Scripted(tiny_tokenizer, text), monkeypatch, "Hi.", output=Terminal())

    assert plain == "Assistant: hm\n\nYes.\n\n"
    assert dim.replace(f"{PLAIN}{DIM}", "") == f"Assistant: {DIM}hm{PLAIN}\n\nYes.\n\n"


def test_tools_are_called_and_answered_by_hand(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([{"name": "clock", "parameters": {}}]))
    model = Scripted(tiny_tokenizer, CALL, "Noon.", CALL)

    screen = talk_with(model, monkeypatch, f"/tools {file}", "When?", "12:00", "Again?")

    assert "Tools: clock" in screen
    assert '[clock {"zone": "CET"}]' in screen
    assert [turn.role for turn in model.asked[1].messages] == ["user", "function", "observation"]
    assert model.asked[1].messages[-1].content == "12:00"
    assert [turn.content for turn in model.asked[2].messages][-2:] == ["Noon.", "Again?"]


def test_a_saved_conversation_is_a_row_of_training_data(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from llamafactory.data.converter import convert_openai, detect_layout
    from llamafactory.data.parser import DatasetAttr

    tools, saved = tmp_path / "tools.json", tmp_path / "talk.jsonl"
    tools.write_text(json.dumps([{"name": "clock", "parameters": {}}]))
    model = Scripted(tiny_tokenizer, f"Let me see.\n{CALL}", "Noon.")

    lines = [
        f"/tools {tools}",
        "/system Be brief.",
        f"/save {saved}",
        "When?",
        "12:00",
        f"/save {saved}",
        f"/save {saved}",
    ]
    screen = talk_with(model, monkeypatch, *lines, "/save x.txt")

    assert "There is nothing to save yet." in screen
    assert "needs the name of a .jsonl file" in screen
    first, second = [json.loads(line) for line in saved.read_text().splitlines()]
    assert first == second
    assert first["messages"][2]["tool_calls"][0]["id"] == first["messages"][3]["tool_call_id"]
    attr = detect_layout(first, DatasetAttr("file", str(saved)))
    conversation = convert_openai(first, attr)
    assert conversation.system == "Be brief."
    assert [turn.role for turn in conversation.messages] == ["user", "function", "observation", "assistant"]
    asked = model.asked[1].messages
    assert split_calls(conversation.messages[1].content) == split_calls(asked[1].content)
    assert [conversation.messages[0], conversation.messages[2]] == [asked[0], asked[2]]
    assert json.loads(conversation.tools)


def test_unknown_commands_and_paths(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scripted(tiny_tokenizer, "a")

    screen = talk_with(
        model, monkeypatch, "/sytem x", "/tools /nowhere.json", "/help", "/etc/passwd is what?", "/exit", "x"
    )

    assert "There is no command /sytem. Did you mean 'system'?" in screen
    assert "'/nowhere.json' cannot be read" in screen
    assert "/regenerate" in screen
    assert [request.messages[-1].content for request in model.asked] == ["/etc/passwd is what?"]
