"""PPO and GRPO raise a programmatic reward while they stay near their reference, on a real 135M model.

The reward counts a letter. Three minutes each on a quiet laptop;
`pytest -m learning -s tests/learning/test_rollout_learning.py` shows the curves.
"""

from pathlib import Path
from typing import Any

import pytest
from real_model import curve, learn, mean, write_dataset


REWARD = "def letters(completions): return [float(text.count('o')) for text in completions]\n"
PROMPTS = (
    "Name a fruit.",
    "Say hello.",
    "Describe the sea.",
    "What is snow?",
    "Name a color.",
    "Tell me a joke.",
    "What is love?",
    "Name an animal.",
    "Describe a tree.",
    "What is a car?",
    "Write a title.",
    "Name a country.",
    "What is time?",
    "Describe rain.",
    "Name a sport.",
    "What is art?",
)


def curves(folder: Path, **keys: Any) -> dict[str, list[float]]:
    """Learn from 192 answers: 12 rollouts of 16, each passed over twice; a logged value is that of one rollout."""
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    rows = [{"instruction": prompt, "input": "", "output": ""} for prompt in PROMPTS]
    log = learn(
        folder / "out",
        **write_dataset(folder / "data", rows),
        per_device_train_batch_size=16,
        max_steps=24,
        num_train_epochs=99,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_new_tokens=12,
        reward_funcs=f"{folder / 'rewards.py'}:letters",
        logging_steps=2,
        **keys,
    )
    return {name: curve(log, name) for name in ("reward", "kl", "entropy", "clip_fraction")}


@pytest.mark.learning
def test_grpo_raises_the_reward(tmp_path: Path):
    found = curves(tmp_path, stage="grpo", num_generations=8, grpo_epochs=2, grpo_beta=0.01)
    assert mean(found["reward"][-4:]) > mean(found["reward"][:4]) + 0.5
    assert mean(found["kl"][1:]) < 2  # nats per token


@pytest.mark.learning
def test_ppo_raises_the_reward(tmp_path: Path):
    found = curves(tmp_path, stage="ppo", ppo_epochs=2, ppo_kl_coef=0.02)
    assert mean(found["reward"][-4:]) > mean(found["reward"][:4]) + 0.5
    assert mean(found["kl"][-4:]) < 24  # nats per answer: 2 per token
