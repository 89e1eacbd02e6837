"""Rendered pieces to token ids: a whole batch in one call of the fast tokenizer, exact at every boundary.

Three things make this more than `tokenizer.encode`:
- content never becomes a control token, unless the user allows it. Rows that type one (rare) go through a copy of the
  tokenizer that has its control tokens switched off; the template's own control tokens are put in by id.
- SentencePiece-like tokenizers put a space in front of what they are given. A chunk that goes on from another one is
  encoded by a copy that does not, so that chunks joined together are what the whole text would have been.
- the tokenizer's own state (truncation, padding, switches that others set for a call) is never used or changed.
"""

import functools
import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..extras.errors import UserError
from .formatter import Piece


if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Chunk = Sequence[Piece]


class Run(NamedTuple):
    """Text that one back end encodes in one go, or ids that are already known."""

    text: str
    is_plain: bool = False  # control tokens in the text stay text
    is_continued: bool = False  # no space is put in front
    ids: tuple[int, ...] = ()


class TextEncoder:
    """Encodes chunks of pieces with one tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", allows_control: bool = False) -> None:
        self.tokenizer = tokenizer
        self.allows_control = allows_control  # control tokens typed in content become control tokens
        self.added = {str(token.content): token for token in tokenizer.added_tokens_decoder.values()}
        self.specials = {text: token for text, token in self.added.items() if token.special}
        self.special_pattern = any_of(self.specials)
        self.special_starts = {text[0] for text in self.specials if text}  # a quick look before the pattern
        self.added_pattern = any_of(self.added)
        self.prefix_space = find_prefix_space(tokenizer)
        self.has_context = bool(self.prefix_space) or any(token.rstrip for token in self.added.values())
        self._back_ends: dict[tuple[bool, bool], Any] = {}

    def encode(self, rows: Iterable[Sequence[Chunk]]) -> list[list[list[int]]]:
        """Return, for every row, the ids of each of its chunks; all text goes through one call per kind of run."""
        plans = [self.plan(row) for row in rows]
        texts: dict[tuple[bool, bool], list[str]] = {}
        for run in (run for plan in plans for runs in plan for run in runs if run.text):
            texts.setdefault((run.is_plain, run.is_continued), []).append(run.text)
        encoded = {kind: iter(self._encode_texts(kind, batch)) for kind, batch in texts.items()}

        def ids_of(run: Run) -> Sequence[int]:
            return next(encoded[run.is_plain, run.is_continued]) if run.text else run.ids

        return [[join([ids_of(run) for run in runs]) for runs in plan] for plan in plans]

    def plan(self, row: Sequence[Chunk]) -> list[list[Run]]:
        """Decide which runs the chunks of one row consist of."""
        cursor = Cursor()
        return [self._plan_chunk(chunk, cursor) for chunk in row]

    def has_control_text(self, text: str) -> bool:
        """Tell whether text holds something that looks like a control token."""
        for start in self.special_starts:
            if start in text:
                return self.special_pattern.search(text) is not None
        return False

    def _plan_chunk(self, chunk: Chunk, cursor: "Cursor") -> list[Run]:
        texts: list[str] = []
        for text, kind in chunk:
            if kind == "token" or (kind == "content" and not self.allows_control and self.has_control_text(text)):
                return self._plan_guarded(chunk, cursor)
            texts.append(self._special_text(text) if kind == "special" else text)
        return self._plan_text("".join(texts), cursor)

    def _plan_text(self, text: str, cursor: "Cursor") -> list[Run]:
        """Plan text whose control tokens are all the template's own: the tokenizer finds them itself."""
        if not self.has_context:
            return [Run(text)] if text else []
        if cursor.strips_next:
            text = text.lstrip()
        if not text:
            return []

        is_mid_text = cursor.is_mid_text
        is_first, cursor.is_first = cursor.is_first, False
        last = self._last_added(text)
        cursor.is_mid_text = last is None
        cursor.strips_next = last is not None and last.rstrip
        if self.prefix_space == "first":
            return [Run(text, is_continued=not is_first)]
        if self.prefix_space == "always" and is_mid_text:
            match = self.added_pattern.search(text)
            cut = match.start() if match else len(text)
            return [run for run in (Run(text[:cut], is_continued=True), Run(text[cut:])) if run.text]
        return [Run(text)]

    def _plan_guarded(self, chunk: Chunk, cursor: "Cursor") -> list[Run]:
        """Plan a chunk whose content must be kept apart from the template's control tokens."""
        runs: list[Run] = []
        text = ""
        for part in self._split_control(chunk):
            if isinstance(part, str):
                text += part
                continue
            runs += self._plan_plain(text.rstrip() if part.lstrip else text, cursor)
            runs.append(Run("", ids=(self._token_id(str(part.content)),)))
            text = ""
            cursor.is_first, cursor.is_mid_text, cursor.strips_next = False, False, part.rstrip
        return runs + self._plan_plain(text, cursor)

    def _plan_plain(self, text: str, cursor: "Cursor") -> list[Run]:
        if cursor.strips_next:
            text = text.lstrip()
        if not text:
            return []
        is_continued = not cursor.is_first if self.prefix_space == "first" else cursor.is_mid_text
        cursor.is_first, cursor.is_mid_text, cursor.strips_next = False, True, False
        return [Run(text, is_plain=True, is_continued=bool(self.prefix_space) and is_continued)]

    def _split_control(self, chunk: Chunk) -> Iterable[Any]:
        """Yield text, and AddedTokens for the control tokens that the template itself wrote."""
        for piece in chunk:
            if piece.kind == "content" and not self.allows_control:
                yield piece.text
            elif piece.kind == "token":
                yield self.added.get(piece.text) or PlainToken(piece.text)
            else:
                text = self._special_text(piece.text) if piece.kind == "special" else piece.text
                start = 0
                for match in self.special_pattern.finditer(text):
                    yield text[start : match.start()]
                    yield self.specials[match.group()]
                    start = match.end()
                yield text[start:]

    def _special_text(self, name: str) -> str:
        """Return the text of bos_token or eos_token; "" when the tokenizer has none."""
        return getattr(self.tokenizer, name) or ""

    def _token_id(self, token: str) -> int:
        number = self.tokenizer.convert_tokens_to_ids(token)
        if not isinstance(number, int) or (
            number == self.tokenizer.unk_token_id and token != self.tokenizer.unk_token
        ):
            raise UserError(f"The template needs the token {token!r}, which this model's tokenizer does not have.")
        return number

    def _last_added(self, text: str) -> Any:
        """Return the added token that text ends with, or None."""
        matches = list(self.added_pattern.finditer(text))
        return self.added[matches[-1].group()] if matches and matches[-1].end() == len(text) else None

    def _encode_texts(self, kind: tuple[bool, bool], texts: list[str]) -> list[list[int]]:
        is_plain, is_continued = kind
        if not self.tokenizer.is_fast:
            return [
                self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=is_plain) for text in texts
            ]
        back_end = self._back_end(is_plain, is_continued)
        return [encoding.ids for encoding in back_end.encode_batch_fast(texts, add_special_tokens=False)]

    def _back_end(self, is_plain: bool, is_continued: bool) -> "Tokenizer":
        shared = back_end_of(self.tokenizer)
        is_clean = shared.truncation is None and shared.padding is None and not shared.encode_special_tokens
        if is_clean and not is_plain and not is_continued:
            return shared
        if (is_plain, is_continued) not in self._back_ends:
            self._back_ends[is_plain, is_continued] = copy_back_end(shared, is_plain, is_continued)
        return self._back_ends[is_plain, is_continued]


