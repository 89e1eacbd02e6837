"""Prediction of supervised fine-tuning: generate an answer to every prompt and compare it with the label."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from ...data.collator import PaddingCollator
from ...data.template import Template
from ...extras.constants import IGNORE_INDEX
from ...hparams import GeneratingArguments
from ...model.depths import has_depths
from ...model.model_utils.wrapping import unwrapped
from ..objective import Batch, Models
from ..stage import RunArguments, StageContext
from .metric import require_text_metrics, text_similarity


@dataclass(frozen=True)
class AnswerPredictor:
    """Generates with left padding, so that every answer begins right after its prompt."""

    tokenizer: Any
    """A tokenizer of transformers."""
    generation: GenerationConfig
    skip_special_tokens: bool = True

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Pad the prompts on the left; the labels have a length of their own."""
        return dict(PaddingCollator(self.tokenizer, padding_side="left")(rows))

    def predict(self, models: Models, batch: Batch) -> list[dict[str, Any]]:
        """Return {"prompt", "predict", "label"} for each row."""
        prompt_ids: Tensor = batch["input_ids"]
        policy: Any = models.policy
        output_ids: Tensor = policy.generate(
            input_ids=prompt_ids, attention_mask=batch["attention_mask"], generation_config=self.generation
        )
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(prompt_ids, batch["attention_mask"], strict=True)]
        answers = self._decode([self._until_stop(row) for row in output_ids[:, prompt_ids.shape[1] :].tolist()])
        labels = self._decode([ids[ids != IGNORE_INDEX].tolist() for ids in batch["labels"]])
        texts = self.tokenizer.batch_decode(prompts, skip_special_tokens=False)
        return [
            {"prompt": prompt, "predict": answer, "label": label}
            for prompt, answer, label in zip(texts, answers, labels, strict=True)
        ]

    def measure(self, records: list[dict[str, Any]]) -> dict[str, float]:
        """Return ROUGE and BLEU."""
        return text_similarity(records)

    def _until_stop(self, ids: list[int]) -> list[int]:
        """Cut an answer at its first stop token; what follows fills the row up to the longest answer."""
        stops = self.generation.eos_token_id or []
        end = next((index for index, token in enumerate(ids) if token in stops), len(ids))
        return ids[:end] if self.skip_special_tokens else ids[: end + 1]

    def _decode(self, rows: list[list[int]]) -> list[str]:
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=self.skip_special_tokens)
        return [text.strip() for text in texts]


def answer_predictor(context: StageContext) -> AnswerPredictor | None:
    """Make the predictor of a run that generates."""
    arguments = context.arguments
    if not arguments.training.predict_with_generate:
        return None
    beams = arguments.training.generation_num_beams or arguments.data.eval_num_beams
    generation = generation_config(arguments.generating, context.template, context.tokenizer, num_beams=beams)
    generation.use_cache = not has_depths(unwrapped(context.model))
    return AnswerPredictor(
        context.tokenizer,
        generation,
        arguments.generating.skip_special_tokens,
    )


def generation_config(
    generating: GeneratingArguments, template: Template, tokenizer: Any, *, num_beams: int | None = None
) -> GenerationConfig:
    """Turn our generation keys into transformers' own; settings that sampling alone reads are left out without it."""
    samples = generating.do_sample and generating.temperature > 0
    sampling = {"temperature": generating.temperature, "top_p": generating.top_p, "top_k": generating.top_k}
    cap = {"max_new_tokens": generating.max_new_tokens} if generating.max_new_tokens else {}
    beams = num_beams or generating.num_beams
    return GenerationConfig(
        do_sample=samples,
        use_cache=True,
        num_beams=beams,
        repetition_penalty=generating.repetition_penalty,
        eos_token_id=template.get_stop_token_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        **(sampling if samples else {}),
        **({"length_penalty": generating.length_penalty} if beams > 1 else {}),
        **(cap or {"max_length": generating.max_length}),
    )


def check_prediction(arguments: RunArguments) -> None:
    """Refuse a run whose answers could not be scored, before the model is loaded."""
    if arguments.training.predict_with_generate:
        require_text_metrics()
