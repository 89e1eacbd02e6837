"""What an answer is worth: Python functions, a reward model beside the policy, or a server.

A function is named in `reward_funcs`, as `path/to/file.py:name` or by the name that a plug-in registered. It is called
with lists by name (those that it names) and returns one number per answer, or None where it does not apply:

    def short(prompts, completions, **columns):
        return [-len(text) / 100 for text in completions]

`columns["answer"]` holds the answers of the dataset, "" where a row has none.
"""

import hashlib
import importlib.util
import inspect
import json
import math
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ...extras.errors import UserError
from ..objective import Models
from ..plugins import REWARDS
from ..rm.scoring import ScoredCollator, score_sequences
from .generation import Answer


REWARD = "reward"
"""Name of the helper model that scores."""
API_TIMEOUT = 120.0  # seconds


class Judged(NamedTuple):
    """Answers to be judged, as ids and as text."""

    answers: list[Answer]
    prompts: list[str]
    completions: list[str]
    columns: dict[str, list[str]]


Judge = Callable[[Models, Judged], list[float]]
"""Returns one number per answer; nan where it does not apply."""


@dataclass(frozen=True)
class Reward:
    """One source of reward; the reward of an answer is the weighted sum of all sources."""

    name: str
    judge: Judge
    weight: float = 1.0


def judge_all(rewards: Sequence[Reward], models: Models, judged: Judged) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the rewards [S] on the CPU, and those of each source by its name; a source may not apply to all."""
    parts = {reward.name: torch.tensor(reward.judge(models, judged), dtype=torch.float32) for reward in rewards}
    weights = {reward.name: reward.weight for reward in rewards}
    total = torch.stack([weights[name] * part.nan_to_num(0.0) for name, part in parts.items()]).sum(dim=0)
    return total, parts


@dataclass(frozen=True)
class FunctionJudge:
    """Calls a Python function and checks what it returns."""

    name: str
    function: Callable[..., Any]

    def __call__(self, models: Models, judged: Judged) -> list[float]:
        given: dict[str, Any] = {"prompts": judged.prompts, "completions": judged.completions, **judged.columns}
        parameters = inspect.signature(self.function).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            given = {name: values for name, values in given.items() if name in parameters}
        found = self.function(**given)
        try:
            numbers = [math.nan if value is None else float(value) for value in found]
        except (TypeError, ValueError) as error:
            raise UserError(
                f"The reward function {self.name} returned {str(found)[:80]!r}; it must return a list of numbers."
            ) from error
        if len(numbers) != len(judged.completions) or any(math.isinf(number) for number in numbers):
            raise UserError(
                f"The reward function {self.name} returned {len(numbers)} numbers for {len(judged.completions)} "
                "answers, or an infinite one; it must return one finite number, or None, for each."
            )
        return numbers


@dataclass(frozen=True)
class ModelJudge:
    """Scores prompt and answer with a reward model, on the last token of the answer and never on padding."""

    collate: ScoredCollator
    batch_size: int

    def __call__(self, models: Models, judged: Judged) -> list[float]:
        model, scores = models.helpers[REWARD], list[float]()
        device = next(model.parameters()).device
        rows = [[*answer.prompt_ids, *answer.ids] for answer in judged.answers]
        with torch.no_grad():
            for start in range(0, len(rows), self.batch_size):
                part = rows[start : start + self.batch_size]
                batch = self.collate(
                    [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids} for ids in part]
                )
                placed = {name: to_device(value, device) for name, value in batch.items()}
                scores += score_sequences(model, placed).tolist()
        return scores


@dataclass(frozen=True)
class ApiJudge:
    """Asks a server: POST {"model", "messages": [text, ...]} and get {"scores": [number, ...]}.

    A text is prompt and answer as the policy saw them, control tokens included.
    """

    url: str
    decode: Callable[[list[list[int]]], list[str]]
    timeout: float = API_TIMEOUT

    def __call__(self, models: Models, judged: Judged) -> list[float]:
        texts = self.decode([[*answer.prompt_ids, *answer.ids] for answer in judged.answers])
        body = json.dumps({"model": "model", "messages": texts}).encode()
        header = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url, body, header, method="POST")  # noqa: S310  (make_rewards: http only)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:  # noqa: S310
                reply: Any = json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise UserError(
                f"The reward server {self.url} refused the answers: {error.code} {error.reason}."
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"The reward server {self.url} gave no usable reply: {error}.") from error
        scores: Any = cast("dict[str, Any]", reply).get("scores") if isinstance(reply, dict) else None
        if not _are_numbers(scores, len(texts)):
            raise UserError(
                f"The reward server {self.url} replied {str(reply)[:80]!r}; it must reply "
                f'{{"scores": [...]}} with {len(texts)} numbers.'
            )
        return [float(score) for score in scores]


def function_reward(name: str, weight: float = 1.0) -> Reward:
    """Find a reward function: `file.py:name`, or a name that a plug-in registered."""
    file, colon, attribute = name.rpartition(":")
    if not colon:
        return Reward(name, FunctionJudge(name, REWARDS.get(name)), weight)
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"reward_funcs: there is no file {file!r}; write path/to/file.py:name_of_function.")
    function = getattr(_load(path), attribute, None)
    if not callable(function):
        raise UserError(f"reward_funcs: {file!r} defines no function {attribute!r}.")
    return Reward(attribute, FunctionJudge(name, function), weight)


def to_device(value: Any, device: torch.device) -> Any:
    """Move a tensor; leave everything else."""
    return value.to(device) if isinstance(value, Tensor) else value


def _load(path: Path) -> Any:
    name = f"llamafactory_rewards_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"reward_funcs: {str(path)!r} cannot be imported as Python.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def _are_numbers(scores: Any, count: int) -> bool:
    if not isinstance(scores, list) or len(cast("list[Any]", scores)) != count:
        return False
    items: Mapping[int, Any] = dict(enumerate(cast("list[Any]", scores)))
    return all(isinstance(item, int | float) and math.isfinite(item) for item in items.values())
