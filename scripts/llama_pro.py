"""Put new blocks into a model, which change nothing until they are trained (LLaMA Pro, arxiv.org/abs/2401.02415).

    python scripts/llama_pro.py model_name_or_path=Qwen/Qwen3-4B output_dir=models/qwen3-pro num_expand=4

Then train only these: `use_llama_pro: true`, `freeze_trainable_layers: <num_expand>`, finetuning_type freeze or lora.
"""

import copy
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM

from llamafactory.extras.errors import UserError
from llamafactory.hparams import ModelArguments
from llamafactory.model.dtype import stored_dtype
from llamafactory.model.expansion import expand_blocks, largest_change
from llamafactory.model.loader import load_config, load_tokenizer, load_weights


TOLERANCE = 1e-5
"""Largest change of a logit, as a share of the largest one."""
KEYS = ("model_name_or_path", "output_dir", "num_expand", "shard_size")


def main(words: list[str]) -> int:
    """Expand, save, read back and compare."""
    values = dict(word.lstrip("-").split("=", 1) for word in words if "=" in word)
    unknown = sorted(set(values) - set(KEYS))
    if unknown or not {"model_name_or_path", "output_dir", "num_expand"} <= set(values):
        print(f"usage: llama_pro.py {' '.join(f'{key}=...' for key in KEYS)}", file=sys.stderr)
        return 2
    try:
        change = expand(
            values["model_name_or_path"],
            Path(values["output_dir"]),
            int(values["num_expand"]),
            values.get("shard_size", "5GB"),
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{values['output_dir']}: {values['num_expand']} new blocks; logits changed by {change:.1e} of the largest.")
    return 0


def expand(source: str, target: Path, num_new: int, shard_size: str = "5GB") -> float:
    """Write the expanded model and return by how much it answers differently."""
    if target.exists() and any(target.iterdir()):
        raise UserError(f"output_dir {str(target)!r} already holds something: remove it or choose another folder.")
    arguments = ModelArguments(model_name_or_path=source)
    config = load_config(arguments)
    model = load_weights(config, arguments, stored_dtype(config), placed=False)
    plain = load_weights(copy.deepcopy(config), arguments, stored_dtype(config), placed=False)
    expand_blocks(model, num_new)
    model.save_pretrained(target, max_shard_size=shard_size)
    load_tokenizer(arguments)["tokenizer"].save_pretrained(target)
    written = AutoModelForCausalLM.from_pretrained(target, dtype="auto", local_files_only=True)
    change = largest_change(plain.eval(), written.eval())
    if change > TOLERANCE:
        raise UserError(
            f"The new blocks of {target} change the answers by {change:.1e}: this model cannot be expanded."
        )
    return change


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
