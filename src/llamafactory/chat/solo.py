"""Answers by `generate` of transformers, one at a time: beams, prompts with images or sound, and models
whose attention cannot read pages.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from ..model.model_utils.attention import attention_in_use
from .answer import Answer


if TYPE_CHECKING:
    from .adapters import AdapterSwitch
    from .sampling import Ranking


class SoloWriter:
    """Writes one answer from beginning to end; stops early when its reader has left or a stop text came."""

    def __init__(self, model: PreTrainedModel, pad_id: int, adapters: "AdapterSwitch | None") -> None:
        """Take a model with the attention that it has without pages."""
        self.model: Any = model
        self.pad_id = pad_id
        self.adapters = adapters
        self.attention = attention_in_use(model)

    @torch.inference_mode()
    def __call__(self, answer: Answer) -> None:
        """Write the answer and tell its reader; beams are followed to their end first, so they come in one piece."""
        if self.adapters is not None:
            self.adapters.use(answer.job.adapter)
        used = attention_in_use(self.model)
        if used != self.attention:
            self.model.set_attn_implementation(self.attention)
        try:
            self._write(answer)
        finally:
            if used != self.attention:
                self.model.set_attn_implementation(used)

    def _write(self, answer: Answer) -> None:
        options, prompt = answer.job.options, answer.job.prompt
        is_beam = options.arguments.num_beams > 1
        input_ids = torch.tensor([list(prompt)], device=self.model.device)
        writer = None if is_beam else OneRow(answer)
        output = self.model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            **{name: self._placed(value) for name, value in (answer.job.inputs or {}).items()},
            generation_config=self._config(answer),
            logits_processor=LogitsProcessorList([writer] if writer else []),
            stopping_criteria=[lambda ids, scores: torch.full((ids.shape[0],), self._is_over(answer))],
            streamer=Emitter(answer, writer) if writer else None,
        )
        if is_beam:
            row = output[min(answer.index, len(output) - 1), len(prompt) :].tolist()
            for token in row:
                if answer.job.is_cancelled or answer.add(token, None):
                    return

    def _placed(self, value: Any) -> Any:
        """Bring an input to the model's device and number format."""
        if not isinstance(value, Tensor):
            return value
        return value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)

    def _is_over(self, answer: Answer) -> bool:
        return answer.job.is_cancelled or answer.text.is_stopped

    def _config(self, answer: Answer) -> GenerationConfig:
        """Choosing is left to our own processor, so for transformers every search is greedy or by beams."""
        options = answer.job.options
        arguments = options.arguments
        is_beam = arguments.num_beams > 1
        return GenerationConfig(
            do_sample=False,
            num_beams=arguments.num_beams,
            num_return_sequences=min(options.num_return_sequences, arguments.num_beams),
            max_new_tokens=answer.job.room,
            repetition_penalty=arguments.repetition_penalty if is_beam else 1.0,
            length_penalty=arguments.length_penalty if is_beam else None,
            eos_token_id=sorted(answer.job.stop_ids) or None,
            pad_token_id=self.pad_id,
            use_cache=self.model.config.use_cache,
        )


class OneRow(LogitsProcessor):
    """Lets the answer's own chooser decide: its choice is the only token left."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.ranking: Ranking | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Return scores that leave one token."""
        token, self.ranking = self.answer.chooser.choose(scores[0])
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([token], device=scores.device), 0.0)


class Emitter(BaseStreamer):
    """Hands every new token to the answer; the first call of `generate` brings the prompt, which is no part of it."""

    def __init__(self, answer: Answer, row: OneRow) -> None:
        self.answer, self.row = answer, row
        self.has_prompt = False

    def put(self, value: Tensor) -> None:
        """Take the prompt, then one token at a time."""
        if self.has_prompt and not self.answer.text.is_stopped:
            self.answer.add(int(value), self.row.ranking)
        self.has_prompt = True

    def end(self) -> None:
        """Nothing is held back here."""
