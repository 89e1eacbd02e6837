"""Adapters of every kind on a model: what they train, what they leave alone, and how they come out of a file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import family_model
from model_making import load, logits, model_args, randomize, tuning
from peft import PeftModel

from llamafactory.data.collator import PaddingCollator
from llamafactory.extras.errors import UserError
from llamafactory.hparams import FinetuningArguments
from llamafactory.hparams.methods import tuning_methods
from llamafactory.model.adapter import ADAPTERS, apply_method
from llamafactory.model.adapters.targets import find_targets
from llamafactory.model.dtype import DtypeChoice
from llamafactory.model.expansion import expand_blocks, largest_change, new_layers
from llamafactory.model.merge import merge_adapter
from llamafactory.model.request import LoadRequest


SWITCHES: dict[str, Any] = {"disable_gradient_checkpointing": True, "fused_modules": False}
FLOAT32 = DtypeChoice(frozen=torch.float32, trainable=torch.float32, autocast=None, reason="exact comparisons")
WIDTHS = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]  # in, out of q k v o gate up down
LAYERS = 2


def adapted(model: Any, **values: Any) -> Any:
    """Put a fresh adapter on a model that was made here."""
    request = LoadRequest(
        model_args=model_args("made-here"),
        finetuning_args=FinetuningArguments(**values),
        is_trainable=True,
        dtypes=FLOAT32,
    )
    return apply_method(model, request)


def num_trained(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def gap(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().max() / one.abs().max())


def both(width: int) -> int:
    """The larger and the smaller factor of LoKr are near-square: 32 is 4 x 8, 64 is 8 x 8, 16 is 4 x 4."""
    return {16: 4, 32: 4, 64: 8}[width]


def lokr(r: int) -> int:
    total = 0
    for i, o in WIDTHS:
        i1, o1 = both(i), both(o)
        i2, o2 = i // i1, o // o1
        total += o1 * i1 + (r * (o2 + i2) if r < max(o2, i2) / 2 else o2 * i2)
    return LAYERS * total


FORMULAS: dict[str, tuple[dict[str, Any], int]] = {
    "lora": ({"lora_rank": 4}, LAYERS * sum(4 * (i + o) for i, o in WIDTHS)),
    "dora": ({"lora_rank": 4, "use_dora": True}, LAYERS * sum(4 * (i + o) + o for i, o in WIDTHS)),
    "adalora": ({"lora_rank": 4, "adalora_init_rank": 6}, LAYERS * sum(6 * (i + o + 1) for i, o in WIDTHS)),
    "oft": ({"oft_block_size": 8}, LAYERS * sum(i * 7 // 2 for i, _ in WIDTHS)),
    "vera": ({"lora_rank": 4}, LAYERS * sum(4 + o for _, o in WIDTHS)),
    "loha": ({"lora_rank": 4}, LAYERS * sum(2 * 4 * (i + o) for i, o in WIDTHS)),
    "lokr": ({"lora_rank": 2}, lokr(2)),
    "ia3": ({}, LAYERS * (16 + 16 + 64)),
    "prompt_tuning": ({"num_virtual_tokens": 5}, 5 * 32),
    "p_tuning": (
        {"num_virtual_tokens": 5, "prompt_encoder_size": 24},
        5 * 32 + 33 * 24 + 25 * 24 + 25 * 32,
    ),
    "prefix_tuning": ({"num_virtual_tokens": 5}, 5 * 2 * LAYERS * 16),
    "prefix_projection": (
        {"num_virtual_tokens": 5, "prefix_projection": True, "prompt_encoder_size": 24},
        5 * 16 + 17 * 24 + 25 * 2 * LAYERS * 16,
    ),
}


@pytest.mark.parametrize("name", list(FORMULAS))
def test_a_method_trains_as_many_numbers_as_its_formula_says(name: str, tiny_llama: Any) -> None:
    values, expected = FORMULAS[name]

    method = {"dora": "lora", "prefix_projection": "prefix_tuning"}.get(name, name)
    model = adapted(tiny_llama(), finetuning_type=method, **values)

    assert num_trained(model) == expected


def test_every_method_of_the_table_can_be_chosen_and_the_other_way_round() -> None:
    from typing import get_args, get_type_hints

    words = get_args(get_type_hints(FinetuningArguments)["finetuning_type"])

    assert set(words) == set(tuning_methods()) == set(ADAPTERS.names())
    assert all(callable(ADAPTERS.get(name)) for name in words)
    assert all(row.why for row in tuning_methods().values() if row.stages)


@pytest.mark.parametrize("name", [name for name, row in tuning_methods().items() if row.neutral])
def test_n36_a_fresh_adapter_leaves_the_logits_unchanged(name: str, tiny_llama_dir: Path) -> None:
    base = logits(load(tiny_llama_dir))

    fresh = load(tiny_llama_dir, tuning(name), **SWITCHES).eval()

    assert gap(base, logits(fresh)) < 1e-6


@pytest.mark.parametrize(
    "values", [{"pissa_init": True}, {"pissa_init": True, "pissa_iter": -1}, {"lora_init": "olora"}]
)
def test_n36_an_adapter_that_starts_from_the_weights_is_saved_as_an_ordinary_one(
    values: dict[str, Any], tiny_llama_dir: Path, tmp_path: Path
) -> None:
    base = logits(load(tiny_llama_dir))
    model = load(tiny_llama_dir, tuning(lora_rank=4, **values), **SWITCHES).eval()
    assert gap(base, logits(model)) < 1e-6

    model.save_pretrained(tmp_path / "fresh")
    moved(model)
    expected = logits(model)
    model.save_pretrained(tmp_path / "trained")

    assert gap(base, logits(load(tiny_llama_dir, adapter_name_or_path=str(tmp_path / "fresh")))) < 1e-6
    plain: Any = PeftModel.from_pretrained(load(tiny_llama_dir), str(tmp_path / "trained"))
    assert plain.active_peft_config.init_lora_weights is True
    assert plain.active_peft_config.r == 8
    assert gap(expected, logits(plain.eval())) < 1e-5
    assert gap(base, expected) > 1e-2


def test_pissa_is_converted_as_peft_does_it(tiny_llama_dir: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    theirs: Any = get_peft_model(load(tiny_llama_dir), LoraConfig(init_lora_weights="pissa", **config))
    ours = load(tiny_llama_dir, tuning(lora_rank=4, pissa_init=True, pissa_iter=-1), **SWITCHES)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    for model in (theirs, ours):
        moved(model)

    theirs.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    ours.save_pretrained(tmp_path / "ours")

    one = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    two = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    for name in (name for name in one if ".lora_A." in name):
        other = name.replace(".lora_A.", ".lora_B.")
        assert torch.allclose(one[other] @ one[name], two[other] @ two[name], atol=1e-5), name


def moved(model: Any) -> None:
    """Add noise to what is trained, as if it had been."""
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)


def test_an_adapter_of_another_method_is_not_trained_on_with(tiny_llama_dir: Path, tmp_path: Path) -> None:
    randomize(load(tiny_llama_dir, tuning("ia3"), **SWITCHES)).save_pretrained(tmp_path / "a")

    with pytest.raises(UserError, match="is ia3, but finetuning_type says lora"):
        load(tiny_llama_dir, tuning("lora"), adapter_name_or_path=str(tmp_path / "a"))
    on_top = load(
        tiny_llama_dir, tuning("lora", create_new_adapter=True), adapter_name_or_path=str(tmp_path / "a"), **SWITCHES
    )

    assert gap(logits(load(tiny_llama_dir, adapter_name_or_path=str(tmp_path / "a"))), logits(on_top.eval())) < 1e-6


# virtual tokens

PROMPTS = ["prompt_tuning", "p_tuning", "prefix_tuning"]


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("attention", ["sdpa", "auto"])
def test_virtual_tokens_leave_labels_and_positions_where_they_are(
    name: str, attention: str, tiny_llama_dir: Path
) -> None:
    """The sums of a padded batch are those of PEFT's own forward pass with labels, row by row."""
    from llamafactory.model.model_utils.attention import use_flat_attention
    from llamafactory.train.objective import Models
    from llamafactory.train.sft.objective import objective_for

    torch.manual_seed(0)
    model = load(tiny_llama_dir, tuning(name, num_virtual_tokens=3), flash_attn=attention, **SWITCHES).eval()
    use_flat_attention(model, attention)
    rows = [
        {"input_ids": list(range(5, 5 + size)), "labels": [-100] * 3 + list(range(8, 5 + size))} for size in (6, 11, 9)
    ]

    class Pad:
        pad_token_id = 0

    found = objective_for(model)(Models(model), PaddingCollator(Pad())(rows))  # type: ignore[arg-type]

    expected = torch.zeros(())
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        output = PeftModel.__dict__["forward"] and type(model).forward(model, input_ids=ids, labels=labels)
        expected = expected + output.loss * (labels != -100).sum()
    assert int(found.weight) == sum(len(row["labels"]) - 3 for row in rows)
    assert torch.allclose(found.total, expected, rtol=1e-5)
    assert model(input_ids=torch.tensor([rows[0]["input_ids"]])).logits.shape[1] == 6


