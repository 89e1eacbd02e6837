"""The native step against transformers' model: Llama and what looks like it, and rows that do not see each other."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from llamafactory.chat.native_steps import native_steps
from llamafactory.chat.page_memory import measure_error
from llamafactory.chat.paged_model import PagedModel, Segment
from llamafactory.ops.native import native_library


pytestmark = pytest.mark.skipif(native_library("decoder") is None, reason="no C++ compiler")

SIZES: dict[str, Any] = {
    "vocab_size": 203,
    "hidden_size": 96,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True},
    "mistral": {"sliding_window": 20},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {},
    "granite": {"residual_multiplier": 0.3},
}


def make(kind: str, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    config = AutoConfig.for_model(kind, **SIZES | KINDS[kind] | more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape).to(dtype) * 0.2 + (parameter.dim() == 1)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_gives_the_models_own_scores(kind: str, dtype: torch.dtype) -> None:
    paged = PagedModel(make(kind, dtype), 16)

    assert paged.native is not None
    assert measure_error(paged, "sdpa") < (1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_another_structure_is_left_to_transformers(kind: str) -> None:
    names: dict[str, Any] = {"n_embd": 32, "n_layer": 1, "n_head": 2} if kind == "gpt2" else SIZES
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **names))
    assert native_steps(model, [], {}) is None


def test_the_start_up_check_finds_what_structure_does_not_show() -> None:
    paged = PagedModel(make("granite"), 16)
    assert paged.native is None or measure_error(paged, "sdpa") > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    paged = PagedModel(make("llama", dtype), 32)
    prompts = torch.randint(0, 203, (7, 40), generator=torch.Generator().manual_seed(1)).tolist()
    for row, prompt in enumerate(prompts):
        paged.step([Segment(prompt[: 20 + row], 0, [2 * row, 2 * row + 1])])

    def next_of(rows: list[int]) -> Tensor:
        return paged.step(
            [Segment([prompts[row][20 + row]], 20 + row, [2 * row, 2 * row + 1], is_prompt=False) for row in rows]
        )

    together = next_of(list(range(7)))
    for rows in ([3], [3, 1], [6, 3, 0], [1, 2, 3, 4, 5]):
        assert torch.equal(next_of(rows)[rows.index(3)], together[3])


def test_threads_do_not_change_it() -> None:
    paged = PagedModel(make("llama"), 4)
    paged.step([Segment(list(range(30)), 0, [0])])
    used = torch.get_num_threads()
    found: list[Tensor] = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(paged.step([Segment([5], 30, [0], is_prompt=False)]))
    torch.set_num_threads(used)
    assert torch.equal(*found)
