"""Evaluation and prediction of the stages that learn from tries: what the likeliest answers are worth."""

from dataclasses import dataclass, replace
from typing import Any

from ..collation import row_collator
from ..objective import Batch, Models
from ..stage import StageContext
from .generation import HfEngine
from .making import AnswerMaker, make_answer_maker
from .schedule import ROWS, keep_rows


@dataclass(frozen=True)
class RewardPredictor:
    """Writes the likeliest answer to each prompt and has it judged."""

    maker: AnswerMaker

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Leave the prompts as they are."""
        return keep_rows(rows)

    def predict(self, models: Models, batch: Batch) -> list[dict[str, Any]]:
        """Return prompt, answer, the dataset's answer, reward, and whether the answer ended by itself."""
        tries = self.maker.make(models, batch[ROWS], 0)
        judged = tries.judged
        return [
            {
                "prompt": judged.prompts[index],
                "predict": judged.completions[index],
                "label": judged.columns["answer"][index],
                "reward": round(float(reward), 6),
                "finished": judged.answers[index].is_finished,
            }
            for index, reward in enumerate(tries.rewards_S.tolist())
        ]

    def measure(self, records: list[dict[str, Any]]) -> dict[str, float]:
        """Return the mean reward and the share of answers that ended by themselves."""
        count = max(len(records), 1)
        return {name: sum(float(record[name]) for record in records) / count for name in ("reward", "finished")}


def reward_predictor(context: StageContext) -> RewardPredictor:
    """Make it with an engine that does not draw, so that answers repeat at any batch size."""
    maker = make_answer_maker(context, row_collator(context))
    engine = maker.engine
    if isinstance(engine, HfEngine):
        engine = replace(engine, sampling=replace(engine.sampling, temperature=0.0))
    return RewardPredictor(replace(maker, engine=engine))
