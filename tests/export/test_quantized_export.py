"""Exports in few bits: quantized from the checked folder, read back, compared; and where their adapters are merged."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_making import load, logits, model_args, save_adapter
from safetensors.torch import load_file
from transformers import AutoConfig

from llamafactory.extras.errors import UserError
from llamafactory.hparams.exporters import EXPORT_QUANTIZERS
from llamafactory.train.export import export_model, parent
from llamafactory.train.export.calibration import calibration_rows, pack_texts
from llamafactory.train.export.parent import trace_parent
from llamafactory.train.export.probe import require_close
from llamafactory.train.export.quantized import find_quantizer, take_over
from llamafactory.train.export.quantizers import gptq
from llamafactory.train.export.quantizers.fp8 import quantize_blocks
from llamafactory.train.export.quantizers.request import QuantizeRequest


def test_short_texts_are_joined_and_long_ones_give_one_piece(tiny_tokenizer: Any) -> None:
    short = [f"Row {number} is short." for number in range(40)]
    long = " ".join(f"word{number}" for number in range(400))

    rows = pack_texts(tiny_tokenizer, [*short, long], num_rows=6, length=32)
    everything = pack_texts(tiny_tokenizer, short, num_rows=10**6, length=32)

    assert [len(row) for row in rows] == [32] * 6
    assert rows == pack_texts(tiny_tokenizer, [*short, long], num_rows=6, length=32)
    num_tokens = sum(len(tiny_tokenizer(text).input_ids) + 1 for text in short)
    assert len(everything) == num_tokens // 32  # nothing is dropped but the last row, which is not full
    seen = tiny_tokenizer.decode([index for row in everything for index in row])
    assert sum(f"Row {number} is short.<|im_end|>" in seen for number in range(40)) >= 36
    piece = pack_texts(tiny_tokenizer, [long], num_rows=9, length=32)
    assert len(piece) == 1
    assert tiny_tokenizer.decode(piece[0]) in long


def test_calibration_texts_come_from_a_column_of_a_file(tiny_tokenizer: Any, tmp_path: Path) -> None:
    file, wrong, empty = tmp_path / "c4.jsonl", tmp_path / "wrong.json", tmp_path / "empty.json"
    file.write_text("".join(json.dumps({"text": f"Text {number}."}) + "\n" for number in range(9)))
    wrong.write_text(json.dumps([{"words": "a"}]))
    empty.write_text(json.dumps([{"text": " "}]))

    def rows(path: Path) -> list[list[int]]:
        return calibration_rows(tiny_tokenizer, model_args("m", export_quantization_dataset=str(path)))

    assert 0 < len(rows(file)[0]) < 1024  # all texts together are less than one row
    with pytest.raises(UserError, match="needs a column 'text'; here are words"):
        rows(wrong)
    with pytest.raises(UserError, match="has no text"):
        rows(empty)


def test_blocks_of_float8_are_near_and_use_their_whole_range() -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 64)[:, None]
    weight[:32, :32] = 0

    packed, scales = quantize_blocks(weight, 32)

    whole = packed.float() * scales.repeat_interleave(32, 0).repeat_interleave(32, 1)
    blocks = weight.view(2, 32, 3, 32).abs().amax((1, 3)).repeat_interleave(32, 0).repeat_interleave(32, 1)
    assert torch.all((whole - weight).abs() <= weight.abs() / 16 + blocks * 2.0**-16)  # 3 bits of mantissa
    assert packed.float().view(2, 32, 3, 32).abs().amax((1, 3)).flatten().tolist()[1:] == [448.0] * 5
    assert scales.shape == (2, 3)


def test_an_export_in_fp8(tiny_llama_dir: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_llama_dir, tmp_path / "adapter")

    export_model(
        {
            "model_name_or_path": str(tiny_llama_dir),
            "adapter_name_or_path": str(adapter),
            "export_dir": str(tmp_path / "out"),
            "export_quantization_method": "fp8",
            "template": "chatml",
        }
    )

    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["model.layers.0.mlp.up_proj.weight"].dtype == torch.float8_e4m3fn
    assert stored["model.layers.0.mlp.up_proj.weight_scale_inv"].shape == (4, 2)
    assert stored["model.embed_tokens.weight"].dtype == torch.float32
    quantization: Any = AutoConfig.from_pretrained(tmp_path / "out").quantization_config
    assert (quantization["quant_method"], quantization["weight_block_size"]) == ("fp8", [16, 16])
    assert "8 bits; against the weights before: mean KL" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "quantized_from.json").exists()  # the merged model stands nowhere else


def test_too_far_is_an_error() -> None:
    near, far = torch.zeros(1, 3, 5), torch.zeros(1, 3, 5)
    near[..., 0], far[..., 1] = 0.1, 9.0

    assert "top token same in 0%" in require_close([near], [torch.zeros(1, 3, 5) - near], 0.1, "both")
    for wrong in (far, far * math.nan):
        with pytest.raises(UserError, match="both answer too differently"):
            require_close([near], [wrong], 0.1, "both")


@pytest.mark.parametrize(("method", "word"), [("gptq", "gptqmodel"), ("bnb", r"llamafactory\[bnb\]"), ("awq", "cuda")])
def test_a_quantizer_that_is_not_there_is_one_sentence(
    method: Any, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamafactory.extras.packages.is_available", lambda name: False)
    with pytest.raises(UserError, match=word):
        find_quantizer(model_args("m", export_quantization_method=method, export_quantization_bit=4))
    assert find_quantizer(model_args("m")) is None
    assert find_quantizer(model_args("m", export_quantization_method="fp8")) is EXPORT_QUANTIZERS["fp8"]


class FakeGptq:
    """gptqmodel 7.6 as far as an export calls it; it writes what it was given."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def QuantizeConfig(self, **values: Any) -> dict[str, Any]:  # noqa: N802
        return values

    @property
    def GPTQModel(self) -> Any:  # noqa: N802
        def load_model(source: str, config: dict[str, Any]) -> Any:
            self.calls.append(config)
            return SimpleNamespace(
                quantize=lambda rows, batch_size: self.calls.append(rows),
                save=lambda target: self.calls.append(target),
            )

        return SimpleNamespace(load=load_model)


