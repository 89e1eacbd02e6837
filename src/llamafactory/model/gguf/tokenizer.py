"""Rebuilds the tokenizer that a GGUF file describes: byte-level BPE here, everything else through transformers.

Two reasons to build the common case ourselves. transformers reads the file twice with the slow reader (4 s), and it
splits text by GPT-2's rule for every pre-tokenizer it does not know: SmolLM and StarCoder split digits first, so runs
of spaces before a number came out as different ids than in training.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ...extras.logging import get_logger
from .reader import GgufFile


logger = get_logger(__name__)

CONTROL, USER_DEFINED = 3, 4  # llama.cpp's token types

# Which split each pre-tokenizer name means, as llama.cpp's llama-vocab.cpp has it.
DIGITS_FIRST = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})
PLAIN_GPT2 = frozenset({"gpt-2", "olmo", "mpt"})
LLAMA3 = frozenset({"llama-bpe", "llama3", "llama-v3"})
QWEN2 = frozenset({"qwen2", "deepseek-r1-qwen"})
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """The tokenizer of this file, with its special tokens and its chat template."""
    pre = file.metadata.get("tokenizer.ggml.pre")
    if file.metadata.get("tokenizer.ggml.model") == "gpt2" and pre in DIGITS_FIRST | PLAIN_GPT2 | LLAMA3 | QWEN2:
        return _wrap(file, _byte_level_bpe(file.metadata, str(pre)))

    logger.info("The tokenizer of this GGUF file (pre-tokenizer %s) is rebuilt by transformers.", pre)
    return AutoTokenizer.from_pretrained(
        str(Path(file.path).parent), gguf_file=Path(file.path).name, local_files_only=True
    )


def _byte_level_bpe(metadata: dict[str, Any], pre: str) -> Tokenizer:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in LLAMA3))
    tokenizer.pre_tokenizer = _splitter(pre)
    tokenizer.decoder = decoders.ByteLevel()
    if pre in QWEN2:
        tokenizer.normalizer = normalizers.NFC()

    kinds: list[int] = metadata.get("tokenizer.ggml.token_type", [])
    control = [token for token, kind in zip(tokens, kinds, strict=False) if kind == CONTROL]
    whole = [token for token, kind in zip(tokens, kinds, strict=False) if kind == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in whole])
    return tokenizer


def _splitter(pre: str) -> pre_tokenizers.PreTokenizer:
    if pre in PLAIN_GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in DIGITS_FIRST:
        first = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])

    regex = Regex(SPLIT % ("{1,3}" if pre in LLAMA3 else ""))
    split = pre_tokenizers.Split(regex, behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


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
