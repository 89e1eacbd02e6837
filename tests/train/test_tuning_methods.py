"""Every method of tuning: trained, saved whole (N39), resumed bit for bit (N40), used again as it was (N36)."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import load, logits

from llamafactory.extras.errors import UserError
from llamafactory.train.tuner import export_model, run_exp


VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"finetuning_type": "lora"},
    "rslora": {"finetuning_type": "lora", "use_rslora": True},
    "dora": {"finetuning_type": "lora", "use_dora": True},
    "pissa": {"finetuning_type": "lora", "pissa_init": True},
    "olora": {"finetuning_type": "lora", "lora_init": "olora"},
    "eva": {"finetuning_type": "lora", "lora_init": "eva"},
    "adalora": {"finetuning_type": "adalora", "lora_rank": 2, "adalora_start": 1, "adalora_end": 1},
    "oft": {"finetuning_type": "oft", "oft_block_size": 8},
    "vera": {"finetuning_type": "vera"},
    "loha": {"finetuning_type": "loha"},
    "lokr": {"finetuning_type": "lokr"},
    "ia3": {"finetuning_type": "ia3"},
    "prompt_tuning": {"finetuning_type": "prompt_tuning", "num_virtual_tokens": 4},
    "p_tuning": {"finetuning_type": "p_tuning", "num_virtual_tokens": 4},
    "prefix_tuning": {"finetuning_type": "prefix_tuning", "num_virtual_tokens": 4},
    "prefix_projection": {"finetuning_type": "prefix_tuning", "num_virtual_tokens": 4, "prefix_projection": True},
}
CARRYING = ("adalora", "p_tuning", "prefix_projection")
"""They keep beside the adapter what training goes on with, or leave out what was pruned."""
UNMERGED = ("prompt_tuning", "p_tuning", "prefix_tuning", "prefix_projection")


def config(model: Path, data: Path, output: Path, **more: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model),
        "stage": "sft",
        "do_train": True,
        "dataset": "tiny_alpaca",
        "dataset_dir": str(data),
        "cutoff_len": 64,
        "max_samples": 8,
        "output_dir": str(output),
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        **more,
    }


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {
        f"{path.name}:{key}": value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()
    }


def shapes_on_disk(folder: Path) -> list[tuple[int, ...]]:
    return sorted(tuple(value.shape) for value in tensors(folder).values())


def shapes_in_memory(base: Path, folder: Path) -> list[tuple[int, ...]]:
    """What PEFT itself would save of the adapter that it reads from a folder."""
    from peft import PeftModel, get_peft_model_state_dict

    model: Any = PeftModel.from_pretrained(load(base), str(folder))
    return sorted(tuple(value.shape) for value in get_peft_model_state_dict(model).values())


@pytest.mark.parametrize("name", list(VARIANTS))
def test_n36_n39_n40_a_method_trains_resumes_bit_for_bit_and_answers_as_it_was_trained(
    name: str, tmp_path: Path, tiny_llama_dir: Path, demo_dataset_dir: Path
) -> None:
    values = VARIANTS[name]
    run_exp(config(tiny_llama_dir, demo_dataset_dir, tmp_path / "whole", **values))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "rest" / "checkpoint-2")
    run_exp(
        config(
            tiny_llama_dir,
            demo_dataset_dir,
            tmp_path / "rest",
            resume_from_checkpoint=str(tmp_path / "rest" / "checkpoint-2"),
            **values,
        )
    )

    whole, rest = tensors(tmp_path / "whole"), tensors(tmp_path / "rest")
    assert whole.keys() == rest.keys()
    assert [key for key in whole if not torch.equal(whole[key], rest[key])] == []
    early = tensors(tmp_path / "whole" / "checkpoint-2")
    assert any(not torch.equal(early[key], whole[key]) for key in whole)

    if name not in CARRYING:
        assert shapes_on_disk(tmp_path / "whole") == shapes_in_memory(tiny_llama_dir, tmp_path / "whole")
    assert [key for key, value in whole.items() if not value.any()] == []
    assert [key for key, value in whole.items() if not torch.isfinite(value).all()] == []

    adapted = load(tiny_llama_dir, adapter_name_or_path=str(tmp_path / "whole"))
    answer, base = logits(adapted), logits(load(tiny_llama_dir))
    assert float((answer - base).abs().max() / base.abs().max()) > 1e-4
    words = {
        "model_name_or_path": str(tiny_llama_dir),
        "adapter_name_or_path": str(tmp_path / "whole"),
        "export_dir": str(tmp_path / "merged"),
        "infer_dtype": "float32",
    }
    if name in UNMERGED:
        with pytest.raises(UserError, match="cannot be merged"):
            export_model(words)
    else:
        export_model(words)
        assert float((logits(load(tmp_path / "merged")) - answer).abs().max() / answer.abs().max()) < 1e-5
