"""Writes a tokenizer into a GGUF file: byte-level BPE, SentencePiece's BPE, and unigram models.

SentencePiece's BPE (Llama 2, Gemma, Mistral) joins by scores in llama.cpp; a fast tokenizer keeps the order of its
merges instead, which gives scores that join in the same order.
"""

import base64
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gguf import GGUFWriter, TokenType

from ...extras.errors import UserError
from .splits import find_split


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPACE = "\u2581"
UNUSED_SCORE = -1e6


def write_vocabulary(
    writer: GGUFWriter, tokenizer: "PreTrainedTokenizerBase", num_rows: int, stops: Sequence[int], *, adds_bos: bool
) -> None:
    """Write tokens, merges or scores, special tokens and the chat template.

    Args:
        num_rows: Rows of the embedding; those without a token get a name of their own, as llama.cpp wants it.
        stops: The ids that end an answer, the most usual first.
        adds_bos: Whether the tokenizer puts its begin-of-text token in front of plain text.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("export_gguf needs a fast tokenizer; this model has none.")
    content: dict[str, Any] = json.loads(backend.to_str())
    kind = content["model"]["type"]
    tokens = _tokens(tokenizer, num_rows)
    end: Any = tokenizer.eos_token  # typed as whatever any special token may be
    if kind == "BPE" and _is_byte_level(content):
        _write_byte_level(writer, backend, content["model"])
    elif kind == "BPE" and content["model"].get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_merge_scores(content["model"]["merges"], tokens))
        writer.add_add_space_prefix(_adds_space(backend, end))
    elif kind == "Unigram":
        _write_unigram(writer, content, tokens, adds_space=_adds_space(backend, end))
    else:
        raise UserError(f"export_gguf: llama.cpp has no tokenizer of this kind ({kind}); it has BPE and unigram ones.")
    writer.add_token_list(tokens)
    writer.add_token_types(_types(tokenizer, content, tokens))
    _write_special(writer, tokenizer, stops, adds_bos=adds_bos)


def _tokens(tokenizer: "PreTrainedTokenizerBase", num_rows: int) -> list[str]:
    tokens = [f"[PAD{index}]" for index in range(num_rows)]
    for token, index in tokenizer.get_vocab().items():
        tokens[index] = token
    return tokens


def _is_byte_level(content: dict[str, Any]) -> bool:
    return '"ByteLevel"' in json.dumps(content["pre_tokenizer"])


def _write_byte_level(writer: GGUFWriter, backend: Any, model: dict[str, Any]) -> None:
    split = find_split(backend)
    if split is None:
        raise UserError("export_gguf: llama.cpp has no pre-tokenizer that cuts text into words as this model's does.")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split.names[0])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])


def _merge_scores(merges: Sequence[Any], tokens: Sequence[str]) -> list[float]:
    """The earlier a token is made by a merge, the higher its score."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks[token]) if token in ranks else UNUSED_SCORE for token in tokens]


def _write_unigram(writer: GGUFWriter, content: dict[str, Any], tokens: Sequence[str], *, adds_space: bool) -> None:
    scores = dict(content["model"]["vocab"])
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([float(scores.get(token, UNUSED_SCORE)) for token in tokens])
    writer.add_add_space_prefix(adds_space)
    charsmap = _find_charsmap(content.get("normalizer"))
    writer.add_remove_extra_whitespaces(_drops_spaces(content.get("normalizer")))
    if charsmap:
        writer.add_precompiled_charsmap(charsmap)


def _find_charsmap(normalizer: dict[str, Any] | None) -> bytes | None:
    steps = [normalizer, *normalizer.get("normalizers", ())] if normalizer else []
    found = next((step["precompiled_charsmap"] for step in steps if step and "precompiled_charsmap" in step), None)
    return base64.b64decode(found) if found else None


def _drops_spaces(normalizer: dict[str, Any] | None) -> bool:
    return '" {2,}"' in json.dumps(normalizer)


def _adds_space(backend: Any, special: str | None) -> bool:
    """Tell whether a word behind a special token gets a space in front.

    llama.cpp treats the start of a text and what follows a special token alike. Where a tokenizer does not (the
    scheme `first` of Metaspace), chat prompts decide, and those start with a special token.
    """
    tokens = backend.encode(f"{special or ''}a", add_special_tokens=False).tokens
    return tokens[1 if special else 0].startswith(SPACE)


def _types(tokenizer: "PreTrainedTokenizerBase", content: dict[str, Any], tokens: Sequence[str]) -> list[TokenType]:
    vocabulary = tokenizer.get_vocab()
    added = {int(index): token.special for index, token in tokenizer.added_tokens_decoder.items()}
    unknown = content["model"].get("unk_token") or tokenizer.unk_token
    is_byte_level = _is_byte_level(content)
    types: list[TokenType] = []
    for index, token in enumerate(tokens):
        if token not in vocabulary:
            types.append(TokenType.UNUSED)
        elif not is_byte_level and BYTE.fullmatch(token):
            types.append(TokenType.BYTE)
        elif not is_byte_level and token == unknown:
            types.append(TokenType.UNKNOWN)
        elif index in added:
            types.append(TokenType.CONTROL if added[index] else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL)
    return types


def _write_special(
    writer: GGUFWriter, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[int], *, adds_bos: bool
) -> None:
    eos = stops[0] if stops else tokenizer.eos_token_id
    named = {
        "bos": tokenizer.bos_token_id,
        "eos": eos,
        "eot": stops[1] if len(stops) > 1 else None,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    for name, index in named.items():
        if index is not None:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", int(index))
    writer.add_add_bos_token(adds_bos)
    writer.add_add_eos_token(False)
    template = tokenizer.chat_template
    if isinstance(template, str):
        writer.add_chat_template(template)
