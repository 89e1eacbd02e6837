"""Export: what stands at export_dir answers as the model it was made from, or nothing stands there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import change_tensor, load, logits, model_args, randomize, save_adapter, tuning
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafactory.chat import ChatModel
from llamafactory.data.template import get_template_and_fix_tokenizer
from llamafactory.extras.errors import UserError
from llamafactory.hparams import DataArguments
from llamafactory.model import load_tokenizer
from llamafactory.train.export import export_model
from llamafactory.train.export.folder import check_target, written_aside
from llamafactory.train.export.merging import merge_model
from llamafactory.train.export.probe import make_probe
from llamafactory.train.export.saving import save_export, verify_export


TALK = [{"role": "user", "content": "Count to three, please."}]


@pytest.fixture(scope="module")
def adapter(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tiny_llama_dir, tmp_path_factory.mktemp("export") / "adapter")


def export(base: Path, target: Path, adapter: Path | None = None, **values: Any) -> Path:
    given = {"adapter_name_or_path": str(adapter)} if adapter else {}
    export_model({"model_name_or_path": str(base), "export_dir": str(target), **given, **values})
    return target


def test_the_export_agrees_with_the_adapter_model(tiny_llama_dir: Path, adapter: Path, tmp_path: Path) -> None:
    target = export(tiny_llama_dir, tmp_path / "out", adapter)

    plain = AutoModelForCausalLM.from_pretrained(target, local_files_only=True)

    from peft import PeftModel

    adapted = PeftModel.from_pretrained(load(tiny_llama_dir), str(adapter)).eval()
    expected = logits(adapted)
    assert plain.dtype == torch.float32
    assert float((expected - logits(plain)).abs().max() / expected.abs().max()) < 1e-5
    assert "Merged against unmerged" in (target / "README.md").read_text()
    assert not list(tmp_path.glob(".out.*"))


@pytest.mark.parametrize("infer_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("template", [None, "chatml"])
def test_plain_transformers_answers_as_chat_does(
    tiny_llama_dir: Path, adapter: Path, tmp_path: Path, infer_dtype: str, template: str | None
) -> None:
    common = {"template": template, "infer_dtype": infer_dtype}
    target = export(tiny_llama_dir, tmp_path / "out", adapter, **common)
    chat = ChatModel(
        {
            "model_name_or_path": str(tiny_llama_dir),
            "adapter_name_or_path": str(adapter),
            "do_sample": False,
            "max_new_tokens": 24,
            **common,
        }
    )

    model: Any = AutoModelForCausalLM.from_pretrained(target, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(target)
    prompt = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    engine: Any = chat.engine
    weights = engine.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    (answer,) = chat.chat(TALK, logprobs=0)
    if infer_dtype == "float32":
        output = model.generate(**prompt, max_new_tokens=24, do_sample=False)
        assert answer.response_text == tokenizer.decode(
            output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True
        )
    # a random model has words that are as likely as each other but for rounding, so in bfloat16 each choice is judged
    chosen = [token.token_id for token in answer.logprobs]
    with torch.no_grad():
        ids = torch.cat([prompt["input_ids"], torch.tensor([chosen])], dim=1)
        logprobs = model(ids).logits[0, -len(chosen) - 1 : -1].float().log_softmax(-1)
    theirs = logprobs[torch.arange(len(chosen)), chosen]
    tolerance = 1e-4 if infer_dtype == "float32" else 0.03
    assert theirs.tolist() == pytest.approx([token.logprob for token in answer.logprobs], abs=tolerance)
    assert (logprobs.max(-1).values - theirs).max().item() <= tolerance


def test_auto_keeps_the_format_of_the_base(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_llama().to(torch.bfloat16).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    adapter = save_adapter(base, tmp_path / "adapter")

    target = export(base, tmp_path / "out", adapter)

    chat = load(base, adapter_name_or_path=str(adapter), infer_dtype="bfloat16").state_dict()
    assert all(torch.equal(weight, chat[name]) for name, weight in load_file(target / "model.safetensors").items())
    assert {weight.dtype for weight in load_file(target / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"


def test_stop_ids_and_the_padding_side_are_saved(tiny_llama_dir: Path, adapter: Path, tmp_path: Path) -> None:
    target = export(tiny_llama_dir, tmp_path / "out", adapter)

    generation = json.loads((target / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert generation["pad_token_id"] == tokenizer.pad_token_id
    assert tokenizer.padding_side == "left"


def test_several_adapters_and_a_module_trained_in_full(tiny_llama_dir: Path, adapter: Path, tmp_path: Path) -> None:
    second = save_adapter(tiny_llama_dir, tmp_path / "2", seed=2, additional_target=("lm_head",), use_dora=True)
    both = f"{adapter},{second}"

    export_model(
        {"model_name_or_path": str(tiny_llama_dir), "adapter_name_or_path": both, "export_dir": str(tmp_path / "out")}
    )

    expected = logits(load(tiny_llama_dir, adapter_name_or_path=both))
    found = logits(load(tmp_path / "out"))
    assert float((expected - found).abs().max() / expected.abs().max()) < 1e-5


def test_a_model_without_adapter_is_saved_again(tiny_llama_dir: Path, tmp_path: Path) -> None:
    target = export(tiny_llama_dir, tmp_path / "out")

    assert torch.equal(logits(load(target)), logits(load(tiny_llama_dir)))


def test_a_named_template_is_written_for_ollama_too(tiny_llama_dir: Path, tmp_path: Path) -> None:
    target = export(tiny_llama_dir, tmp_path / "out", template="chatml")

    modelfile = (target / "Modelfile").read_text(encoding="utf-8")
    assert modelfile.startswith('FROM .\n\nTEMPLATE """')
    assert 'PARAMETER stop "<|im_end|>"' in modelfile


