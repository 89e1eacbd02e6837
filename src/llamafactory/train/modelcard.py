"""README.md of a result: what was trained on what, how, how well, and how to load it."""

import math
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..extras.version import VERSION
from ..hparams.methods import tuning_methods
from .stage import STAGES, RunArguments


if TYPE_CHECKING:
    from .trainer import CustomSeq2SeqTrainer

_HYPER_PARAMETERS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "seed",
)
_LORA = ("lora_rank", "lora_alpha", "lora_dropout", "lora_target")
_WHERE_SET = (
    "packing",
    "train_on_prompt",
    "mask_history",
    "neftune_noise_alpha",
    "label_smoothing_factor",
    "use_dft_loss",
    "use_asft_loss",
    "use_eaft_loss",
    "objective",
    "pure_bf16",
    "use_rslora",
    "use_dora",
    "additional_target",
    "freeze_trainable_layers",
)
"""Told only where they differ from their defaults."""
_WORDS = "AutoModelForCausalLM"
_IMPORT = "from transformers import {kind}, AutoTokenizer\n"
_TOKENIZER = 'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
_LIBRARIES = ("transformers", "peft", "torch", "datasets", "tokenizers")


def create_modelcard_and_push(
    trainer: "CustomSeq2SeqTrainer", arguments: RunArguments, metrics: Mapping[str, float]
) -> None:
    """Write README.md into output_dir and, with `push_to_hub`, upload the result."""
    trainer.model_card = model_card(arguments, metrics, num_ranks=trainer.args.world_size)
    trainer.create_model_card()
    if arguments.training.push_to_hub:
        trainer.push_to_hub()


def model_card(arguments: RunArguments, metrics: Mapping[str, float], num_ranks: int = 1) -> str:
    """Return the text of the card."""
    stage = STAGES.get(arguments.finetuning.stage)
    method = tuning_methods()[arguments.finetuning.finetuning_type].title
    base, name = _public_name(arguments.model.model_name_or_path), Path(arguments.training.output_dir).resolve().name
    lines = [
        _front_matter(arguments),
        f"# {name}\n",
        f"{base} after {stage.title} ({method}) on {_datasets(arguments) or 'no data set'}, "
        f"made with llamafactory {VERSION}.\n",
        "## How to load it\n",
        _loading(arguments),
        "## Training\n",
        _table(("setting", "value"), _settings(arguments, num_ranks)),
        "## Results\n",
        _table(("metric", "value"), [(key, _number(metrics[key])) for key in sorted(metrics)])
        if metrics
        else "Nothing was measured.\n",
        "## Versions\n",
        _table(("library", "version"), [("llamafactory", VERSION), *((lib, version(lib)) for lib in _LIBRARIES)]),
    ]
    return "\n".join(lines)


def _front_matter(arguments: RunArguments) -> str:
    base, is_adapter = arguments.model.model_name_or_path, _is_adapter(arguments)
    header: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-classification" if _is_score(arguments) else "text-generation",
        "tags": ["llama-factory", arguments.finetuning.finetuning_type, arguments.finetuning.stage],
    }
    if _is_hub_id(base):
        header["base_model"] = base
        header["base_model_relation"] = "adapter" if is_adapter else "finetune"
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"


def _loading(arguments: RunArguments) -> str:
    base, folder = arguments.model.model_name_or_path, Path(arguments.training.output_dir).name or "."
    kind, option = ("AutoModelForSequenceClassification", ", num_labels=1") if _is_score(arguments) else (_WORDS, "")
    imports = _IMPORT.format(kind=kind)
    if not _is_adapter(arguments):
        code = f'model = {kind}.from_pretrained("{folder}")\n'
        return _python(imports, code + _TOKENIZER.format(folder=folder))
    if _loads_directly(base):
        code = f'model = {kind}.from_pretrained("{_public_name(base)}"{option})\n'
        code += f'model = PeftModel.from_pretrained(model, "{folder}")\n'
        return _python(f"from peft import PeftModel\n{imports}", code + _TOKENIZER.format(folder=folder))

    words = f"model_name_or_path={_public_name(base)} adapter_name_or_path={folder}"
    if arguments.data.template:
        words += f" template={arguments.data.template}"
    talk, chat = ("talk to the adapter through llamafactory, or ", f"llamafactory-cli chat {words}\n")
    if _is_score(arguments):
        talk = chat = ""  # it scores, and writes nothing
    return (
        f"The base model is not in the format of transformers, so {talk}merge both into one model that plain "
        f"transformers loads:\n\n```bash\n{chat}llamafactory-cli export {words} export_dir=merged\n```\n"
    )


def _python(imports: str, code: str) -> str:
    return f"```python\n{imports}\n{code}```\n"


def _settings(arguments: RunArguments, num_ranks: int) -> list[tuple[str, str]]:
    training, finetuning = arguments.training, arguments.finetuning
    rows_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * num_ranks
    rows = [
        ("base model", _public_name(arguments.model.model_name_or_path)),
        ("data", _datasets(arguments)),
        ("template", arguments.data.template or "the model's own"),
        ("method", tuning_methods()[finetuning.finetuning_type].title),
    ]
    if _is_adapter(arguments):
        rows += [(key, _show(getattr(finetuning, key))) for key in _LORA]
    rows += [(key, _show(getattr(finetuning, key))) for key in STAGES.get(finetuning.stage).card_keys]
    rows += [(key, _show(getattr(training, key))) for key in _HYPER_PARAMETERS if getattr(training, key) != -1]
    rows += [("cutoff_len", str(arguments.data.cutoff_len)), ("rows per update", str(rows_per_step))]
    return [*rows, *_changed(arguments)]


def _changed(arguments: RunArguments) -> list[tuple[str, str]]:
    """Return what the user asked for beside the usual."""
    known = {
        item.name: (getattr(group, item.name), item.default)
        for group in (arguments.data, arguments.training, arguments.finetuning)
        for item in fields(group)
        if item.name in _WHERE_SET
    }
    return [(name, _show(value)) for name in _WHERE_SET for value, usual in [known[name]] if value and value != usual]


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    body = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"| {head[0]} | {head[1]} |\n|---|---|\n{body}\n"


def _is_adapter(arguments: RunArguments) -> bool:
    return tuning_methods()[arguments.finetuning.finetuning_type].is_adapter


def _is_score(arguments: RunArguments) -> bool:
    """Whether the result is a reward model."""
    return STAGES.get(arguments.finetuning.stage).head == "score"


def _is_hub_id(name: str) -> bool:
    """A hub id is "owner/name"; a path that exists here means nothing to others."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~", "pypi:")) and not Path(name).exists()


def _loads_directly(name: str) -> bool:
    return not name.startswith("pypi://") and not name.endswith(".gguf")


def _public_name(name: str) -> str:
    """Name a local model by its folder: the path above it is nobody's business."""
    return name if _is_hub_id(name) or name.startswith("pypi://") else Path(name).expanduser().resolve().name


def _datasets(arguments: RunArguments) -> str:
    return ", ".join(arguments.data.dataset or arguments.data.eval_dataset or ())


def _show(value: Any) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, tuple) else str(value)


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)
