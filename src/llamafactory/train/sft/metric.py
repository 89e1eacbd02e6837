"""Metrics of supervised fine-tuning: token accuracy, and ROUGE and BLEU of generated answers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...extras.constants import IGNORE_INDEX
from ...extras.packages import require
from ..objective import MetricSum


# Scripts written without spaces (kana, Han and its extensions): every character is a word.
_CJK = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"
_WORDS = re.compile(rf"{_CJK}|(?:(?!{_CJK})[^\W_])+|[^\w\s]")
_ROUGE = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}


def token_accuracy(logits_NV: Tensor, targets_N: Tensor) -> MetricSum:
    """Count the supervised positions at which the likeliest token is the label."""
    is_supervised_N = targets_N != IGNORE_INDEX
    hits_N = (logits_NV.argmax(dim=-1) == targets_N) & is_supervised_N
    return MetricSum(hits_N.sum().to(torch.float32), is_supervised_N.sum())


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
