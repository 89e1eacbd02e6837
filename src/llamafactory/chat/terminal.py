"""The `chat` command: a conversation in the terminal, streamed, with `clear` and `exit`.

Ctrl-C while the model answers stops the answer; at the prompt it leaves, as the end of input does.
"""

import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, TextIO

from ..extras.errors import UserError


if TYPE_CHECKING:
    from ..hparams.parser import Args
    from .chat_model import ChatModel


WELCOME = "Type a message. `clear` starts a new conversation, `exit` leaves."


def run_chat(args: "Args" = None) -> None:
    """Load the model that the arguments name and talk with it until the user leaves."""
    from .chat_model import ChatModel

    with suppress(ImportError):  # line editing and history; Windows has no readline
        import readline  # noqa: F401

    talk(ChatModel(args), sys.stdout)


def talk(model: "ChatModel", output: TextIO) -> None:
    """Read from the terminal, answer, repeat."""
    messages: list[dict[str, str]] = []
    _say(output, f"{WELCOME}\n")
    while (query := _ask(output)) is not None:
        command = query.strip().lower()
        if command == "exit":
            return
        if command == "clear":
            messages = []
            _say(output, "A new conversation.\n")
        elif command:
            messages = _answer(model, [*messages, {"role": "user", "content": query}], output)


def _ask(output: TextIO) -> str | None:
    """Return what the user typed; None when there is nothing more to come."""
    while True:
        try:
            return input("\nUser: ")
        except (EOFError, KeyboardInterrupt):
            _say(output, "\n")
            return None
        except UnicodeDecodeError as error:
            _say(output, f"That was not readable as {error.encoding} text; please type it again.\n")


def _answer(model: "ChatModel", messages: list[dict[str, str]], output: TextIO) -> list[dict[str, str]]:
    """Print the answer as it comes and return the conversation with it; one that failed leaves no trace."""
    _say(output, "Assistant: ")
    pieces: list[str] = []
    try:
        with closing(model.stream_chat(messages)) as stream:
            for text in stream:
                pieces.append(text)
                _say(output, text)
    except KeyboardInterrupt:
        _say(output, " [stopped]")
    except UserError as error:
        _say(output, f"[{error}]\n")
        return messages[:-1]
    _say(output, "\n")
    return [*messages, {"role": "assistant", "content": "".join(pieces)}]


def _say(output: TextIO, text: str) -> None:
    output.write(text)
    output.flush()
