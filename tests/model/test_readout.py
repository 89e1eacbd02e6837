"""What is read out inside a forward pass equals what the logits say: row N5 on whole models, values and gradients."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.testing import assert_close

from llamafactory.model.readout import HeadPlan, Readout, enable_readout, plan_head
from llamafactory.ops.cross_entropy import TokenLoss, linear_cross_entropy
from llamafactory.ops.logprobs import linear_log_probs


WORDS = 97
SHAPE: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2: dict[str, Any] = {
    "vocab_size": WORDS,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT: dict[str, Any] = {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
LATENT: dict[str, Any] = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
FAMILIES: dict[str, tuple[str, dict[str, Any], HeadPlan]] = {
    "llama": ("Llama", SHAPE | {"tie_word_embeddings": True}, HeadPlan("lm_head", "model", True)),
    "qwen2": ("Qwen2", SHAPE, HeadPlan("lm_head", "model", True)),
    "qwen3": ("Qwen3", SHAPE, HeadPlan("lm_head", "model", True)),
    "mistral": ("Mistral", SHAPE, HeadPlan("lm_head", "model", True)),
    "mixtral": ("Mixtral", SHAPE | {"num_local_experts": 4}, HeadPlan("lm_head", "model", True)),
    "gemma2": ("Gemma2", SHAPE | {"final_logit_softcapping": 2.0}, HeadPlan("lm_head", "model", True, softcap=2.0)),
    "gemma3": ("Gemma3", SHAPE | {"final_logit_softcapping": 1.5}, HeadPlan("lm_head", "model", True, softcap=1.5)),
    "cohere": ("Cohere", SHAPE | {"logit_scale": 0.07}, HeadPlan("lm_head", "model", True, scale=0.07)),
    "granite": ("Granite", SHAPE | {"logits_scaling": 8.0}, HeadPlan("lm_head", "model", True, scale=0.125)),
    "minicpm3": (
        "MiniCPM3",
        SHAPE | LATENT | {"hidden_size": 64, "dim_model_base": 16},
        HeadPlan("lm_head", "model", True, scale=0.25),
    ),
    "opt": ("OPT", SHAPE | OPT, HeadPlan("lm_head", "model.decoder", True)),
    "gpt2": ("GPT2", GPT2, HeadPlan("lm_head", "transformer", True)),
}
IDS = torch.randint(3, WORDS, (2, 9), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.tensor([0, 3, 5, 11, 16])
TARGETS = torch.tensor([7, 7, 90, 3, 50])


def make(family: str) -> Any:
    import transformers

    name, values, _ = FAMILIES[family]
    config = getattr(transformers, f"{name}TextConfig" if family == "gemma3" else f"{name}Config")(**values)
    kind = getattr(transformers, f"{name}LMHeadModel" if family == "gpt2" else f"{name}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()


def by_logits(model: Any) -> Tensor:
    """log p of the targets by the model's own logits."""
    logits = model(input_ids=IDS, use_cache=False).logits.flatten(0, 1)[POSITIONS]
    return logits.float().log_softmax(dim=-1).gather(1, TARGETS.unsqueeze(1)).squeeze(1)


def by_readout(model: Any) -> Tensor:
    compute = partial(linear_log_probs, targets_K=TARGETS)
    return model(input_ids=IDS, use_cache=False, readout=Readout(POSITIONS, compute)).logps_K


def by_sum(model: Any) -> Tensor:
    compute = partial(linear_cross_entropy, targets_K=TARGETS, loss=TokenLoss(counts_hits=True))
    return -model(input_ids=IDS, use_cache=False, readout=Readout(POSITIONS, compute)).total


