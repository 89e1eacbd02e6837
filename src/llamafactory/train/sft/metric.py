"""Metrics of language models: perplexity, and ROUGE and BLEU of generated answers."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...extras.packages import require


# Scripts written without spaces (kana, Han and its extensions): every character is a word.
_CJK = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"
_WORDS = re.compile(rf"{_CJK}|(?:(?!{_CJK})[^\W_])+|[^\w\s]")
MOST_NATS = 709.0  # e^710 is no float any more
_ROUGE = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}


def perplexity(means: Mapping[str, float]) -> dict[str, float]:
    """Return e to the power of the mean loss per token; infinity where a float cannot hold it."""
    if "loss" not in means:
        return {}
    return {"perplexity": math.exp(means["loss"]) if means["loss"] < MOST_NATS else math.inf}


def split_words(text: str) -> list[str]:
    """Split text into lower-case words and signs; Chinese and Japanese text into characters."""
    return _WORDS.findall(text.lower())


class WordTokenizer:
    """`split_words` in the shape that rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        return split_words(text)


def require_text_metrics() -> None:
    """Say what to install when the packages for ROUGE and BLEU are missing."""
    require("rouge_score", "metrics", "Scoring generated answers (predict_with_generate)")
    require("sacrebleu", "metrics", "Scoring generated answers (predict_with_generate)")


def text_similarity(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean ROUGE-1, ROUGE-2, ROUGE-L (F) and BLEU-4 of `predict` against `label`, from 0 to 100."""
    require_text_metrics()
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    rouge = RougeScorer(list(_ROUGE.values()), tokenizer=WordTokenizer())
    bleu = BLEU(tokenize="none", smooth_method="exp", effective_order=True)
    sums = dict.fromkeys((*_ROUGE, "bleu-4"), 0.0)
    for record in records:
        predicted, label = str(record["predict"]), str(record["label"])
        scores = rouge.score(label, predicted)
        for name, key in _ROUGE.items():
            sums[name] += 100 * scores[key].fmeasure
        sums["bleu-4"] += bleu.sentence_score(" ".join(split_words(predicted)), [" ".join(split_words(label))]).score
    return {name: round(total / max(len(records), 1), 4) for name, total in sums.items()}
