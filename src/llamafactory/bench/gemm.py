"""What the machine's matrix products allow: the bound that no training step can pass.

LoRA multiplies every token with every weight twice, forward and for the gradient of the input: 4 operations per
parameter and token. Here these products alone are timed, for the shapes of the model's own layers, in bfloat16 (or
float32 where bfloat16 is slow).
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from .job import Job


NUM_TOKENS = 2048
NUM_REPEATS = 8


def measure(job: Job) -> dict[str, Any]:
    """Time the products of one pass over the layers; tokens_per_s is the bound."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from .reference import has_bf16

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job.model))
    shapes = Counter(tuple(module.weight.shape) for module in model.modules() if isinstance(module, torch.nn.Linear))
    dtype = torch.bfloat16 if has_bf16() else torch.float32
    seconds = sum(count * time_products(outputs, inputs, dtype) for (outputs, inputs), count in shapes.items())
    num_parameters = sum(outputs * inputs * count for (outputs, inputs), count in shapes.items())
    job.advance()
    return {
        "tokens_per_s": NUM_TOKENS / seconds,
        "gflops": 4 * num_parameters * NUM_TOKENS / seconds / 1e9,
        "parameters": num_parameters,
        "dtype": str(dtype).removeprefix("torch."),
        "num_threads": torch.get_num_threads(),
    }


def time_products(outputs: int, inputs: int, dtype: torch.dtype) -> float:
    """Return the seconds of x W^T and y W for NUM_TOKENS rows; the best of some repeats."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight_OI = torch.randn(outputs, inputs, dtype=dtype, device=device)
    x_TI = torch.randn(NUM_TOKENS, inputs, dtype=dtype, device=device)
    grad_TO = torch.randn(NUM_TOKENS, outputs, dtype=dtype, device=device)
    products = (lambda: torch.nn.functional.linear(x_TI, weight_OI), lambda: torch.mm(grad_TO, weight_OI))
    return sum(min(_seconds(product, device) for _ in range(NUM_REPEATS)) for product in products)


def _seconds(run: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
