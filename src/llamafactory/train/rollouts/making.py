"""One rollout up to its rewards: prompts in, judged answers out; the same for every stage that learns from tries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...extras.constants import IGNORE_INDEX
from ...extras.env import read_env
from ..objective import Batch, Models
from ..reference import measuring, reference_of
from ..stage import Collator, StageContext
from .answers import TokenOutputs, answer_batches, token_outputs
from .generation import Engine, make_engine, rollout_seed, sampling_of
from .rewards import Judged, Reward, judge_all, to_device
from .samples import NUM_SAMPLES, SampleLog
from .sources import make_rewards


@dataclass(frozen=True)
class Tries:
    """Judged answers; those to one prompt stand side by side. Shapes: S answers."""

    judged: Judged
    rewards_S: Tensor
    """On the CPU."""
    parts: Mapping[str, Tensor]
    """Rewards of each source."""


@dataclass(frozen=True)
class AnswerMaker:
    """Writes answers, has them judged, and makes batches of them."""

    engine: Engine
    rewards: Sequence[Reward]
    decode: Callable[[list[list[int]]], list[str]]
    collate: Collator
    batch_size: int
    """Answers in a batch to learn from."""
    temperature: float
    seed: int
    samples: SampleLog

    def make(self, models: Models, rows: Sequence[Mapping[str, Any]], step: int, num_each: int = 1) -> Tries:
        """Write `num_each` answers to each prompt and judge them."""
        repeated = [row for row in rows for _ in range(num_each)]
        prompts = [list(row["input_ids"]) for row in repeated]
        answers = self.engine.generate(models, prompts, rollout_seed(self.seed, step, read_env().rank))
        known = [[token for token in row.get("labels", ()) if token != IGNORE_INDEX] for row in repeated]
        judged = Judged(
            answers,
            self.decode([answer.prompt_ids for answer in answers]),
            self.decode([answer.ids for answer in answers]),
            {"answer": self.decode(known)},
        )
        rewards_S, parts = judge_all(self.rewards, models, judged)
        return Tries(judged, rewards_S, parts)

    def batches(self, tries: Tries, device: torch.device) -> list[Batch]:
        """Make the batches to learn from, on the device."""
        batches = answer_batches(tries.judged.answers, self.collate, self.batch_size)
        return [{name: to_device(value, device) for name, value in batch.items()} for batch in batches]

    def old_outputs(self, models: Models, batches: Sequence[Batch], **options: Any) -> list[TokenOutputs]:
        """Return what the policy that wrote the answers makes of their tokens."""
        with measuring(models.policy) as policy:
            return [token_outputs(policy, batch, temperature=self.temperature, **options) for batch in batches]

    def reference_logps(self, models: Models, batches: Sequence[Batch]) -> list[Tensor]:
        """Return the log-probabilities of the answer tokens under the reference, at the same temperature."""
        with reference_of(models) as reference:
            return [token_outputs(reference, batch, temperature=self.temperature).logps_K for batch in batches]

    def keep_samples(self, step: int, tries: Tries) -> None:
        """Write the first answers of the rollout to disk; done by one process."""
        if not read_env().is_main_process:
            return
        judged = tries.judged
        self.samples.write(
            step,
            (
                {
                    "prompt": judged.prompts[index],
                    "completion": judged.completions[index],
                    "reward": round(float(tries.rewards_S[index]), 6),
                    "finished": judged.answers[index].is_finished,
                }
                for index in range(min(NUM_SAMPLES, len(judged.answers)))
            ),
        )


def make_answer_maker(context: StageContext, collate: Collator) -> AnswerMaker:
    """Make it for the model of a run."""
    arguments, tokenizer = context.arguments, context.tokenizer

    def decode(rows: list[list[int]]) -> list[str]:
        return tokenizer.batch_decode(rows, skip_special_tokens=True)

    return AnswerMaker(
        engine=make_engine(context, arguments.finetuning.rollout_batch_size),
        rewards=make_rewards(context),
        decode=decode,
        collate=collate,
        batch_size=arguments.training.per_device_train_batch_size,
        temperature=sampling_of(arguments.generating).temperature,
        seed=arguments.training.seed,
        samples=SampleLog(Path(arguments.training.output_dir).expanduser()),
    )


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a model computes on."""
    return next(model.parameters()).device


def sum_over_ranks(sums: Tensor, device: torch.device) -> Tensor:
    """Add a small tensor up over all ranks."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return sums
    placed = sums.to(device)
    dist.all_reduce(placed)
    return placed.to(sums.device)
