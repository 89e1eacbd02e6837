"""Pairs and marked answers over tiny models, and the parts of the stages dpo and kto put together by hand."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from llamafactory.data.collator import FlatCollator, PaddingCollator
from llamafactory.data.mismatch import MismatchedRows
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.hparams import FinetuningArguments
from llamafactory.model.readout import enable_readout
from llamafactory.train.answers import AnswerCollator
from llamafactory.train.dpo.objective import count_pairs, pair_survey, preference_objective
from llamafactory.train.dpo.workflow import baseline_callbacks
from llamafactory.train.kto.objective import MISMATCHED, DriftSurvey, MarkedCollator, count_rows, marked_objective
from llamafactory.train.reference import REFERENCE, keep_adapter, silence_dropout
from llamafactory.train.stage import StageContext, StageParts


PAD = SimpleNamespace(pad_token_id=0)


def make_pairs(num_pairs: int, vocabulary: int = 300, seed: int = 0) -> list[dict[str, list[int]]]:
    """Pairs of answers of very different lengths behind common prompts."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(3, vocabulary, (length,), generator=generator).tolist()

    rows = []
    for _ in range(num_pairs):
        prompt, row = draw(2, 15), {}
        for side in ("chosen", "rejected"):
            answer = draw(1, 20)
            row[f"{side}_input_ids"] = prompt + answer
            row[f"{side}_labels"] = [IGNORE_INDEX] * len(prompt) + answer
        rows.append(row)
    return rows


def make_marked(num_rows: int, seed: int = 0) -> Any:
    """Marked answers with their mismatched ones."""
    rows = [
        {"input_ids": pair["chosen_input_ids"], "labels": pair["chosen_labels"], "kto_tags": index % 3 != 0}
        for index, pair in enumerate(make_pairs(num_rows, seed=seed))
    ]
    return MismatchedRows(rows, 64)


def collator(is_flat: bool, *prefixes: str) -> AnswerCollator:
    return AnswerCollator(FlatCollator(PAD) if is_flat else PaddingCollator(PAD), prefixes)


def context_of(model: Any, **finetuning: Any) -> StageContext:
    arguments = SimpleNamespace(finetuning=FinetuningArguments(**finetuning))
    return StageContext(arguments=arguments, tokenizer=PAD, processor=None, template=None, model=model)


def dpo_parts(model: Any, reference: Any = None, *, is_flat: bool = True, **finetuning: Any) -> StageParts:
    enable_readout(model)
    silence_dropout(model)
    context = context_of(model, **finetuning)
    objective = preference_objective(context)
    return StageParts(
        collate=collator(is_flat, "chosen_", "rejected_"),
        objective=objective,
        weigh=count_pairs,
        helpers=helpers_of(reference),
        survey=pair_survey(context),
        callbacks=baseline_callbacks(objective),
    )


def kto_parts(model: Any, reference: Any = None, *, is_flat: bool = True, **finetuning: Any) -> StageParts:
    enable_readout(model)
    silence_dropout(model)
    return StageParts(
        collate=MarkedCollator(collator(is_flat, ""), collator(is_flat, MISMATCHED)),
        objective=marked_objective(context_of(model, **finetuning)),
        weigh=count_rows,
        helpers=helpers_of(reference),
        survey=DriftSurvey(),
    )


def helpers_of(reference: Any) -> dict[str, Any]:
    if reference is None:
        return {}
    enable_readout(reference)
    return {REFERENCE: reference.requires_grad_(False).eval()}


def shift_weights(model: Any, seed: int = 5, scale: float = 0.05) -> Any:
    """Move the trained weights, so that policy and reference differ and B of LoRA is not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += torch.randn(weight.shape, generator=generator) * scale
    return model


def policy_and_reference(make_model: Callable[..., Any], method: str, *, continued: bool = False) -> tuple[Any, Any]:
    """Return a policy that has moved, and its reference model where it needs one."""
    model = make_model(method)
    if method == "full":
        return shift_weights(model), make_model()
    if continued:
        keep_adapter(shift_weights(model, seed=8))
    return shift_weights(model), None


def expected_logps(model: Any, ids: list[int], labels: list[int]) -> torch.Tensor:
    """The sum of log p of the labels of one sequence, by plain PyTorch."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
    targets = torch.tensor(labels[1:])
    kept = targets != IGNORE_INDEX
    return logits.log_softmax(-1)[kept].gather(1, targets[kept].unsqueeze(1)).sum()
