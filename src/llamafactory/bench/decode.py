"""Greedy answers: this package's chat engine against `generate` of transformers, one request and sixteen at once.

All answers have the same number of tokens (end tokens are passed over), so both sides do the same work. The other side
gets its sixteen prompts as one padded batch, which is the best that `generate` can do with them; requests of their own
that come at the same time would wait for each other there.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

from .job import Job
from .preprocess import CHATML, prompt_of
from .rows import load_rows


NUM_ALONE = 4
NUM_TOGETHER = 16


def prompts_of(job: Job) -> list[str]:
    """Return the questions; the first one warms up."""
    source = str(job.settings.get("source", ""))
    rows, _ = load_rows("sft", Path(source) if source else None)
    return [prompt_of(row) for row in rows[: NUM_TOGETHER + 1]]


def plain(job: Job) -> dict[str, Any]:
    """Call `generate` for every prompt, and once for all of them as a padded batch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .reference import has_bf16

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer: Any = AutoTokenizer.from_pretrained(job.model, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML
    dtype = torch.bfloat16 if has_bf16() else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype)
    model = model.to(device).eval()

    def answer(prompts: list[str]) -> int:
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            for prompt in prompts
        ]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(device)
        with torch.inference_mode():
            size = job.settings["new_tokens"]
            output = model.generate(**batch, do_sample=False, max_new_tokens=size, min_new_tokens=size)
        return output[:, batch["input_ids"].shape[1] :].numel()

    return measure(job, lambda prompt: answer([prompt]), answer)


def ours(job: Job) -> dict[str, Any]:
    """Ask the chat engine, one request after another and sixteen at a time."""
    from ..chat.chat_model import ChatModel

    chat = ChatModel({"model_name_or_path": job.model, "infer_backend": "huggingface", "infer_dtype": _dtype()})
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": job.settings["new_tokens"], "ignore_eos": True}

    def ask(prompt: str) -> int:
        return chat.chat([{"role": "user", "content": prompt}], **options)[0].response_length

    async def ask_all(prompts: list[str]) -> int:
        answers = [chat.achat([{"role": "user", "content": prompt}], **options) for prompt in prompts]
        return sum(answer[0].response_length for answer in await asyncio.gather(*answers))

    return measure(job, ask, lambda prompts: asyncio.run(ask_all(prompts)))


def measure(job: Job, one: Any, together: Any) -> dict[str, Any]:
    """Time both ways; the first answer is not counted."""
    first, *prompts = prompts_of(job)
    one(first)
    start, cpu = time.perf_counter(), time.process_time()
    tokens = sum(one(prompt) for prompt in prompts[:NUM_ALONE])
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    start = time.perf_counter()
    many = together(prompts)
    together_s = time.perf_counter() - start
    job.advance()
    return {
        "tokens": tokens,
        "measured_s": seconds,
        "tokens_per_s": tokens / seconds,
        "cpu_s_per_1000_tokens": 1000 * cpu_seconds / max(tokens, 1),
        "concurrent_tokens": many,
        "concurrent_tokens_per_s": many / together_s,
        "concurrent_over_single": many / together_s / (tokens / seconds),
    }


def _dtype() -> str:
    """The number format of the other side: bfloat16 where it is fast."""
    from .reference import has_bf16

    return "bfloat16" if has_bf16() else "float32"
