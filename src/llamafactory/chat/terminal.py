"""The `chat` command: a conversation in the terminal, streamed, with thoughts shown dim and tools answered by hand.

Ctrl-C while the model answers stops the answer; at the prompt it drops what is typed, and twice in a row it leaves, as
the end of input does.
"""

import re
import sys
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..data.conversation import Message, Role
from ..extras.env import read_env
from ..extras.errors import UserError
from ..extras.registry import did_you_mean
from .answer_parts import AnswerParts, AnswerReader, Part, calling_message, join_parts
from .answer_syntax import find_opened, find_syntax
from .requests import ChatRequest
from .transcript import append_row, read_tools


if TYPE_CHECKING:
    from ..hparams.parser import Args
    from .chat_model import ChatModel


WELCOME = "Type a message; a line that ends with \\ goes on in the next. /help lists the commands, /exit leaves."
HELP = """\
  /system [TEXT]   set the system message; without TEXT, show it
  /tools [FILE]    let the model call the tools of a JSON file; without FILE, take them away
  /regenerate      answer the last message once more
  /save FILE       append the conversation to a .jsonl file, as a row that `train` can read
  /clear           start a new conversation
  /exit            leave
A message of many lines stands between two lines of three quotes (\"\"\"). Ctrl-C stops an answer.
"""
COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
QUOTES = '"""'
DIM, PLAIN = "\x1b[2m", "\x1b[0m"
MAX_HISTORY = 1000  # lines


def run_chat(args: "Args" = None) -> None:
    """Load the model that the arguments name and talk with it until the user leaves."""
    from .chat_model import ChatModel

    save_history = _load_history()
    model = ChatModel(args)
    try:
        talk(model, sys.stdout)
    finally:
        save_history()
        model.close()


def talk(model: "ChatModel", output: TextIO) -> None:
    """Read from the terminal, answer, repeat."""
    session = Session(model, output)
    session.say(f"{WELCOME}\n")
    while (text := session.ask("\nUser: ", is_patient=True)) is not None:
        if not session.handle(text):
            return