def test_what_gptq_is_asked_for(tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeGptq()
    monkeypatch.setattr(gptq, "require", lambda *names: fake)

    gptq.quantize_gptq(QuantizeRequest(tiny_llama_dir, tmp_path, 3, torch.bfloat16, "5GB", [[1, 2, 3]]))

    config, rows, target = fake.calls
    assert config == {"bits": 3, "group_size": 32, "quant_method": "gptq"}
    assert rows[0]["input_ids"].tolist() == [[1, 2, 3]]
    assert rows[0]["attention_mask"].tolist() == [[1, 1, 1]]
    assert target == str(tmp_path)


def test_a_quantizer_must_say_what_it_did(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.safetensors").write_bytes(b"old")
    (tmp_path / "new" / "config.json").write_text("{}")

    with pytest.raises(UserError, match="left no word"):
        take_over(tmp_path / "new", tmp_path / "old")
    assert not (tmp_path / "old" / "model.safetensors").exists()


@pytest.fixture
def quantized(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """The tiny model as if bitsandbytes had packed it, with the note of our export."""
    folder = tmp_path / "quantized"
    folder.mkdir()
    config = json.loads((tiny_llama_dir / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((tiny_llama_dir / "model.safetensors").read_bytes())
    for path in tiny_llama_dir.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_an_adapter_on_a_quantized_base_is_merged_into_its_parent(
    tiny_llama_dir: Path, quantized: Path, tmp_path: Path
) -> None:
    (quantized / "quantized_from.json").write_text(json.dumps({"model_name_or_path": str(tiny_llama_dir)}))
    adapter = save_adapter(tiny_llama_dir, tmp_path / "adapter")

    export_model(
        {
            "model_name_or_path": str(quantized),
            "adapter_name_or_path": str(adapter),
            "export_dir": str(tmp_path / "out"),
            "template": "chatml",
        }
    )

    expected = logits(load(tiny_llama_dir, adapter_name_or_path=str(adapter)))
    found = logits(load(tmp_path / "out"))
    assert float((expected - found).abs().max() / expected.abs().max()) < 1e-5


def test_a_parent_that_does_not_fit_or_is_gone_is_a_refusal(
    tiny_llama_dir: Path, quantized: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(tiny_llama_dir, tmp_path / "adapter")
    arguments = model_args(quantized, adapter_name_or_path=str(adapter))
    assert trace_parent(arguments, [adapter]).model_name_or_path == str(tiny_llama_dir)  # by the adapter's own word

    other = json.loads((quantized / "config.json").read_text()) | {"intermediate_size": 48}
    (quantized / "config.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="16-bit parent was not found"):
        trace_parent(arguments, [adapter])
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/gone/model"}))
    with pytest.raises(UserError, match="looked at /gone/model"):
        trace_parent(arguments, [adapter])


def test_another_base_is_told_by_name(tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = save_adapter(tiny_llama_dir, tmp_path / "adapter")
    told: list[Any] = []
    monkeypatch.setattr(parent.logger, "warning", lambda *words: told.append(words))

    parent.check_base(str(tiny_llama_dir), [adapter])
    parent.check_base("org/other", [adapter])

    assert [words[3] for words in told] == ["org/other"]
