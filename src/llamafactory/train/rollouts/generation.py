"""Answers of the policy: an engine writes them, by `generate` of transformers unless another one is plugged in.

The engine gets the policy as it is at this step and the seed of its own generator. An engine that keeps a copy of the
weights elsewhere (a server, say) has to bring the copy up to date whenever it is called.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ...data.collator import pad_rows
from ...extras.errors import UserError
from ...hparams import GeneratingArguments
from ..objective import Models
from ..stage import StageContext


class Answer(NamedTuple):
    """What the policy wrote after a prompt."""

    prompt_ids: list[int]
    ids: list[int]
    """With the stop token at the end, when it wrote one; never empty."""
    is_finished: bool
    """Whether it wrote a stop token before the cap."""


class Engine(Protocol):
    """Writes one answer to each prompt."""

    def generate(self, models: Models, prompts: Sequence[Sequence[int]], seed: int) -> list[Answer]:
        """Return the answers in the order of the prompts; the same seed and weights give the same answers."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


class GumbelSampler(LogitsProcessor):
    """Adds Gumbel noise to the shaped scores: the highest one is a draw from them, with a generator of its own."""

    def __init__(self, sampling: Sampling, generator: torch.Generator) -> None:
        self._warpers: list[Any] = []
        if sampling.temperature != 1.0:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k > 0:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._generator = generator

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Return noisy scores."""
        shaped = scores.float()
        for warp in self._warpers:
            shaped = warp(input_ids, shaped)
        return shaped - torch.empty_like(shaped).exponential_(generator=self._generator).log()


@dataclass(frozen=True)
class HfEngine:
    """Batched `generate` with a key-value cache; prompts are padded on the left."""

    sampling: Sampling
    stop_ids: tuple[int, ...]
    pad_id: int
    batch_size: int | None = None
    """Answers written at a time; None is all."""

    def generate(self, models: Models, prompts: Sequence[Sequence[int]], seed: int) -> list[Answer]:
        """Write the answers in evaluation mode."""
        policy = unwrap(models.policy)
        device = next(policy.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        size = self.batch_size or len(prompts)
        was_training = policy.training
        policy.eval()
        try:
            parts = [
                self._write(policy, prompts[start : start + size], generator) for start in range(0, len(prompts), size)
            ]
        finally:
            policy.train(was_training)
        return [answer for part in parts for answer in part]

    def _write(self, policy: Any, prompts: Sequence[Sequence[int]], generator: torch.Generator) -> list[Answer]:
        ids = pad_rows(prompts, self.pad_id, side="left")
        mask = pad_rows([[1] * len(prompt) for prompt in prompts], 0, side="left")
        greedy = self.sampling.temperature == 0
        with torch.no_grad():
            output: Tensor = policy.generate(
                input_ids=ids.to(generator.device),
                attention_mask=mask.to(generator.device),
                generation_config=self._config(),
                logits_processor=LogitsProcessorList([] if greedy else [GumbelSampler(self.sampling, generator)]),
            )
        rows: list[list[int]] = output[:, ids.shape[1] :].tolist()
        return [self._answer(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]

    def _config(self) -> GenerationConfig:
        return GenerationConfig(
            do_sample=False,  # the highest of the noisy scores is the sample
            use_cache=True,
            max_new_tokens=self.sampling.max_new_tokens,
            repetition_penalty=self.sampling.repetition_penalty,
            eos_token_id=list(self.stop_ids),
            pad_token_id=self.pad_id,
        )

    def _answer(self, prompt: Sequence[int], row: list[int]) -> Answer:
        end = next((place for place, token in enumerate(row) if token in self.stop_ids), None)
        return Answer(list(prompt), row if end is None else row[: end + 1], end is not None)


def unwrap(policy: nn.Module) -> Any:
    """Return the model that can generate."""
    model = policy.module if isinstance(policy, DistributedDataParallel) else policy
    if not hasattr(model, "generate"):
        raise UserError(
            f"A policy wrapped as {type(policy).__name__} cannot generate; train on single devices or DDP."
        )
    return model


def sampling_of(generating: GeneratingArguments) -> Sampling:
    """Read the generation keys; `do_sample: false` writes the likeliest answer."""
    if not generating.max_new_tokens:
        raise UserError("max_new_tokens: 0 sets no cap on the answers that are learned from; give one, such as 256.")
    return Sampling(
        max_new_tokens=generating.max_new_tokens,
        temperature=generating.temperature if generating.do_sample else 0.0,
        top_p=generating.top_p,
        top_k=generating.top_k,
        repetition_penalty=generating.repetition_penalty,
    )


def make_engine(context: StageContext, batch_size: int | None) -> HfEngine:
    """Make the engine of a run."""
    return HfEngine(
        sampling_of(context.arguments.generating),
        tuple(context.template.get_stop_token_ids(context.tokenizer)),
        context.tokenizer.pad_token_id,
        batch_size,
    )


def rollout_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed of its own for each run, step and rank."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 4_099 + rank)
    return int(torch.randint(2**62, (), generator=generator))
