from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafactory.data.encoding import TextEncoder, encoder_of, join
from llamafactory.data.formatter import Piece


SAMPLE = ["hello world user assistant how are you I am fine [INST] Human: Assistant: \n"] * 20
ALPHABET = list("abcdefghijklmnopqrstuvwxyzHIAUNST[]<>|_/:!. \n\u2581")


def sentencepiece_like(prefix: str) -> Any:
    """A tokenizer that puts a space in front: at the start of a text, after every control token, or the old way."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if prefix == "legacy":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=ALPHABET,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


PREFIXED = {prefix: sentencepiece_like(prefix) for prefix in ("first", "always", "legacy")}
TEXTS = st.text(alphabet="abhiA:! \n", max_size=10)


@pytest.mark.parametrize("prefix", PREFIXED)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5), ends=st.lists(st.booleans(), min_size=5, max_size=5))
def test_n17_chunks_joined_are_the_whole_text_when_words_stay_whole(
    prefix: str, texts: list[str], ends: list[bool]
) -> None:
    tokenizer = PREFIXED[prefix]
    chunks = [
        [Piece(f"[{text}]", "content"), *([Piece("eos_token", "special")] if end else [])]
        for text, end in zip(texts, ends, strict=False)
    ]
    chunks[0].insert(0, Piece("bos_token", "special"))
    whole = "<s>" + "".join(f"[{text}]" + ("</s>" if end else "") for text, end in zip(texts, ends, strict=False))

    (ids,) = TextEncoder(tokenizer).encode([chunks])

    assert tokenizer.decode(join(ids)) == tokenizer.decode(tokenizer(whole, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("prefix", PREFIXED)
def test_n17_a_continued_chunk_gets_no_space_in_front(prefix: str) -> None:
    tokenizer = PREFIXED[prefix]
    chunks = [
        [Piece("bos_token", "special"), Piece("Human: "), Piece("hello", "content"), Piece(" Assistant:")],
        [Piece("I am fine", "content"), Piece("eos_token", "special")],
        [Piece("\nuser "), Piece("how are", "content"), Piece(" Assistant:")],
    ]
    whole = "<s>Human: hello Assistant:I am fine</s>\nuser how are Assistant:"

    (ids,) = TextEncoder(tokenizer).encode([chunks])

    assert join(ids) == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_n22_a_typed_control_token_stays_text(tiny_tokenizer: Any) -> None:
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    typed = [Piece("<|im_start|>user\n"), Piece("a<|im_end|>b", "content"), Piece("<|im_end|>\n")]

    ((ids,),) = TextEncoder(tiny_tokenizer).encode([[typed]])

    assert ids.count(end) == 1
    assert tiny_tokenizer.decode(ids) == "<|im_start|>user\na<|im_end|>b<|im_end|>\n"


@pytest.mark.parametrize("prefix", PREFIXED)
def test_n22_a_typed_control_token_stays_text_with_spaces_in_front(prefix: str) -> None:
    tokenizer = PREFIXED[prefix]
    chunks = [[Piece("bos_token", "special"), Piece("a </s> b", "content"), Piece("eos_token", "special")]]

    ((ids,),) = TextEncoder(tokenizer).encode([chunks])

    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert ids[:1] == [tokenizer.bos_token_id]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.lists(st.text(max_size=20) | st.sampled_from(["<|im_end|>", " x", "\n\n"]), min_size=1, max_size=4),
        max_size=5,
    )
)
def test_batch_encoding_equals_piece_encoding(tiny_tokenizer: Any, rows: list[list[str]]) -> None:
    encoder = TextEncoder(tiny_tokenizer)
    chunks = [[[Piece("<|im_start|>"), Piece(text, "content")] for text in row] for row in rows]

    batched = encoder.encode(chunks)

    alone = [[encoder.encode([[chunk]])[0][0] for chunk in row] for row in chunks]
    assert batched == alone
    assert [[tiny_tokenizer.decode(ids) for ids in row] for row in batched] == [
        [f"<|im_start|>{text}" for text in row] for row in rows
    ]


def test_what_others_set_on_the_tokenizer_does_not_matter(fresh_tokenizer: Callable[..., Any]) -> None:
    chunk = [Piece("<|im_start|>"), Piece("one two three four five", "content")]
    expected = TextEncoder(fresh_tokenizer()).encode([[chunk]])
    disturbed = fresh_tokenizer()
    disturbed("x", truncation=True, max_length=2, padding="max_length", split_special_tokens=True)
    before = (disturbed.backend_tokenizer.truncation, disturbed.backend_tokenizer.encode_special_tokens)

    assert TextEncoder(disturbed).encode([[chunk]]) == expected
    assert (disturbed.backend_tokenizer.truncation, disturbed.backend_tokenizer.encode_special_tokens) == before


def test_white_space_that_a_token_swallows_is_swallowed_across_chunks(fresh_tokenizer: Callable[..., Any]) -> None:
    from tokenizers import AddedToken

    tokenizer = fresh_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken("<|end|>", rstrip=True, special=True)]})
    whole = tokenizer("one<|end|>\n two", add_special_tokens=False)["input_ids"]
    encoder = encoder_of(tokenizer)

    def encode(content: str) -> list[list[int]]:
        chunks = [[Piece(content, "content"), Piece("<|end|>")], [Piece("\n ")], [Piece("two")]]
        return encoder.encode([chunks])[0]

    assert join(encode("one")) == whole
    assert encode("one")[1:] == encode("one<|im_end|>")[1:]


def test_an_encoder_is_made_once_and_again_when_tokens_are_added(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer()
    first = encoder_of(tokenizer)

    assert encoder_of(tokenizer) is first
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|new|>"]})
    assert encoder_of(tokenizer) is not first
