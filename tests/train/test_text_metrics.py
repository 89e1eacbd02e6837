"""Row N45: metrics of generated text, on hand-made cases."""

import pytest

from llamafactory.train.sft.metric import split_words, text_similarity


def score(predicted: str, label: str) -> dict[str, float]:
    return text_similarity([{"predict": predicted, "label": label}])


def test_words_are_split_by_spaces_and_chinese_by_characters():
    assert split_words("Hello, World 42!") == ["hello", ",", "world", "42", "!"]
    assert split_words("我爱GPT模型。") == ["我", "爱", "gpt", "模", "型", "。"]


@pytest.mark.parametrize("text", ["the cat sat on the mat", "今天天气很好。我们去公园。"])
def test_equal_texts_score_100_and_unrelated_ones_0(text: str):
    assert score(text, text) == pytest.approx({"rouge-1": 100, "rouge-2": 100, "rouge-l": 100, "bleu-4": 100})
    unrelated = score("qqq www eee rrr ttt", text)
    assert unrelated["rouge-1"] == unrelated["rouge-l"] == 0
    assert unrelated["bleu-4"] == 0
    empty = score("", text)
    assert set(empty.values()) == {0.0}


def test_rouge_of_a_hand_made_case():
    # predicted 4 words, label 5, 3 in common and in order; bigrams: 1 of 3 against 1 of 4
    result = score("the cat likes mats", "the cat sat on mats")
    assert result["rouge-1"] == pytest.approx(100 * 2 * 3 / 9, abs=1e-3)
    assert result["rouge-2"] == pytest.approx(100 * 2 * 1 / 7, abs=1e-3)
    assert result["rouge-l"] == pytest.approx(100 * 2 * 3 / 9, abs=1e-3)


def test_rows_are_averaged():
    rows = [{"predict": "a b c d", "label": "a b c d"}, {"predict": "x", "label": "y"}]
    assert text_similarity(rows)["rouge-1"] == pytest.approx(50)
    assert text_similarity(rows)["bleu-4"] == pytest.approx(50)