class Session:
    """One conversation with one model."""

    def __init__(self, model: "ChatModel", output: TextIO) -> None:
        self.model = model
        self.output = output
        self.messages: list[Message] = []
        self.system: str | None = None
        self.tools: str | None = None
        self.syntax = find_syntax(model.engine.template, model.engine.tokenizer)
        self.is_terminal = output.isatty()
        self.last_kind = ""  # of the pieces of an answer
        self.commands: Mapping[str, Callable[[str], bool]] = {
            "help": self.show_help,
            "system": self.set_system,
            "tools": self.set_tools,
            "regenerate": self.regenerate,
            "save": self.save,
            "clear": self.clear,
            "exit": self.leave,
        }

    def handle(self, text: str) -> bool:
        """Do what a message or a command says; False when the user wants to leave."""
        word = text.strip()
        if word.lower() in ("exit", "clear"):  # the words without a slash are older
            word = f"/{word.lower()}"
        if match := COMMAND.fullmatch(word):
            name, argument = match[1], (match[2] or "").strip()
            if name in self.commands:
                return self.commands[name](argument)
            self.say(f"There is no command /{name}.{did_you_mean(name, self.commands)} /help lists them.\n")
        elif word:
            self.answer([*self.messages, Message(Role.USER, text)])
        return True

    def answer(self, messages: list[Message]) -> None:
        """Let the model answer, and go on while it calls tools; a turn that fails leaves no trace."""
        while True:
            self.say("Assistant: ")
            try:
                parts = self.show_answer(messages)
            except UserError as error:
                self.say(f"[{error}]\n")
                return
            self.say("\n")
            self.messages = messages = [*messages, parts_as_message(parts, self.syntax.thought_marks)]
            if not parts.calls:
                return
            results = [self.ask(f"Result of {call.name}: ") for call in parts.calls]
            if None in results:
                self.messages = messages[:-1]
                return
            messages = [*messages, *(Message(Role.OBSERVATION, result or "") for result in results)]

    def show_answer(self, messages: list[Message]) -> AnswerParts:
        """Print an answer as it comes and return it; what Ctrl-C left of it counts."""
        options: dict[str, Any] = {"skip_special_tokens": False} if self.syntax.needs_control_tokens else {}
        request = self.model.chat_request(messages, self.system, self.tools, **options)
        reader = self._reader(request)
        self.last_kind = ""
        parts: list[Part] = []
        try:
            with closing(self.model.stream_chunks(request)) as stream:
                for chunk in stream:
                    parts += self._show(reader.add(chunk.text))
        except KeyboardInterrupt:
            self._show(reader.finish())
            self.say(" [stopped]")
            return join_parts(part for part in parts if part.call is None)
        parts += self._show(reader.finish())
        return join_parts(parts)

    def show_help(self, _: str) -> bool:
        """List the commands."""
        self.say(HELP)
        return True

    def set_system(self, text: str) -> bool:
        """Set or show the system message."""
        self.system = text or self.system
        self.say(f"System: {self.system or 'the default one'}\n")
        return True

    def set_tools(self, name: str) -> bool:
        """Read tools from a file, or take them away."""
        try:
            self.tools, names = read_tools(Path(name).expanduser()) if name else (None, [])
        except UserError as error:
            self.say(f"{error}\n")
            return True
        self.say(f"Tools: {', '.join(names) or 'none'}\n")
        return True

    def regenerate(self, _: str) -> bool:
        """Forget everything behind the last message of the user, and answer it again."""
        last = max((place for place, turn in enumerate(self.messages) if turn.role is Role.USER), default=None)
        if last is None:
            self.say("There is nothing to answer yet.\n")
        else:
            self.answer(self.messages[: last + 1])
        return True

    def save(self, name: str) -> bool:
        """Append the conversation to a file."""
        try:
            append_row(Path(name).expanduser(), self.messages, self.system, self.tools)
        except UserError as error:
            self.say(f"{error}\n")
        else:
            self.say(f"Saved to {name}.\n")
        return True

    def clear(self, _: str) -> bool:
        """Start again."""
        self.messages = []
        self.say("A new conversation.\n")
        return True

    def leave(self, _: str) -> bool:
        """Leave."""
        return False

    def ask(self, prompt: str, *, is_patient: bool = False) -> str | None:
        """Return what the user typed, of one line or several; None when there is nothing more to come.

        A patient question is asked again after the first Ctrl-C: it may have been meant for an answer that just ended.
        """
        while True:
            try:
                return self._read(prompt)
            except EOFError:
                self.say("\n")
                return None
            except KeyboardInterrupt:
                self.say("\n")
                if not is_patient:
                    return None
                is_patient = False
                self.say("Ctrl-C once more leaves, and so does /exit.\n")
            except UnicodeDecodeError as error:
                self.say(f"That was not readable as {error.encoding} text; please type it again.\n")

    def say(self, text: str) -> None:
        """Print at once."""
        self.output.write(text)
        self.output.flush()

    def _read(self, prompt: str) -> str:
        line = input(prompt)
        if line.strip() == QUOTES:
            lines: list[str] = []
            while (line := input()).strip() != QUOTES:
                lines.append(line)
            return "\n".join(lines)
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input())
        return "\n".join(lines)

    def _reader(self, request: ChatRequest) -> AnswerReader:
        from ..data.tools import parse_tools

        opened = find_opened(self.model.engine, self.syntax, request)
        return AnswerReader(self.syntax, parse_tools(self.tools) if self.tools else (), opened)

    def _show(self, parts: list[Part]) -> list[Part]:
        """Print the pieces of an answer and hand them on."""
        for part in parts:
            if part.call is not None:
                self.say(f"\n[{part.call.name} {part.call.arguments}]")
            elif part.kind == "thought":
                self.say(f"{DIM}{part.text}{PLAIN}" if self.is_terminal else part.text)
            else:
                self.say("\n\n" * (self.last_kind == "thought") + part.text)
            self.last_kind = part.kind
        return parts


def parts_as_message(parts: AnswerParts, thought_marks: tuple[tuple[str, str], ...]) -> Message:
    """Return the turn that an answer becomes in the conversation."""
    text = parts.text
    if parts.thought and thought_marks:
        start, end = thought_marks[0]
        text = f"{start}\n{parts.thought}\n{end}\n\n{text}"
    return calling_message(text, parts.calls) if parts.calls else Message(Role.ASSISTANT, text)


def _load_history() -> Callable[[], None]:
    """Switch line editing on, with the lines of earlier sessions; return what saves them. Windows has no readline."""
    try:
        import readline
    except ImportError:
        return lambda: None
    path = read_env().cache_dir / "chat_history"
    with suppress(OSError):
        readline.read_history_file(path)

    def save() -> None:
        readline.set_history_length(MAX_HISTORY)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)

    return save