def test_an_adapter_without_effect_is_an_error(tiny_llama_dir: Path, tmp_path: Path) -> None:
    load(tiny_llama_dir, tuning()).save_pretrained(tmp_path / "fresh")
    randomize(load(tiny_llama_dir, tuning()), scale=1e-5).save_pretrained(tmp_path / "tiny")

    with pytest.raises(UserError, match="changes nothing"):
        export(tiny_llama_dir, tmp_path / "out", tmp_path / "fresh")
    with pytest.raises(UserError, match="try infer_dtype: float32"):
        export(tiny_llama_dir, tmp_path / "out", tmp_path / "tiny", infer_dtype="bfloat16")

    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(tiny_llama_dir: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "empty").mkdir()

    with pytest.raises(UserError, match="already holds something"):
        export(tiny_llama_dir, tmp_path / "full", adapter)

    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    export(tiny_llama_dir, tmp_path / "empty", adapter)
    assert (tmp_path / "empty" / "config.json").is_file()
    with pytest.raises(UserError, match="export_dir"):
        check_target(None)


@pytest.mark.parametrize("damage", ["weights", "tensor file", "template", "config"])
def test_a_damaged_export_is_found_and_removed(
    tiny_llama_dir: Path, adapter: Path, tmp_path: Path, damage: str
) -> None:
    arguments = model_args(tiny_llama_dir, adapter_name_or_path=str(adapter), infer_dtype="float32")
    tokenizer = load_tokenizer(arguments)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments())
    probe = make_probe(tokenizer, template)
    target = tmp_path / "out"

    def write_and_damage() -> None:
        with written_aside(target) as folder:
            promise = save_export(
                merge_model(tokenizer, probe, arguments), probe, folder, tokenizer, template, arguments
            )
            verify_export(promise, probe, folder, arguments)  # it was right
            spoil(folder, damage)
            verify_export(promise, probe, folder, arguments)

    with pytest.raises(UserError):
        write_and_damage()

    assert not list(tmp_path.glob("*out*"))


def spoil(folder: Path, damage: str) -> None:
    weights = folder / "model.safetensors"
    if damage == "weights":
        change_tensor(weights, "layers.1.mlp.up_proj", 1.001)
    elif damage == "tensor file":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif damage == "template":
        path = folder / "chat_template.jinja"
        path.write_text(path.read_text().replace("assistant", "bot"))
    else:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-3}))


def test_a_model_that_sees_keeps_its_eyes(tmp_path: Path) -> None:
    """The processor goes with it, and what it answers to an image stays the same."""
    pytest.importorskip("PIL")
    from media_models import picture, save_family
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    base = save_family("llava", tmp_path / "base")
    target = export(base, tmp_path / "out")

    def answer(folder: Path) -> torch.Tensor:
        processor: Any = AutoProcessor.from_pretrained(folder)
        model = AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32).eval()
        talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
        text = processor.apply_chat_template(talk, add_generation_prompt=True)
        with torch.no_grad():
            return model(**processor(images=[picture()], text=[text], return_tensors="pt")).logits

    assert torch.equal(answer(base), answer(target))
