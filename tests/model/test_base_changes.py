"""Rows N43 and N47: stretched positions and new tokens, trained, saved, and found again by all who load the result."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import FLOAT32, load, logits, model_args, randomize, tuning
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llamafactory.extras.errors import UserError
from llamafactory.hparams.parser import load_run_config
from llamafactory.model import load_model, load_tokenizer
from llamafactory.model.base_changes import NOTE_FILE
from llamafactory.model.model_utils.rope import stretch_positions
from llamafactory.model.vocabulary import grow_vocabulary, new_ids_of
from llamafactory.train.tuner import export_model


SWITCHES: dict[str, Any] = {"disable_gradient_checkpointing": True, "fused_modules": False}
ORIGINAL = 512  # of the tiny model


def gap(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().max() / one.abs().max())


# N43: positions


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
@pytest.mark.parametrize(("wanted", "factor"), [(513, 2.0), (1024, 2.0), (1500, 3.0)])
def test_n43_the_factor_comes_from_the_original_length(
    kind: str, wanted: int, factor: float, tiny_llama_dir: Path
) -> None:
    config = AutoConfig.from_pretrained(tiny_llama_dir)
    theta = config.rope_parameters["rope_theta"]

    stretch_positions(config, model_args(tiny_llama_dir, rope_scaling=kind, rope_length=wanted))

    assert config.rope_parameters["factor"] == factor
    assert config.rope_parameters["rope_theta"] == theta
    assert config.rope_parameters.get("original_max_position_embeddings", ORIGINAL) == ORIGINAL
    expected = ORIGINAL if kind == "dynamic" else int(ORIGINAL * factor)
    assert config.max_position_embeddings == expected
    assert isinstance(config.max_position_embeddings, int)


def test_n43_linear_angles_are_those_of_positions_divided_by_the_factor(tiny_llama_dir: Path) -> None:
    plain = load(tiny_llama_dir)
    stretched = load(tiny_llama_dir, rope_scaling="linear", rope_length=1024)
    hidden, places = torch.zeros(1, 4, 32), torch.tensor([[0, 2, 4, 6]])

    halved = plain.model.rotary_emb(hidden, places // 2)
    found = stretched.model.rotary_emb(hidden, places)

    assert all(torch.allclose(one, two) for one, two in zip(halved, found, strict=True))


def test_n43_dynamic_angles_are_the_models_own_up_to_its_length(tiny_llama_dir: Path) -> None:
    base = logits(load(tiny_llama_dir))

    stretched = load(tiny_llama_dir, rope_scaling="dynamic", rope_length=1024)

    assert torch.equal(base, logits(stretched))
    with torch.no_grad():
        far = stretched(input_ids=torch.ones(1, 700, dtype=torch.long), use_cache=False).logits
    assert torch.isfinite(far).all()


def test_n43_a_model_that_is_long_enough_is_left_alone(tiny_llama_dir: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_llama_dir)
    before = dict(config.rope_parameters)

    assert stretch_positions(config, model_args(tiny_llama_dir, rope_scaling="yarn", rope_length=512)) is None
    assert config.rope_parameters == before
    assert stretch_positions(config, model_args(tiny_llama_dir, rope_scaling="yarn")) is not None
    assert config.rope_parameters["factor"] == 2.0
    assert stretch_positions(config, model_args(tiny_llama_dir, rope_scaling="yarn")) is None


def test_n43_training_stretches_as_far_as_its_longest_text(tiny_llama_dir: Path) -> None:
    config = {
        "model_name_or_path": str(tiny_llama_dir),
        "output_dir": "unused",
        "cutoff_len": 1300,
        "rope_scaling": "linear",
    }
    from llamafactory.hparams import ModelArguments

    assert load_run_config(config, "train").get(ModelArguments).rope_length == 1300


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_n43_an_adapter_is_loaded_and_exported_with_the_positions_it_was_trained_with(
    kind: str, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    model = load(tiny_llama_dir, tuning(), rope_scaling=kind, rope_length=1500, **SWITCHES)
    randomize(model, scale=0.02).eval().save_pretrained(tmp_path / "a")
    expected = logits(model)

    loaded = load(tiny_llama_dir, adapter_name_or_path=str(tmp_path / "a"))

    assert loaded.config.rope_parameters["factor"] == 3.0
    assert gap(expected, logits(loaded)) < 1e-5
    export(tiny_llama_dir, tmp_path / "a", tmp_path / "merged")
    merged = load(tmp_path / "merged")
    assert merged.config.rope_parameters["rope_type"] == kind
    assert gap(expected, logits(merged)) < 1e-5


def export(base: Path, adapter: Path, target: Path) -> None:
    words = {"model_name_or_path": str(base), "adapter_name_or_path": str(adapter), "export_dir": str(target)}
    export_model({**words, "infer_dtype": "float32"})


# N47: new tokens


def with_tokens(base: Path, **values: Any) -> tuple[Any, Any]:
    arguments = model_args(base, infer_dtype="float32", **values)
    tokenizer = load_tokenizer(arguments)["tokenizer"]
    return tokenizer, load_model(tokenizer, arguments, tuning("full"))


@pytest.mark.parametrize("tied", [True, False])
def test_n47_old_rows_stay_and_new_ones_start_near_their_mean(
    tied: bool, tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    base = tiny_llama()
    if not tied:
        config = base.config
        config.tie_word_embeddings = False
        base = AutoModelForCausalLM.from_config(config)
    base.save_pretrained(tmp_path / "m")
    tiny_tokenizer.save_pretrained(tmp_path / "m")
    size = len(tiny_tokenizer)

    tokenizer, model = with_tokens(tmp_path / "m", add_tokens=("<new>",), add_special_tokens=("<|tool|>",))

    rows = -(-(size + 2) // 64) * 64
    assert len(tokenizer) == size + 2
    assert new_ids_of(tokenizer) == (size, size + 1)
    assert tokenizer("a<new>b", add_special_tokens=False)["input_ids"].count(size) == 1
    assert model.config.vocab_size == rows
    pairs = [(base.model.embed_tokens, model.model.embed_tokens), (base.lm_head, model.lm_head)]
    for old, new in pairs:
        assert torch.equal(new.weight[:size], old.weight)
        mean, spread = old.weight.mean(dim=0), old.weight.std(dim=0)
        assert new.weight.shape[0] == rows
        assert ((new.weight[size:] - mean).abs() < 0.6 * spread + 1e-6).all()
        assert not torch.equal(new.weight[size], new.weight[size + 1])
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert torch.equal(
        with_tokens(tmp_path / "m", add_tokens=("<new>",))[1].lm_head.weight[:size], base.lm_head.weight
    )


@pytest.mark.parametrize("start", ["desc_init", "desc_init_w_noise"])
def test_n47_a_description_says_where_a_token_starts(start: str, tiny_llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens.yaml").write_text("<|count|>: one two\n", encoding="utf-8")
    plain = load(tiny_llama_dir)

    tokenizer, model = with_tokens(
        tiny_llama_dir, new_special_tokens_config=str(tmp_path / "tokens.yaml"), init_special_tokens=start
    )

    ids = tokenizer("one two", add_special_tokens=False)["input_ids"]
    expected = plain.model.embed_tokens.weight[ids].mean(dim=0)
    found = model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("<|count|>")]
    assert torch.allclose(found, expected, atol=1e-6) == (start == "desc_init")
    assert "<|count|>" in tokenizer.all_special_tokens
    (tmp_path / "bad.yaml").write_text("- a\n", encoding="utf-8")
    with pytest.raises(UserError, match="must hold lines of the form"):
        with_tokens(tiny_llama_dir, new_special_tokens_config=str(tmp_path / "bad.yaml"))


def test_n47_generation_never_writes_a_row_without_a_token(tiny_llama_dir: Path) -> None:
    tokenizer, model = with_tokens(tiny_llama_dir, add_tokens=("<new>",))
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer) :] *= 100  # every padding row would win half of the time
    torch.manual_seed(0)

    ids = model.generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=40, do_sample=True, eos_token_id=None, pad_token_id=0
    )

    assert int(ids.max()) < len(tokenizer)


@pytest.mark.parametrize("method", ["lora", "oft", "freeze"])
def test_n47_new_rows_are_learned_saved_and_found_again(method: str, tiny_llama_dir: Path, tmp_path: Path) -> None:
    arguments = model_args(tiny_llama_dir, infer_dtype="float32", add_tokens=("<new>",), **SWITCHES)
    tokenizer = load_tokenizer(arguments)["tokenizer"]
    values = {"oft_block_size": 8} if method == "oft" else {}
    model: Any = load_model(tokenizer, arguments, tuning(method, **values), True, dtype=FLOAT32)
    new = new_ids_of(tokenizer)[0]
    old = model.get_input_embeddings().weight[:new].detach().clone() if method != "lora" else None
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.5)
    row = torch.tensor([[5, new, 6, new, 7, 8, 9]])
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=row, labels=row, use_cache=False).loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=row).logits
    assert old is None or old.shape[0] == new
    model.save_pretrained(tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")

    if method == "freeze":
        loaded, again = load(tmp_path / "a"), AutoTokenizer.from_pretrained(tmp_path / "a")
    else:
        assert json.loads((tmp_path / "a" / NOTE_FILE).read_text())["ordinary_tokens"] == ["<new>"]
        at = model_args(tiny_llama_dir, infer_dtype="float32", adapter_name_or_path=str(tmp_path / "a"))
        again = load_tokenizer(at)["tokenizer"]
        loaded = load_model(again, at, tuning())
        assert not isinstance(loaded, PeftModel)

    assert again.convert_tokens_to_ids("<new>") == new
    with torch.no_grad():
        assert gap(expected, loaded(input_ids=row).logits) < 1e-5
    if method == "lora":
        size = sum(path.stat().st_size for path in (tmp_path / "a").glob("*.safetensors"))
        assert size < 4 * 600 * 32  # less than the embedding alone
        export(tiny_llama_dir, tmp_path / "a", tmp_path / "merged")
        merged = load(tmp_path / "merged")
        with torch.no_grad():
            assert gap(expected, merged(input_ids=row).logits) < 1e-5
        assert AutoTokenizer.from_pretrained(tmp_path / "merged").convert_tokens_to_ids("<new>") == new


def test_n47_a_spare_row_of_the_model_is_taken_before_the_embedding_grows(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    base = tiny_llama()
    base.resize_token_embeddings(640, mean_resizing=False)
    base.get_input_embeddings().weight.data[len(tiny_tokenizer) :] = 50.0
    base.save_pretrained(tmp_path / "m")
    tiny_tokenizer.save_pretrained(tmp_path / "m")

    tokenizer, model = with_tokens(tmp_path / "m", add_tokens=("<new>",))

    assert model.config.vocab_size == 640
    assert float(model.model.embed_tokens.weight[new_ids_of(tokenizer)[0]].abs().max()) < 5
    assert grow_vocabulary(model, tokenizer, model_args(tmp_path / "m")) is None


# float32 parts


@pytest.mark.parametrize("autocast", [True, False])
def test_norm_weights_and_logits_can_be_float32(autocast: bool, tiny_llama_dir: Path) -> None:
    from llamafactory.model.dtype import DtypeChoice

    short = DtypeChoice(
        frozen=torch.bfloat16, trainable=torch.float32, autocast="bf16" if autocast else None, reason="test"
    )
    arguments = model_args(tiny_llama_dir, upcast_layernorm=True, upcast_lmhead_output=True, **SWITCHES)
    model: Any = load_model(load_tokenizer(arguments)["tokenizer"], arguments, tuning(), True, dtype=short).eval()

    base = model.get_base_model()
    assert base.model.norm.weight.dtype == base.model.layers[0].input_layernorm.weight.dtype == torch.float32
    assert base.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = model(input_ids=torch.arange(3, 27)[None], use_cache=False).logits
    assert found.dtype == torch.float32
    assert gap(logits(load(tiny_llama_dir)), found) < 0.05


def test_a_model_drawn_from_its_config_is_of_its_shape_and_not_its_weights(tiny_llama_dir: Path) -> None:
    drawn, read = load(tiny_llama_dir, train_from_scratch=True), load(tiny_llama_dir)

    assert [weight.shape for weight in drawn.parameters()] == [weight.shape for weight in read.parameters()]
    assert gap(logits(read), logits(drawn)) > 0.1
    assert math.isfinite(float(logits(drawn).sum()))


@pytest.mark.parametrize("use", [True, False])
def test_the_key_value_cache_changes_speed_and_not_answers(use: bool, tiny_llama_dir: Path) -> None:
    model = load(tiny_llama_dir, use_kv_cache=use)

    assert model.config.use_cache is use
    ids = model.generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    reference = load(tiny_llama_dir).generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(ids, reference)
