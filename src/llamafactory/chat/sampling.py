"""Sampling with a generator per call: seeds repeat an answer, and the global random state is never touched."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .requests import GenerationOptions


Warper = Callable[[Any, torch.Tensor], torch.Tensor]
"""(ids so far, scores) -> scores, as transformers has them."""


class Sampler(LogitsProcessor):
    """Adds Gumbel noise to the shaped scores, so that taking the highest one draws from their distribution."""

    def __init__(self, warpers: list[Warper], generator: torch.Generator) -> None:
        self.warpers = warpers
        self.generator = generator

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return noisy scores; the model's greedy choice of them is the sample."""
        shaped = scores
        for warp in self.warpers:
            shaped = warp(input_ids, shaped)
        noise = torch.empty_like(shaped, dtype=torch.float32).exponential_(generator=self.generator)
        return shaped - noise.log()


def build_sampler(options: GenerationOptions, device: torch.device) -> LogitsProcessorList:
    """Return the processors for one call; an empty list is greedy."""
    if not options.is_sampled:
        return LogitsProcessorList()
    arguments = options.arguments
    warpers: list[Warper] = []
    if arguments.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(arguments.temperature))
    if arguments.top_k > 0:
        warpers.append(TopKLogitsWarper(arguments.top_k))
    if arguments.top_p < 1.0:
        warpers.append(TopPLogitsWarper(arguments.top_p))
    generator = torch.Generator(device)
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed(options.seed)
    return LogitsProcessorList([Sampler(warpers, generator)])
