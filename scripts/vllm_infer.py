"""Answer the prompts of a dataset with vLLM's offline engine and write generated_predictions.jsonl, scored.

    python scripts/vllm_infer.py model_name_or_path=Qwen/Qwen3-4B dataset=alpaca_en_demo template=qwen3

Takes the keys of `llamafactory-cli chat` and of data (dataset, dataset_dir, template, cutoff_len, max_samples), and:
save_name, matrix_save_name (the scores), batch_size (prompts handed over at once), pipeline_parallel_size, seed.
Prompts are ids made as in training; vLLM gives tokens back.
"""

import json
import sys
from pathlib import Path
from typing import Any

from llamafactory.chat.outer_adapters import find_outer_adapters
from llamafactory.chat.vllm_engine import engine_options
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.extras.errors import UserError
from llamafactory.extras.packages import require
from llamafactory.hparams import TrainingArguments
from llamafactory.hparams.parser import get_infer_args
from llamafactory.model import load_tokenizer
from llamafactory.train.predictions import write_predictions
from llamafactory.train.sft.metric import text_similarity


OWN = {
    "save_name": "generated_predictions.jsonl",
    "matrix_save_name": None,
    "batch_size": 1024,
    "pipeline_parallel_size": 1,
    "seed": None,
}
DEFAULTS = {"dataset": "alpaca_en_demo", "dataset_dir": "data", "infer_backend": "vllm"}
PURPOSE = "scripts/vllm_infer.py"


def main(words: list[str]) -> int:
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return 0 if words else 2
    try:
        own, keys = split_words(words)
        records = predict(own, keys)
        write_predictions(Path(str(own["save_name"])), records)
    except (UserError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(records)} answers in {own['save_name']}.")
    if own["matrix_save_name"]:
        scores = text_similarity(records)
        Path(str(own["matrix_save_name"])).write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        print("\n".join(f"{name}: {value:.4f}" for name, value in scores.items()))
    return 0


def split_words(words: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide key=value words (or --key value) into those of this script and those of the configuration."""
    values: dict[str, str] = {}
    rest = list(words)
    while rest:
        name = rest.pop(0)
        if "=" not in name and rest:
            name = f"{name}={rest.pop(0)}"
        key, is_given, value = name.removeprefix("--").partition("=")
        if not is_given:
            raise UserError(f"{name!r} has no value; write key=value.")
        values[key] = value
    own: dict[str, Any] = {name: values.pop(name, default) for name, default in OWN.items()}
    own |= {name: int(own[name]) for name in ("batch_size", "pipeline_parallel_size", "seed") if own[name] is not None}
    return own, {**DEFAULTS, **values}


def predict(own: dict[str, Any], keys: dict[str, Any]) -> list[dict[str, str]]:
    """Return {"prompt", "predict", "label"} for each row, in row order."""
    dataset = keys.pop("dataset")
    model_args, data_args, _, generating_args = get_infer_args({**keys, "eval_dataset": dataset}, "chat")
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    training = TrainingArguments(output_dir="unused", predict_with_generate=True)
    rows: Any = get_dataset(template, model_args, data_args, training, "sft", tokenizer=tokenizer)["eval_dataset"]
    vllm: Any = require("vllm", "vllm", PURPOSE)
    adapters = find_outer_adapters(model_args)
    options = engine_options(model_args, adapters.folders, adapters.highest_rank)
    engine = vllm.LLM(**options | {"pipeline_parallel_size": own["pipeline_parallel_size"]})
    sampling = vllm.SamplingParams(**sampling_options(generating_args, template.get_stop_token_ids(tokenizer), own))
    lora = lora_request(adapters.folders)
    answers: list[str] = []
    for start in range(0, len(rows), own["batch_size"]):
        batch = rows.select(range(start, min(start + own["batch_size"], len(rows))))
        prompts = [{"prompt_token_ids": list(row["input_ids"])} for row in batch]
        outputs = engine.generate(prompts, sampling, lora_request=lora, use_tqdm=False)
        answers += [
            tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=generating_args.skip_special_tokens)
            for output in outputs
        ]
    return [
        {
            "prompt": str(tokenizer.decode(row["input_ids"])),
            "predict": answer,
            "label": str(tokenizer.decode([i for i in row["labels"] if i != IGNORE_INDEX], skip_special_tokens=True)),
        }
        for row, answer in zip(rows, answers, strict=True)
    ]


def sampling_options(generating: Any, stops: list[int], own: dict[str, Any]) -> dict[str, Any]:
    """Return what SamplingParams takes."""
    drawn = {"temperature": generating.temperature, "top_p": generating.top_p, "top_k": generating.top_k}
    return {
        **(drawn if generating.do_sample else {"temperature": 0.0}),
        "repetition_penalty": generating.repetition_penalty,
        "max_tokens": generating.max_new_tokens,
        "stop_token_ids": stops,
        "ignore_eos": True,  # the stop ids are the template's, and no others
        "detokenize": False,
        "seed": own["seed"],
    }


def lora_request(folders: Any) -> Any:
    """Return the request of the only adapter, or None."""
    if not folders:
        return None
    name, folder = next(iter(folders.items()))
    request: Any = require("vllm.lora.request", "vllm", PURPOSE).LoRARequest
    return request(lora_name=name, lora_int_id=1, lora_path=str(folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
