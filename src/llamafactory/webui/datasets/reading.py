"""What the data panel reads: rows in this process (a tokenizer is enough), figures in one of their own.

Counting a large dataset takes minutes and memory, and prepares it for training on the way; a process can be stopped.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...extras.env import child_environment
from ...extras.errors import UserError
from ...hparams.config import write_value
from ...hparams.parser import load_run_config


if TYPE_CHECKING:
    from ...data.inspection.bench import Bench
    from ...data.inspection.preview import PreviewRow

Config = Mapping[str, Any]

DATA_KEYS = (
    *("model_name_or_path", "trust_remote_code", "use_fast_tokenizer", "stage", "template", "dataset", "eval_dataset"),
    *("dataset_dir", "cutoff_len", "train_on_prompt", "mask_history", "on_overlong", "enable_thinking", "packing"),
    *("neat_packing", "resize_vocab", "add_tokens", "add_special_tokens", "default_system", "tool_format"),
    *("predict_with_generate", "do_predict", "do_eval", "max_samples", "seed", "val_size", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "use_cpu"),
)
"""What rows and their counts depend on; everything else of the form may still be wrong while data is looked at."""
MAX_ROWS = 50
MAX_OFFSET = 1_000_000


def data_config(config: Config, output_dir: str = "saves") -> dict[str, Any]:
    """Return the part of a run's configuration that its data depends on."""
    kept = {key: value for key, value in config.items() if key in DATA_KEYS}
    return {**kept, "output_dir": output_dir}


def read_rows(config: Config, num_rows: int, offset: int) -> "list[PreviewRow]":
    """Return rows as the model will see them."""
    from ...data.inspection.preview import preview_data

    num_rows, offset = min(max(int(num_rows), 1), MAX_ROWS), min(max(int(offset), 0), MAX_OFFSET)
    bench = _bench(json.dumps(data_config(config), sort_keys=True, default=list))
    return list(preview_data(bench, num_rows, offset))


async def count_rows(config: Config, cwd: Path | None = None, timeout: float = 1800) -> dict[str, Any]:
    """Return the figures of `data stats`; leaving early stops the process that counts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.yaml"
        lines = (f"{key}: {write_value(value)}\n" for key, value in data_config(config, folder).items())
        path.write_text("".join(lines), encoding="utf-8")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llamafactory.cli", "data", "stats", str(path), "--json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=child_environment(),
            cwd=cwd,
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(), timeout)
        except TimeoutError:
            raise UserError(f"Counting took more than {timeout / 60:.0f} minutes and was stopped.") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise UserError(_last_words(errors.decode(errors="replace").replace(str(path), "the form")))
        return json.loads(output)


@lru_cache(maxsize=2)
def _bench(text: str) -> "Bench":
    """Load tokenizer and template once for many pages of rows."""
    from ...data.inspection.bench import load_bench

    return load_bench(load_run_config(json.loads(text), "train", announce=False))


def _last_words(errors: str) -> str:
    lines = [line.strip() for line in errors.strip().splitlines() if line.strip()]
    return lines[-1][:1000] if lines else "The rows could not be counted."
