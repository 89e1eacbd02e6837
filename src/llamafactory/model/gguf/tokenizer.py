"""Rebuilds the tokenizer that a GGUF file describes: byte-level BPE here, everything else through transformers.

Two reasons to build the common case ourselves. transformers reads the file twice with the slow reader (4 s), and it
splits text by GPT-2's rule for every pre-tokenizer it does not know: SmolLM and StarCoder split digits first, so runs
of spaces before a number came out as different ids than in training.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ...extras.logging import get_logger
from .reader import GgufFile
from .splits import Split, named_split


logger = get_logger(__name__)

CONTROL, USER_DEFINED = 3, 4  # llama.cpp's token types


def build_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """The tokenizer of this file, with its special tokens and its chat template."""
    pre = str(file.metadata.get("tokenizer.ggml.pre"))
    split = named_split(pre)
    if file.metadata.get("tokenizer.ggml.model") == "gpt2" and split is not None:
        return _wrap(file, _byte_level_bpe(file.metadata, split))

    logger.info("The tokenizer of this GGUF file (pre-tokenizer %s) is rebuilt by transformers.", pre)
    return AutoTokenizer.from_pretrained(
        str(Path(file.path).parent), gguf_file=Path(file.path).name, local_files_only=True
    )


def _byte_level_bpe(metadata: dict[str, Any], split: Split) -> Tokenizer:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=split.takes_whole))
    tokenizer.pre_tokenizer = split.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    if split.composes:
        tokenizer.normalizer = normalizers.NFC()

    kinds: list[int] = metadata.get("tokenizer.ggml.token_type", [])
    control = [token for token, kind in zip(tokens, kinds, strict=False) if kind == CONTROL]
    whole = [token for token, kind in zip(tokens, kinds, strict=False) if kind == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in whole])
    return tokenizer


def _wrap(file: GgufFile, tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    metadata = file.metadata
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    ids = {
        "bos_token": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token": metadata.get("tokenizer.ggml.eos_token_id"),
        "unk_token": metadata.get("tokenizer.ggml.unknown_token_id"),
        "pad_token": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    named: dict[str, Any] = {name: tokens[index] for name, index in ids.items() if index is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=metadata.get("tokenizer.chat_template"),
        model_max_length=int(file.get("context_length", 0)) or None,
        clean_up_tokenization_spaces=False,
        add_bos_token=bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        add_eos_token=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        **named,
    )
