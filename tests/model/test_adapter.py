"""Adapters: a fresh one changes nothing, a merged one changes nothing either, and gradients reach all of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import load, logits, model_args, randomize, save_adapter, tuning
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from llamafactory.extras.errors import UserError
from llamafactory.model import find_all_linear_modules
from llamafactory.model.adapter import load_adapter
from llamafactory.model.merge import merge_adapter


VARIANTS: list[dict[str, Any]] = [
    {},
    {"use_rslora": True},
    {"use_dora": True},
    {"lora_target": ("q_proj", "v_proj"), "lora_rank": 4, "lora_alpha": 3},
    {"additional_target": ("lm_head",)},
    {"additional_target": ("embed_tokens",), "lora_target": ("mlp.up_proj",)},
]


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def largest_gap(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().max() / one.abs().max())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_fresh_adapter_leaves_the_logits_unchanged(tiny_llama_dir: Path, variant: dict[str, Any]) -> None:
    base = logits(load(tiny_llama_dir))

    fresh = load(tiny_llama_dir, tuning(**variant), disable_gradient_checkpointing=True, fused_modules=False).eval()

    tolerance = 1e-6 if variant.get("use_dora") else 0.0  # DoRA divides by a norm and multiplies with it again
    assert largest_gap(base, logits(fresh)) <= tolerance


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_merging_leaves_the_logits_unchanged(tiny_llama_dir: Path, variant: dict[str, Any]) -> None:
    adapted = randomize(load(tiny_llama_dir, tuning(**variant), disable_gradient_checkpointing=True)).eval()
    expected = logits(adapted)

    merged = merge_adapter(adapted, torch.float32)

    assert merged.num_changed == merged.num_layers > 0
    assert not isinstance(merged.model, PeftModel)
    assert largest_gap(expected, logits(merged.model.eval())) < 1e-5
    assert largest_gap(expected, logits(load(tiny_llama_dir))) > 1e-2  # the adapter did something


def test_unmerging_gives_the_base_back(tiny_llama_dir: Path) -> None:
    base = logits(load(tiny_llama_dir))
    adapted = randomize(load(tiny_llama_dir, tuning(), disable_gradient_checkpointing=True)).eval()

    adapted.merge_adapter()
    adapted.unmerge_adapter()

    with adapted.disable_adapter():
        assert largest_gap(base, logits(adapted)) < 1e-5


def test_a_saved_adapter_answers_alike_trained_and_merged(tiny_llama_dir: Path, tmp_path: Path) -> None:
    adapted = randomize(load(tiny_llama_dir, tuning(), disable_gradient_checkpointing=True)).eval()
    adapted.save_pretrained(tmp_path / "a")

    loaded = load(tiny_llama_dir, adapter_name_or_path=str(tmp_path / "a"))

    assert not isinstance(loaded, PeftModel)
    assert not trained(loaded)
    assert largest_gap(logits(adapted), logits(loaded)) < 1e-5


def test_an_adapter_on_a_bfloat16_base_keeps_its_bits(tiny_llama: Any, tiny_llama_dir: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_llama_dir, tmp_path / "a")
    saved = load_file(adapter / "adapter_model.safetensors")

    loaded = load_adapter(tiny_llama().to(torch.bfloat16), adapter)

    found = get_peft_model_state_dict(loaded, save_embedding_layers=False)
    assert all(torch.equal(weight, found[name]) for name, weight in saved.items())


def test_merging_is_exact_float32_arithmetic_cast_once(tiny_llama_dir: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_llama_dir, tmp_path / "a")
    exact = load(tiny_llama_dir, adapter_name_or_path=str(adapter)).state_dict()

    from llamafactory.model import load_model, load_tokenizer

    arguments = model_args(tiny_llama_dir, adapter_name_or_path=str(adapter), infer_dtype="bfloat16")
    rounded = load_model(load_tokenizer(arguments)["tokenizer"], arguments, tuning()).state_dict()

    assert all(torch.equal(exact[name].bfloat16(), weight) for name, weight in rounded.items())


@pytest.mark.parametrize("method", ["lora", "freeze", "full"])
@pytest.mark.parametrize("checkpointing", ["off", "reentrant", "non-reentrant"])
def test_gradients_reach_every_trained_weight_and_no_other(
    tiny_llama_dir: Path, method: str, checkpointing: str
) -> None:
    switches = {
        "disable_gradient_checkpointing": checkpointing == "off",
        "use_reentrant_gc": checkpointing == "reentrant",
    }
    model = load(tiny_llama_dir, tuning(method, freeze_trainable_layers=1), **switches)
    assert model.is_activation_checkpointing == (checkpointing != "off")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(trained(model).values(), lr=1.0)

    ids = torch.arange(3, 40)[None]
    for _ in range(2):  # lora_A moves only after lora_B has left zero
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()

    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
        assert parameter.requires_grad or parameter.grad is None


def test_all_means_every_linear_layer_but_the_output(tiny_llama_dir: Path) -> None:
    model = load(tiny_llama_dir)

    names = find_all_linear_modules(model, freeze_vision_tower=True)

    assert names == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    adapted = load(tiny_llama_dir, tuning())
    assert len([name for name in trained(adapted) if "lora_B" in name]) == 2 * len(names)
    config = adapted.peft_config["default"]
    assert (config.r, config.lora_alpha) == (8, 16)


def test_a_regular_expression_chooses_layers(tiny_llama_dir: Path) -> None:
    one = load(tiny_llama_dir, tuning(lora_target=(r".*layers\.1\..*q_proj",)))
    mixed = load(tiny_llama_dir, tuning(lora_target=(r".*layers\.1\..*q_proj", "down_proj")))

    assert {name.split(".lora_")[0] for name in trained(one)} == {"base_model.model.model.layers.1.self_attn.q_proj"}
    assert len({name.split(".lora_")[0] for name in trained(mixed)}) == 3


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"lora_target": ("qproj",)}, r"lora_target 'qproj' matches no layer.* Did you mean 'q_proj'"),
        ({"lora_target": (r".*nothing.*",)}, r"matches no layer of this model.* There are: .*gate_proj"),
        ({"lora_target": ("(q_proj",)}, "not a valid regular expression"),
        ({"lora_target": ("input_layernorm",)}, "lora_target 'input_layernorm' matches no layer"),
        ({"additional_target": ("embed_token",)}, r"additional_target .* Did you mean 'embed_tokens'"),
    ],
)
def test_a_target_that_is_not_there_names_the_near_ones(
    tiny_llama_dir: Path, values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        load(tiny_llama_dir, tuning(**values))


def test_several_adapters_are_merged_and_the_last_is_trained_on(tiny_llama_dir: Path, tmp_path: Path) -> None:
    first = save_adapter(tiny_llama_dir, tmp_path / "1", seed=1)
    second = save_adapter(tiny_llama_dir, tmp_path / "2", seed=2)
    both = f"{first},{second}"
    answer = logits(load(tiny_llama_dir, adapter_name_or_path=both))
    switches = {"disable_gradient_checkpointing": True}

    going_on = load(tiny_llama_dir, tuning(), adapter_name_or_path=both, **switches).eval()
    anew = load(tiny_llama_dir, tuning(create_new_adapter=True), adapter_name_or_path=both, **switches).eval()

    assert largest_gap(answer, logits(going_on)) < 1e-5
    assert largest_gap(answer, logits(anew)) < 1e-5
    assert all(float(weight.detach().abs().max()) > 0 for name, weight in trained(going_on).items())
    assert all(float(weight.detach().abs().max()) == 0 for name, weight in trained(anew).items() if "lora_B" in name)
    with anew.disable_adapter():  # the fresh adapter stands on both
        assert largest_gap(answer, logits(anew)) < 1e-5
    with going_on.disable_adapter():
        assert largest_gap(answer, logits(going_on)) > 1e-2


def test_an_adapter_of_another_model_is_refused(
    tiny_llama_dir: Path, tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    from safetensors.torch import save_file
    from transformers import LlamaForCausalLM

    adapter = save_adapter(tiny_llama_dir, tmp_path / "a")
    config = tiny_llama().config
    config.intermediate_size = 96
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")

    with pytest.raises(UserError, match="made for another model"):
        load(tmp_path / "other", adapter_name_or_path=str(adapter))
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(min(weights))
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="lacks 1 of the weights"):
        load_adapter(load(tiny_llama_dir), adapter)


def test_an_adapter_that_is_not_finite_is_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    adapted = randomize(load(tiny_llama_dir, tuning()), scale=float("nan"))
    adapted.save_pretrained(tmp_path / "a")

    with pytest.raises(UserError, match="not finite"):
        load(tiny_llama_dir, adapter_name_or_path=str(tmp_path / "a"))
