"""SentencePiece's tokenizers in GGUF files: what comes back has the same ids."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from families import family_model
from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from llamafactory.data.special_tokens import adds_bos
from llamafactory.extras.errors import UserError
from llamafactory.model.gguf import convert_gguf, write_gguf


TEXTS = (
    "Count to seven.",
    "a  12 b",
    "x = 3\n    y",
    "\u65e5\u672c \U0001f642 caf\u00e9",
    " lead and trail ",
    "<s>hi</s>",
)
CORPUS = [f"Row {number} says: count the {word}s, café and 日本." for number in range(300) for word in ("cat", "dog")]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of SentencePiece as Llama 2 has one."""
    folder = tmp_path_factory.mktemp("sp")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def write(folder: Path, tokenizer: Any) -> Path:
    family_model("llama", vocab_size=len(tokenizer) + 4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder.parent / "m.gguf"
    write_gguf(folder, path, "f16", name="m", adds_bos=adds_bos(AutoTokenizer.from_pretrained(folder)))
    return path


def test_byte_pairs_of_sentencepiece(pieces: Path, tmp_path: Path) -> None:
    tokenizer: Any = LlamaTokenizer.from_pretrained(pieces.parent)
    tokenizer.add_tokens(["<mine>"])

    path = write(tmp_path / "in", tokenizer)

    (tmp_path / "out").mkdir()
    convert_gguf(path, tmp_path / "out")
    before, after = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("in", "out"))
    for text in (*TEXTS, "so <mine> it"):
        prompt = f"<s>{text}</s>{text}"  # as chats begin
        ids = [tokenizer(prompt, add_special_tokens=False).input_ids for tokenizer in (before, after)]
        assert ids[0] == ids[1], text
    fields = GGUFReader(path).fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    kinds = fields["tokenizer.ggml.token_type"].contents()
    scores = fields["tokenizer.ggml.scores"].contents()
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is False
    truth = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    merged = [index for index in range(truth.vocab_size()) if len(truth.id_to_piece(index)) > 1 and kinds[index] == 1]
    assert len(merged) > 50
    assert sorted(merged, key=lambda i: -scores[i]) == sorted(merged, key=lambda i: -truth.get_score(i))
    assert [kinds[truth.piece_to_id(piece)] for piece in ("<unk>", "<s>", "<0x41>")] == [2, 3, 6]
    assert (kinds[len(tokenizer) - 1], kinds[-1]) == (4, 5)  # the added one, and a row without a token


def test_unigram_models(tmp_path: Path) -> None:
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.Replace(" ", "\u2581")
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    core.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>")
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")

    path = write(tmp_path / "in", tokenizer)

    fields = GGUFReader(path).fields
    tokens, scores = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores"))
    pairs = dict(zip(tokens, scores, strict=True))
    assert fields["tokenizer.ggml.model"].contents() == "t5"
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is core.encode("</s>a").tokens[1].startswith("\u2581")
    for piece, score in json.loads(core.to_str())["model"]["vocab"]:
        assert pairs[piece] == pytest.approx(score)


def test_word_pieces_are_refused(tmp_path: Path) -> None:
    core = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))

    with pytest.raises(UserError, match="no tokenizer of this kind"):
        write(tmp_path / "in", PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="a"))
