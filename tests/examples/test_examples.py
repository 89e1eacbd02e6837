"""Every example parses as it stands; those that a CPU can run do run, with a tiny model and tiny data."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml


ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NOT_CONFIGS = {"tokens_cfg.yaml"}
YAML_FILES = sorted(
    str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.yaml") if path.name not in NOT_CONFIGS
)
INFERENCE = {"inference": "chat", "merge_lora": "export"}
DATASETS = {"rm": "tiny_pairs", "dpo": "tiny_pairs", "kto": "tiny_marks"}  # the other stages: tiny_alpaca
TRAIN_FILES = [name for name in YAML_FILES if name.split("/")[0] not in INFERENCE]
PACKAGES = ("quantization_bit", "qat_bits")  # keys whose packages lie in an environment of their own
NO_GPU = ("fp8", "fp8_backend", "fp8_enable_fsdp_float8_all_gather", "fsdp", "fsdp_config")


def command_of(name: str) -> str:
    return INFERENCE.get(name.split("/")[0], "train")


@pytest.mark.parametrize("name", YAML_FILES)
def test_each_example_parses(name: str) -> None:
    from llamafactory.hparams import get_infer_args, get_train_args

    parse = get_train_args if command_of(name) == "train" else get_infer_args
    model_args = parse([str(EXAMPLES / name)])[0]

    assert model_args.model_name_or_path


@pytest.mark.parametrize("name", YAML_FILES)
def test_each_example_says_what_it_shows_and_how_to_run_it(name: str) -> None:
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    comment = [line for line in lines if line.startswith("#")]

    assert lines[0].startswith("# ")
    commands = ("chat", "api") if command_of(name) == "chat" else (command_of(name),)
    assert any(f"llamafactory-cli {command} examples/{name}" in "\n".join(comment) for command in commands)


def test_the_shell_example_parses() -> None:
    from llamafactory.hparams import get_train_args

    script = (EXAMPLES / "train_lora" / "qwen3_lora_sft.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    words = shlex.split(script, comments=True)
    flags = words[words.index("train") + 1 :]

    assert get_train_args(flags)[2].learning_rate == 1e-4


def marked(name: str) -> Any:
    config = yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))
    return pytest.param(name, marks=[pytest.mark.quantized] if set(config) & set(PACKAGES) else [])


@pytest.mark.parametrize("name", map(marked, TRAIN_FILES))
def test_each_training_example_runs_on_a_tiny_model(
    name: str, tmp_path: Path, tiny_llama_dir: Path, demo_dataset_dir: Path
) -> None:
    from llamafactory.train.tuner import run_exp

    config: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))
    config |= {
        "model_name_or_path": str(tiny_llama_dir),
        "dataset_dir": str(demo_dataset_dir),
        "output_dir": str(tmp_path / "run"),
        "cutoff_len": 96,
        "preprocessing_num_workers": None,
        "max_new_tokens": 4,
    }
    for key in NO_GPU:
        config.pop(key, None)
    config.pop("adapter_name_or_path", None)
    config.pop("use_unsloth", None)  # needs a GPU
    config.pop("moe_aux_loss_coef", None)  # the tiny model is no mixture
    if config.get("use_llama_pro"):
        config["freeze_trainable_layers"] = 1
    if "new_special_tokens_config" in config:
        config["new_special_tokens_config"] = str(ROOT / config["new_special_tokens_config"])
    if config.pop("reward_model", None):  # another example trains it
        config["reward_funcs"] = "examples/extras/rewards/my_rewards.py:brief"
    if "reward_funcs" in config:
        config["reward_funcs"] = config["reward_funcs"].replace("examples/extras", f"{EXAMPLES}/extras")
    for key in ("galore_rank", "apollo_rank"):  # the tiny model's matrices have no 128 directions
        config |= {key: 4} if key in config else {}
    if "tokenized_path" in config:
        config["tokenized_path"] = str(tmp_path / "rows")
    if config.get("do_train"):
        dataset = DATASETS.get(config["stage"], "tiny_alpaca")
        config |= {"dataset": dataset, "max_steps": 2, "save_steps": 2, "eval_steps": 2}
    else:
        config |= {"eval_dataset": "tiny_alpaca", "max_samples": 4}
    if config.get("eval_strategy") != "steps":
        config.pop("eval_steps", None)

    run_exp(config)

    written = {path.name for path in (tmp_path / "run").iterdir()}
    expected = {"train_results.json", "trainer_log.jsonl"} if config.get("do_train") else {"predict_results.json"}
    assert expected <= written
