"""SFT and reward modelling teach what carries over to rows that were not trained on, on a real 135M model.

Two minutes each on a quiet laptop;
`pytest -m learning -s tests/learning/test_supervised_learning.py` shows the curves.
"""

import json
import random
from pathlib import Path

import pytest
from real_model import curve, learn, write_dataset


TOPICS = (
    "bread",
    "rain",
    "a bicycle",
    "the moon",
    "a library",
    "coffee",
    "a garden",
    "snow",
    "a violin",
    "a train",
    "honey",
    "a bridge",
    "chess",
    "a mountain",
    "paper",
    "a clock",
)
QUESTIONS = ("Tell me about {}.", "What should I know about {}?", "Why do people like {}?", "Explain {} to a child.")
FACTS = (
    "People have known {} for a very long time.",
    "You can find {} in many places.",
    "There is a lot to say about {}.",
    "Many stories are told about {}.",
)
GLAD = ("Of course, with pleasure!", "I am happy to help.", "What a lovely question!", "Thank you for asking.")
RUDE = ("What a stupid question.", "Leave me alone.", "I do not care at all.", "You are wasting my time.")


def draw_rows(count: int) -> list[dict[str, str]]:
    """Questions, each with a friendly and a rude answer that say the same."""
    draw = random.Random(0)  # noqa: S311
    rows = []
    for number in range(count):
        topic = TOPICS[number % len(TOPICS)]
        fact = draw.choice(FACTS).format(topic)
        glad, rude = (
            " ".join(draw.sample([draw.choice(manners), fact], 2))  # the manners come first or last
            for manners in (GLAD, RUDE)
        )
        question = draw.choice(QUESTIONS).format(topic)
        rows.append({"instruction": question, "input": "", "output": glad, "chosen": glad, "rejected": rude})
    return rows


@pytest.mark.learning
def test_sft_lowers_the_loss_of_rows_that_it_has_not_seen(tmp_path: Path):
    log = learn(
        tmp_path / "out",
        **write_dataset(tmp_path / "data", draw_rows(64)),
        stage="sft",
        val_size=16,
        per_device_train_batch_size=8,
        learning_rate=5e-4,
        num_train_epochs=2,
        eval_strategy="epoch",
        eval_on_start=True,
    )
    losses = curve(log, "eval_loss")
    curve(log, "loss")
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.learning
def test_a_reward_model_orders_pairs_that_it_has_not_seen(tmp_path: Path):
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    log = learn(
        tmp_path / "out",
        **write_dataset(tmp_path / "data", draw_rows(80), ranking=True, columns=columns),
        stage="rm",
        val_size=32,
        do_predict=True,
        per_device_train_batch_size=8,
        learning_rate=2e-4,
        num_train_epochs=2,
        eval_strategy="epoch",
        eval_on_start=True,
    )
    accuracies = curve(log, "eval_accuracy")
    curve(log, "loss")
    assert accuracies[0] < 0.7 < accuracies[-1]
    lines = (tmp_path / "out" / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert sum(record["chosen"] > record["rejected"] for record in records) / len(records) > 0.7
