"""The stages dpo and kto from a configuration to the folder it leaves; references and the cache of their words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llamafactory.extras.errors import UserError
from llamafactory.train.tuner import run_exp


@pytest.fixture
def keys(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, monkeypatch: Any) -> dict[str, Any]:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))
    return {
        "model_name_or_path": str(tiny_llama_dir),
        "do_train": True,
        "dataset_dir": str(demo_dataset_dir),
        "template": "chatml",
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "lora_rank": 4,
        "max_steps": 4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_steps": 2,
        "bf16": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }


def stage_keys(stage: str, method: str) -> dict[str, Any]:
    name = "tiny_pairs" if stage == "dpo" else "tiny_marks"
    more = {"lora_dropout": 0.2} if method == "lora" else {"learning_rate": 0.001}
    return {"stage": stage, "dataset": name, "finetuning_type": method, **more}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = [
        path
        for path in folder.glob("*.safetensors")
        if path.name in ("adapter_model.safetensors", "model.safetensors")
    ]
    return load_file(file)


def logged(folder: Path, name: str) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def test_a_run_tells_what_users_look_for(keys: dict[str, Any], tmp_path: Path):
    run_exp({**keys, **stage_keys("dpo", "lora"), "val_size": 4, "do_eval": True})
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert {"eval_loss", "eval_rewards/margins", "eval_rewards/accuracies"} <= results.keys()
    line = json.loads((tmp_path / "out" / "trainer_log.jsonl").read_text().splitlines()[0])
    assert 0 <= line["accuracy"] <= 1


@pytest.mark.parametrize(("stage", "method"), [("dpo", "lora"), ("dpo", "full"), ("kto", "lora")])
def test_words_of_the_reference_computed_before_give_the_same_run(
    keys: dict[str, Any], tmp_path: Path, stage: str, method: str
):
    def written() -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("reference_logps/*/*")}

    keys |= stage_keys(stage, method)
    run_exp(keys)
    assert not written()
    run_exp({**keys, "precompute_ref_logps": True, "output_dir": str(tmp_path / "first")})
    kept = written()
    run_exp({**keys, "precompute_ref_logps": True, "output_dir": str(tmp_path / "second"), "seed": 3})
    assert written() == kept
    assert len(kept) == 1
    assert logged(tmp_path / "first", "loss") == pytest.approx(logged(tmp_path / "out", "loss"), abs=1e-5)
    assert logged(tmp_path / "first", "rewards/margins") == pytest.approx(
        logged(tmp_path / "out", "rewards/margins"), abs=1e-4
    )

    keys |= {"precompute_ref_logps": True, "max_samples": 9, "max_steps": 1}
    run_exp({**keys, "output_dir": str(tmp_path / "more")})
    assert len(written()) == 2  # other rows, another key


def test_n28_dpo_after_sft_starts_at_ln_2_and_saves_one_adapter(keys: dict[str, Any], tmp_path: Path):
    run_exp({**keys, **stage_keys("kto", "lora")})
    first = tmp_path / "out"
    keys |= {**stage_keys("dpo", "lora"), "adapter_name_or_path": str(first), "output_dir": str(tmp_path / "dpo")}
    run_exp(keys)
    assert logged(tmp_path / "dpo", "loss")[0] == pytest.approx(0.693147, abs=1e-5)
    assert logged(tmp_path / "dpo", "rewards/margins")[0] == pytest.approx(0, abs=1e-5)
    assert sorted(weights(tmp_path / "dpo")) == sorted(weights(first))
    assert not (tmp_path / "dpo" / "reference").exists()

    run_exp({**keys, "create_new_adapter": True, "output_dir": str(tmp_path / "fresh")})
    assert logged(tmp_path / "fresh", "loss")[0] == pytest.approx(0.693147, abs=1e-5)


def test_another_model_can_be_the_reference(keys: dict[str, Any], tmp_path: Path):
    run_exp({**keys, **stage_keys("kto", "full")})
    run_exp({**keys, **stage_keys("kto", "lora"), "output_dir": str(tmp_path / "adapter")})
    keys |= stage_keys("dpo", "lora")
    starts = {}
    for name, more in {
        "model": {"ref_model": str(tmp_path / "out")},
        "adapter": {"ref_model_adapters": str(tmp_path / "adapter")},
        "same": {"ref_model": keys["model_name_or_path"]},
    }.items():
        run_exp({**keys, **more, "output_dir": str(tmp_path / f"dpo_{name}"), "max_steps": 1})
        starts[name] = logged(tmp_path / f"dpo_{name}", "rewards/chosen")[0]
    assert starts["same"] == pytest.approx(0, abs=1e-5)
    assert abs(starts["model"]) > 1e-3
    assert abs(starts["adapter"]) > 1e-3


def test_an_evaluation_holds_an_adapter_against_the_bare_model(keys: dict[str, Any], tmp_path: Path):
    keys |= stage_keys("dpo", "lora")
    run_exp({**keys, "max_steps": 8, "do_eval": True, "eval_dataset": "tiny_pairs"})
    del keys["dataset"]
    keys |= {"do_train": False, "do_eval": True, "eval_dataset": "tiny_pairs", "output_dir": str(tmp_path / "eval")}
    run_exp({**keys, "adapter_name_or_path": str(tmp_path / "out"), "per_device_eval_batch_size": 5})
    one, two = (json.loads((tmp_path / name / "eval_results.json").read_text()) for name in ("out", "eval"))
    for name in ("eval_loss", "eval_rewards/margins"):
        assert one[name] == pytest.approx(two[name], abs=1e-4)
    assert one["eval_rewards/margins"] > 0.01


def test_simpo_needs_no_reference_and_unknown_losses_are_refused(keys: dict[str, Any], tmp_path: Path):
    run_exp({**keys, **stage_keys("dpo", "full"), "pref_loss": "simpo", "max_steps": 1})
    assert logged(tmp_path / "out", "logps/chosen")
    with pytest.raises(UserError, match="pref_loss"):
        run_exp({**keys, **stage_keys("dpo", "full"), "pref_loss": "sigmod", "output_dir": str(tmp_path / "no")})


def test_a_plugin_brings_a_loss_of_its_own(keys: dict[str, Any], tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from llamafactory.ops.preference import PREFERENCE_LOSSES, PreferenceLoss, sigmoid_loss\n"
        "def shifted(pairs, settings):\n"
        "    found = sigmoid_loss(pairs, settings)\n"
        "    return found._replace(losses_N=found.losses_N + 1)\n"
        "PREFERENCE_LOSSES.register('shifted', PreferenceLoss(shifted))\n"
    )
    keys |= {**stage_keys("dpo", "lora"), "plugins": str(tmp_path / "mine.py"), "max_steps": 1}
    run_exp({**keys, "pref_loss": "shifted"})
    assert logged(tmp_path / "out", "loss")[0] == pytest.approx(1.693147, abs=1e-5)
