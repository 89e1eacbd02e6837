"""Answers that have to follow a JSON schema, token by token, by llguidance."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..extras.errors import UserError
from ..extras.packages import require
from .requests import TokenGrammar


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SCHEMA = 2**18  # characters; compiling takes time that grows with them


class GrammarMaker:
    """Compiles schemas for one tokenizer; the tokenizer's tables are made at the first use."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop_ids: list[int]) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self._tables: Any = None
        self._lock = threading.Lock()

    def for_schema(self, schema: str) -> Callable[[], TokenGrammar]:
        """Return what makes the grammar of one answer; a schema that cannot be followed is a UserError."""
        llguidance = require("llguidance", "api", "An answer that follows a JSON schema")
        if len(schema) > MAX_SCHEMA:
            raise UserError(f"The JSON schema has {len(schema)} characters; at most {MAX_SCHEMA} are read.")
        tables = self._tokenizer_tables()
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
        matcher = llguidance.LLMatcher(tables, grammar, log_level=0)
        if error := matcher.get_error():
            raise UserError(f"This JSON schema cannot be followed: {error.splitlines()[0][:300]}")
        return lambda: SchemaGrammar(matcher.deep_copy(), self.stop_ids)

    def _tokenizer_tables(self) -> Any:
        with self._lock:
            if self._tables is None:
                from llguidance.hf import from_tokenizer

                tokenizer: Any = self.tokenizer
                self._tables = from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=self.stop_ids[0])
            return self._tables


class SchemaGrammar:
    """The grammar of one answer."""

    def __init__(self, matcher: Any, stop_ids: list[int]) -> None:
        self.matcher = matcher
        self.stop_ids = stop_ids

    def allowed(self) -> torch.Tensor | None:
        """Return which tokens may come next."""
        if self.matcher.is_stopped():
            mask = torch.zeros(max(self.stop_ids) + 1, dtype=torch.bool)
            mask[self.stop_ids] = True
            return mask
        mask = torch.frombuffer(bytearray(self.matcher.compute_logit_bias()), dtype=torch.uint8) > 0
        mask[self.stop_ids] = self.matcher.is_accepting()
        return mask

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""
        if not self.matcher.is_stopped() and token not in self.stop_ids:
            self.matcher.consume_token(token)
