"""Rows for pre-training: plain text, every token of it learned, its end marked once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from ..conversation import Conversation, RowDropped
from ..encoding import encoder_of
from ..pieces import typed
from ..rendering import EncodedConversation, EncodedTurn
from .processor_utils import DatasetProcessor, ProcessedRow


LLAMA3_TEXT_END = "<|end_of_text|>"  # its eos_token ends turns of a dialogue, which text has none of


@dataclass(frozen=True)
class PretrainDatasetProcessor(DatasetProcessor):
    """One row a text: begin token where the tokenizer puts one, the text, end token.

    With `packing` texts stay whole here, and blocks.py cuts the stream of all of them; otherwise a text is cut at
    cutoff_len.
    """

    def process(self, conversations: Sequence[Conversation]) -> list[ProcessedRow | RowDropped]:
        """Encode the texts; no template is written around them."""
        texts = ["\n".join(message.content for message in item.messages) for item in conversations]
        encoder = encoder_of(self.tokenizer, self.template.allow_special_tokens)
        encoded = encoder.encode([[[typed(text)]] for text in texts])
        return [self._try_process(EncodedConversation([EncodedTurn([], ids, None)], [])) for (ids,) in encoded]

    def process_one(self, encoded: EncodedConversation) -> ProcessedRow:
        """Put the begin and the end token around a text."""
        text = encoded.turns[0].target
        if not text:
            raise RowDropped("no text")
        ids = [*self._begin, *text, self._end]
        kept = ids if self.data_args.packing else ids[: self.data_args.cutoff_len]
        return ProcessedRow(kept, kept, len(kept) - 1, len(kept) < len(ids))

    @cached_property
    def _begin(self) -> list[int]:
        frame = cast(list[int], self.tokenizer("")["input_ids"])
        return [number for number in frame[:1] if number == self.tokenizer.bos_token_id != self._end]

    @cached_property
    def _end(self) -> int:
        vocabulary = self.tokenizer.get_vocab()
        if self.template.name.startswith("llama3") and LLAMA3_TEXT_END in vocabulary:
            return vocabulary[LLAMA3_TEXT_END]
        return cast(int, self.tokenizer.eos_token_id)
