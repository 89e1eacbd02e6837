"""Token ids to text while they arrive: no split characters, no stop text, the same string as decoding all at once."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .requests import FinishReason


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


UNFINISHED = "\ufffd"  # what a decoder writes for bytes that do not make a character yet
MAX_WINDOW, CONTEXT = 32, 8  # tokens decoded per step, and those kept to the left when the window moves on


class AnswerText:
    """The text of one answer. `add` returns what can be shown for sure; `finish` returns the rest."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        stop_ids: Iterable[int],
        stop: Sequence[str] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.stop = [text for text in stop if text]
        self.skip_special_tokens = skip_special_tokens
        self.num_tokens = 0
        self.finish_reason: FinishReason = "length"
        self._window: list[int] = []
        self._decoded = ""  # of the window, already taken out
        self._held = ""  # could be the beginning of a stop text

    @property
    def is_stopped(self) -> bool:
        """Whether a stop id or a stop text was met; what comes after is not part of the answer."""
        return self.finish_reason == "stop"

    def add(self, token: int) -> str:
        """Take one more token."""
        if self.is_stopped:
            return ""
        self.num_tokens += 1
        if token in self.stop_ids:
            self.finish_reason = "stop"
            if self.skip_special_tokens:
                return ""
        self._window.append(token)
        return self._release(self._decode(is_last=False), is_last=False)

    def end(self, reason: FinishReason) -> None:
        """Note why the writer of the tokens stopped."""
        self.finish_reason = reason

    def finish(self) -> str:
        """Return what was held back, at the end of the answer."""
        return self._release(self._decode(is_last=True), is_last=True)

    def _decode(self, *, is_last: bool) -> str:
        """The characters that the newest tokens completed."""
        text = self._text(self._window)
        stable = text if is_last else text.rstrip(UNFINISHED)
        fresh = stable[len(self._decoded) :]
        self._decoded = stable
        if stable == text and len(self._window) > MAX_WINDOW:
            self._window = self._window[-CONTEXT:]
            self._decoded = self._text(self._window)
        return fresh

    def _text(self, ids: list[int]) -> str:
        return str(
            self.tokenizer.decode(
                ids, skip_special_tokens=self.skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    def _release(self, fresh: str, *, is_last: bool) -> str:
        """Cut at the first stop text, and hold back an ending that may become one."""
        text = self._held + fresh
        self._held = ""
        ends = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        if ends:
            self.finish_reason = "stop"
            self._window, self._decoded = [], ""
            return text[: min(ends)]
        if is_last:
            return text
        held = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest ending of text that stop begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