@pytest.mark.parametrize("name", PROMPTS)
def test_virtual_tokens_are_written_with_as_they_were_trained(name: str, tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Greedy generation with a cache, in a padded batch too, equals the argmax of whole forward passes."""
    torch.manual_seed(0)
    model = load(tiny_llama_dir, tuning(name, num_virtual_tokens=3), **SWITCHES)
    randomize(model, scale=0.5)
    model.save_pretrained(tmp_path / "a")
    loaded = load(tiny_llama_dir, adapter_name_or_path=str(tmp_path / "a"))
    prompts = [[7, 8, 9, 10], [11, 12]]
    expected = [argmax_answer(loaded, prompt) for prompt in prompts]

    ids, mask = torch.tensor([prompts[0], [0, 0, *prompts[1]]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        alone = loaded.generate(input_ids=ids[:1], attention_mask=mask[:1], **options)[0, -4:].tolist()
        together = loaded.generate(input_ids=ids, attention_mask=mask, **options)[:, -4:].tolist()

    assert alone == expected[0]
    assert together == expected


def argmax_answer(model: Any, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(4):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


# mixtures of experts


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_n38_all_reaches_every_expert_and_no_router_unless_asked(family: str, said: pytest.LogCaptureFixture) -> None:
    model = adapted(family_model(family, attention="eager"), lora_rank=2)

    names = [name for name, weight in model.named_parameters() if weight.requires_grad and "lora_A" in name]
    experts = [name for name in names if ".experts." in name]
    assert len(experts) == LAYERS * 2
    assert len(names) == LAYERS * (4 + 2)
    assert "8 of 8 experts in 2 layers adapted; none of 2 routers" in said.text

    with_routers = adapted(family_model(family, attention="eager"), lora_rank=2, lora_router=True)
    routers = [name for name, weight in with_routers.named_parameters() if weight.requires_grad and "lora_A" in name]
    assert len(routers) == LAYERS * (4 + 2 + 1)
    assert "8 of 8 experts in 2 layers adapted; 2 of 2 routers" in said.text


@pytest.mark.parametrize("word", ["gate_proj", "down_proj", "experts", r".*layers\.1\..*experts\.down_proj"])
def test_n38_names_of_experts_reach_the_joined_parameter(word: str) -> None:
    model = family_model("qwen3_moe")

    targets = find_targets(model, (word,), "lora_target")

    assert targets.parameters
    assert not targets.modules
    changed = adapted(model, lora_target=(word,), lora_rank=2)
    assert num_trained(changed) > 0


def test_n38_a_target_that_hits_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match=r"'w9' matches no layer.*down_proj"):
        find_targets(family_model("mixtral"), ("w9",), "lora_target")
    with pytest.raises(UserError, match="use_dora True cannot be used on the joined experts"):
        adapted(family_model("mixtral"), use_dora=True)
    with pytest.raises(UserError, match="only finetuning_type lora can adapt"):
        adapted(family_model("mixtral"), finetuning_type="loha", lora_target=("experts",))


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_n36_adapted_experts_merge_and_load(family: str, tmp_path: Path) -> None:
    from llamafactory.model.adapter import load_adapter

    base = family_model(family)
    expected_base = logits(base)
    model = randomize(adapted(family_model(family), lora_rank=2, lora_router=True), scale=0.05).eval()
    expected = logits(model)
    model.save_pretrained(tmp_path / "a")

    loaded = load_adapter(family_model(family), tmp_path / "a").eval()
    assert gap(expected, logits(loaded)) < 1e-5
    merged = merge_adapter(loaded, torch.float32).model
    assert gap(expected, logits(merged.eval())) < 1e-5
    assert gap(expected_base, expected) > 1e-3


# LLaMA Pro


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mixtral"])
def test_new_blocks_change_nothing_until_they_are_trained(family: str) -> None:
    model, plain = family_model(family, attention="eager"), family_model(family, attention="eager")

    expand_blocks(model, 2)

    assert model.config.num_hidden_layers == 4
    assert largest_change(plain, model) < 1e-6
    assert new_layers(model, 2) == [1, 3]


@pytest.mark.parametrize("method", ["freeze", "lora"])
def test_llama_pro_trains_the_new_blocks_only(method: str) -> None:
    model = family_model("llama")
    expand_blocks(model, 2)

    trained = adapted(model, finetuning_type=method, use_llama_pro=True, freeze_trainable_layers=2)

    numbers = {
        name.split("layers.")[1].split(".")[0] for name, weight in trained.named_parameters() if weight.requires_grad
    }
    assert numbers == {"1", "3"}
    with pytest.raises(UserError, match="divides the 4 layers"):
        adapted(model, finetuning_type="freeze", use_llama_pro=True, freeze_trainable_layers=3)