class PlainToken(NamedTuple):
    """A vocabulary entry that is not an added token, standing in for one."""

    content: str
    lstrip: bool = False
    rstrip: bool = False


class Cursor:
    """Where in the whole text the next chunk starts."""

    def __init__(self) -> None:
        self.is_first = True
        self.is_mid_text = False  # the text before does not end in an added token
        self.strips_next = False  # the token before swallows white space after it


def encoder_of(tokenizer: "PreTrainedTokenizerBase", allows_control: bool = False) -> TextEncoder:
    """Return the encoder of a tokenizer, made once; adding tokens to the tokenizer gives a new one."""
    return _cached_encoder(tokenizer, allows_control, (len(tokenizer), tuple(tokenizer.all_special_tokens)))


@functools.lru_cache(maxsize=8)
def _cached_encoder(tokenizer: "PreTrainedTokenizerBase", allows_control: bool, state: object) -> TextEncoder:
    return TextEncoder(tokenizer, allows_control)


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Compile a pattern that finds any of the texts, longest first; nothing when there are none."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")


def back_end_of(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer":
    """Return the fast tokenizer inside."""
    back_end: Any = tokenizer.backend_tokenizer
    return back_end


def find_prefix_space(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Tell where the tokenizer puts a space in front: "" nowhere, "first" or "always" (after each control token)."""
    if not tokenizer.is_fast:
        return ""
    back_end = back_end_of(tokenizer)
    schemes: list[str] = []
    for part in (back_end.normalizer, back_end.pre_tokenizer):
        for step in steps_of(json.loads(part.__getstate__()) if part is not None else None):
            if step["type"] == "Prepend" or step.get("add_prefix_space"):
                schemes.append("always")
            elif step["type"] == "Metaspace":
                schemes.append(step.get("prepend_scheme", "never"))
    return next((scheme for scheme in ("always", "first") if scheme in schemes), "")


def copy_back_end(back_end: "Tokenizer", is_plain: bool, is_continued: bool) -> "Tokenizer":
    """Copy a fast tokenizer, with control tokens off (is_plain) or without a space in front (is_continued)."""
    from tokenizers import Tokenizer

    state = json.loads(back_end.to_str())
    state["truncation"] = state["padding"] = None
    if is_continued:
        for part in (state["normalizer"], state["pre_tokenizer"]):
            for step in steps_of(part):
                if step["type"] == "Metaspace":
                    step["prepend_scheme"] = "never"
                elif step["type"] == "Prepend":
                    step.update(prepend="")
                elif step.get("add_prefix_space"):
                    step["add_prefix_space"] = False
    copy = Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = is_plain
    return copy


def steps_of(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return a normalizer's or pre-tokenizer's steps, a nested sequence flattened."""
    if part is None:
        return []
    nested = part.get("normalizers") or part.get("pretokenizers")
    return [step for item in nested for step in steps_of(item)] if nested else [part]


def join(parts: Sequence[Sequence[int]]) -> list[int]:
    """Join id lists."""
    return list(parts[0]) if len(parts) == 1 else [number for part in parts for number in part]
