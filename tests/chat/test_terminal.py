"""The terminal: what is typed and what is printed, with a real model behind it."""

import io
import signal
import sys
from pathlib import Path

import pytest

from llamafactory.chat import ChatModel
from llamafactory.chat.terminal import WELCOME, talk


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


def test_ctrl_c_at_the_prompt_leaves(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Keyboard(io.StringIO):
        def readline(self, size: int | None = -1, /) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Keyboard())
    output = io.StringIO()

    talk(model, output)

    assert output.getvalue() == f"{WELCOME}\n\n"


def test_a_turn_that_cannot_be_answered_leaves_no_trace(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "one " * 600, "Count.")
    output = io.StringIO()

    talk(model, output)

    assert "leaves no room" in output.getvalue()
    assert output.getvalue().endswith(model.chat([{"role": "user", "content": "Count."}])[0].response_text + "\n\n")
