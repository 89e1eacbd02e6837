"""From a file of rows to ids and labels on disk: this package, the way of the documentation, and the tokenizer alone.

Rows are those of the demo data again and again, each made distinct by its number.
"""

import json
import time
from collections.abc import Callable, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from .job import Job
from .rows import INFO, load_rows


IGNORED = -100
CUTOFF_LEN = 1024
BATCH_SIZE = 1000


def ours(job: Job) -> dict[str, Any]:
    """Prepare the rows as `train` does, with nothing kept from an earlier time."""
    from ..data.loader import get_dataset
    from ..data.template import get_template_and_fix_tokenizer
    from ..hparams.parser import get_train_args
    from ..model.loader import load_tokenizer

    write_rows(job)
    config = {
        "model_name_or_path": job.model,
        "stage": "sft",
        "do_train": True,
        "dataset": "rows",
        "dataset_dir": job.folder,
        "cutoff_len": CUTOFF_LEN,
        "overwrite_cache": True,
        "output_dir": str(Path(job.folder) / "out"),
    }
    model_args, data_args, training_args, _, _ = get_train_args(config)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    return timed(job, lambda: get_dataset(template, model_args, data_args, training_args, "sft", **module))


def plain(job: Job) -> dict[str, Any]:
    """Do it as the documentation of transformers and datasets shows it."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    path = write_rows(job)
    tokenizer: Any = AutoTokenizer.from_pretrained(job.model)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML

    def encode(row: Mapping[str, str]) -> dict[str, list[int]]:
        query = "\n".join(text for text in (row["instruction"], row["input"]) if text)
        prompt = [{"role": "user", "content": query}]
        full = [*prompt, {"role": "assistant", "content": row["output"]}]
        head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = tokenizer.apply_chat_template(full, return_dict=True)["input_ids"]
        labels = [IGNORED] * len(head) + ids[len(head) :]
        return {"input_ids": ids[:CUTOFF_LEN], "labels": labels[:CUTOFF_LEN]}

    def run() -> Any:
        cache = str(Path(job.folder) / "cache")
        rows = load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
        return rows.map(encode, remove_columns=rows.column_names)

    return timed(job, run)


def encode_alone(job: Job) -> dict[str, Any]:
    """Do what no preparation can do without: encode the texts, as the model's format renders them, in batches."""
    from transformers import AutoTokenizer

    path = write_rows(job)
    tokenizer: Any = AutoTokenizer.from_pretrained(job.model)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML
    rows = json.loads(path.read_text(encoding="utf-8"))
    dialogues = [
        [{"role": "user", "content": prompt_of(row)}, {"role": "assistant", "content": row["output"]}] for row in rows
    ]
    texts: list[str] = [tokenizer.apply_chat_template(dialogue, tokenize=False) for dialogue in dialogues]

    def run() -> None:
        for start in range(0, len(texts), BATCH_SIZE):
            batch = tokenizer.backend_tokenizer.encode_batch(
                texts[start : start + BATCH_SIZE], add_special_tokens=False
            )
            sum(len(encoding.ids) for encoding in batch)

    return timed(job, run)


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""For models without a format of their own."""


def write_rows(job: Job) -> Path:
    """Write the rows and say in dataset_info.json where they are."""
    source = str(job.settings.get("source", ""))
    rows, _ = load_rows("sft", Path(source) if source else None)
    numbered = [
        {**row, "instruction": f"{row['instruction']} ({number})"}
        for number, row in enumerate(islice(cycle(rows), int(job.settings["rows"])))
    ]
    path = Path(job.folder) / "rows.json"
    path.write_text(json.dumps(numbered), encoding="utf-8")
    path.with_name("dataset_info.json").write_text(json.dumps({"rows": INFO["sft"]}), encoding="utf-8")
    return path


def prompt_of(row: Mapping[str, str]) -> str:
    """Return what the user says."""
    return "\n".join(text for text in (row["instruction"], row["input"]) if text)


def timed(job: Job, run: Callable[[], Any]) -> dict[str, Any]:
    """Time the work; threads and child processes count as the wall clock sees them."""
    num_rows = int(job.settings["rows"])
    start, cpu = time.perf_counter(), time.process_time()
    run()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    job.advance()
    return {
        "measured_s": seconds,
        "measured_cpu_s": cpu_seconds,
        "rows_per_s": num_rows / seconds,
        "cpu_s_per_1000_rows": 1000 * cpu_seconds / num_rows,
    }