def gradients(model: Any, measure: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    value = measure(model).sum()
    value.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return {"value": value.detach(), **found}


def assert_same(model: Any) -> None:
    expected = gradients(model, by_logits)
    for measure in (by_readout, by_sum):
        found = gradients(model, measure)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value, rtol=1e-5, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", FAMILIES)
def test_n5_a_model_says_the_same_through_its_readout_and_its_logits(family: str):
    model = make(family)
    before = model(input_ids=IDS).logits
    assert plan_head(model) == FAMILIES[family][2]
    enable_readout(model)
    assert_same(model)
    assert_close(by_readout(model), by_logits(model), rtol=0, atol=1e-6)
    assert torch.equal(model(input_ids=IDS).logits, before)


@pytest.mark.parametrize(
    ("changes", "is_plain"),
    [
        ({"target_modules": "all-linear"}, True),
        ({"target_modules": ["q_proj", "lm_head"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, True),
    ],
    ids=["body", "adapter_on_head", "trained_head"],
)
def test_adapters_are_seen_wherever_they_are(changes: dict[str, Any], is_plain: bool):
    config = LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **changes)
    model: Any = get_peft_model(make("granite"), config).eval()
    enable_readout(model)
    assert plan_head(model.get_base_model()).is_plain is is_plain
    head = [weight for name, weight in model.named_parameters() if "lm_head" in name and weight.requires_grad]
    with torch.no_grad():
        for weight in head:
            weight.add_(0.1)
    assert_same(model)
    adapted = by_readout(model).detach()
    with model.disable_adapter():
        assert_close(by_readout(model), by_logits(model), rtol=0, atol=1e-6)
        assert not torch.allclose(by_readout(model), adapted, atol=1e-4)


def test_a_readout_enabled_before_an_adapter_is_put_on_the_head_learns_of_it():
    model = make("llama")
    enable_readout(model)
    adapted: Any = get_peft_model(
        model, LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM", init_lora_weights=False)
    ).eval()
    enable_readout(adapted)
    assert_same(adapted)


def test_words_that_a_model_leaves_out_of_its_logits_are_noticed():
    model = make("qwen2")

    class Cut(type(model)):  # pyright: ignore[reportGeneralTypeIssues]
        def forward(self, input_ids: Tensor, use_cache: bool | None = None, **kwargs: Any) -> Any:
            output = super().forward(input_ids=input_ids, use_cache=use_cache, **kwargs)
            output.logits = output.logits[..., : WORDS - 5]
            return output

    model.__class__ = Cut
    assert plan_head(model).head is None


@pytest.mark.parametrize("place", ["behind", "before"])
def test_logits_that_are_made_in_an_unknown_way_are_used_as_they_are(place: str):
    model = make("qwen2")
    kind = type(model)

    class Shifted(kind):  # pyright: ignore[reportGeneralTypeIssues]
        def forward(self, input_ids: Tensor, use_cache: bool | None = None, **kwargs: Any) -> Any:
            output = super().forward(input_ids=input_ids, use_cache=use_cache, **kwargs)
            output.logits = output.logits.sin()
            return output

    class Fed(kind):  # pyright: ignore[reportGeneralTypeIssues]
        def forward(self, input_ids: Tensor, use_cache: bool | None = None) -> Any:
            return super().forward(input_ids=input_ids + 1, use_cache=use_cache)

    model.__class__ = Shifted if place == "behind" else Fed
    assert plan_head(model).head is None
    enable_readout(model)
    assert_same(model)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_layers_give_the_same_gradients(reentrant: bool):
    model = make("llama")
    enable_readout(model)
    expected = gradients(model, by_sum)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for name, value in gradients(model, by_sum).items():
        assert_close(value, expected[name], rtol=1e-5, atol=2e-6)


def test_the_wrapper_of_accelerate_may_stand_around_it():
    model = make("gemma2")
    enable_readout(model)
    plain = by_logits(model).detach()
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.forward))
    found = by_readout(model)
    assert found.dtype is torch.float32
    assert_close(found.detach(), plain, rtol=0, atol=0.05)
    assert not torch.equal(found.detach(), plain)


def test_a_copy_of_a_model_answers_for_itself():
    model = make("llama")
    enable_readout(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    assert_same(copied)
    assert not torch.equal(by_readout(copied), by_readout(model))


def test_a_frozen_tied_head_gets_no_gradient():
    model = make("llama").requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_()
    enable_readout(model)
    assert gradients(model, by_sum).keys() == {"value", "model.layers.0.mlp.up_proj.weight"}


def test_generation_is_left_alone():
    model = make("qwen3")
    expected = model.generate(IDS, max_new_tokens=5, do_sample=False)
    enable_readout(model)
    assert torch.equal(model.generate(IDS, max_new_tokens=5, do_sample=False), expected)


def test_a_score_head_is_handed_over_as_it_is():
    from transformers import LlamaConfig, LlamaForSequenceClassification

    model: Any = LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_labels=1)).eval()
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")).eval()
    enable_readout(adapted)
    lasts = torch.tensor([8, 17])
    scores = adapted(input_ids=IDS, readout=Readout(lasts, lambda hidden, head: hidden @ head.weight_VD.t()))
    assert_close(scores, adapted(input_ids=IDS).logits)
    scores.sum().backward()
    trained = {name for name, weight in adapted.named_parameters() if weight.grad is not None}
    assert any("modules_to_save" in name for name in trained)
    assert any("lora_A" in name for name in trained)
