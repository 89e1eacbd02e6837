"""A user's own loss, metric, callback and stage, from a file outside the package."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamafactory.extras.errors import UserError
from llamafactory.hparams import get_train_args
from llamafactory.train.plugins import METRICS, load_plugins
from llamafactory.train.stage import STAGES
from llamafactory.train.tuner import run_exp


EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "extras" / "plugins" / "my_plugin.py"


@pytest.fixture
def keys(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": str(tiny_llama_dir),
        "dataset": "tiny_alpaca",
        "dataset_dir": str(demo_dataset_dir),
        "template": "chatml",
        "output_dir": str(tmp_path / "out"),
        "plugins": str(EXAMPLE),
        "learning_rate": 0.01,
        "max_steps": 2,
        "logging_steps": 1,
        "bf16": False,
        "disable_tqdm": True,
        "save_strategy": "no",
    }


def test_loss_metric_and_callback_of_the_example_take_part(keys: dict[str, Any], tmp_path: Path):
    run_exp({**keys, "do_train": True, "objective": "focal"})
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    first = next(entry for entry in state["log_history"] if "loss" in entry)
    assert 0 < first["loss"] < first["cross_entropy"]  # (1 - p)^2 < 1
    assert (tmp_path / "out" / "note.txt").read_text() == "finished at step 2\n"

    predict = {
        "output_dir": str(tmp_path / "predict"),
        "do_predict": True,
        "predict_with_generate": True,
        "dataset": None,
        "eval_dataset": "tiny_alpaca",
        "max_samples": 3,
        "max_new_tokens": 2,
        "metrics": "exact_match",
    }
    run_exp({**keys, **predict})
    run_exp({**keys, "plugins": None, "do_train": True, "output_dir": str(tmp_path / "without")})
    assert not (tmp_path / "without" / "note.txt").exists()
    results = json.loads((tmp_path / "predict" / "predict_results.json").read_text())
    assert results["predict_exact_match"] == 0.0
    assert math.isfinite(results["predict_rouge-1"])


def test_a_stage_of_ones_own_runs(keys: dict[str, Any], tmp_path: Path):
    plugin = tmp_path / "own_stage.py"
    plugin.write_text(
        "from dataclasses import replace\n"
        "from llamafactory.train.plugins import STAGES\n"
        "STAGES.register('mine', replace(STAGES.get('sft'), name='mine', title='a stage of my own'))\n"
    )
    program = "import sys, json; from llamafactory.train.tuner import run_exp; run_exp(json.loads(sys.argv[1]))"
    config = json.dumps({**keys, "do_train": True, "stage": "mine", "plugins": str(plugin)})
    subprocess.run([sys.executable, "-c", program, config], check=True)  # the registry of this process stays clean
    assert (tmp_path / "out" / "train_results.json").is_file()
    assert "mine" not in STAGES


def test_names_that_nothing_explains_are_refused(keys: dict[str, Any], tmp_path: Path):
    with pytest.raises(UserError, match=r"stage is 'sftt' but must be one of .* did you mean 'sft'"):
        get_train_args({**keys, "plugins": None, "stage": "sftt"})
    with pytest.raises(UserError, match=r"Unknown stage 'sftt'\. Did you mean 'sft'"):
        run_exp({**keys, "do_train": True, "stage": "sftt"})
    with pytest.raises(UserError, match=r"Unknown objective 'fokal'\. Did you mean 'focal'"):
        run_exp({**keys, "do_train": True, "objective": "fokal"})
    with pytest.raises(UserError, match="measured on predictions, and this run makes none"):
        run_exp({**keys, "do_train": True, "metrics": "exact_match"})


@pytest.mark.parametrize(("name", "message"), [("nowhere.py", "no file '.*nowhere.py'"), ("no.where", "no module")])
def test_a_missing_plugin_is_one_sentence(name: str, message: str):
    with pytest.raises(UserError, match=message):
        load_plugins([name])


def test_a_file_is_loaded_once_and_its_mistakes_are_shown(tmp_path: Path):
    load_plugins([str(EXAMPLE), str(EXAMPLE)])
    assert "exact_match" in METRICS
    broken = tmp_path / "broken.py"
    broken.write_text("import a_module_that_is_missing\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
            load_plugins([str(broken)])
