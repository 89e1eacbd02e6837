"""The scripts: each explains itself, and does what it says on tiny models."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from model_making import logits, randomize, save_adapter
from openai import OpenAI
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
EXPLAINED = [
    "eval_bleu_rouge",
    "vllm_infer",
    "merge_adapters",
    "hf2dcp",
    "dcp2hf",
    "convert_ckpt/llamafy_qwen",
    "convert_ckpt/llamafy_baichuan2",
    "convert_ckpt/tiny_qwen3",
    "convert_ckpt/tiny_llama4",
    "stat_utils/cal_ppl",
    "api_example/test_toolcall",
    "api_example/test_image",
]


def script(name: str) -> ModuleType:
    """Import a script as Python would run it: its own folder first on the path."""
    path = SCRIPTS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def test_every_script_of_users_is_tried_here_and_documented() -> None:
    ours = {"check_size", "demo", "llama_pro", "make_docs", "make_golden"}  # other tests have these
    shared = {"convert_ckpt/checkpoint", "convert_ckpt/tiny_model", "api_example/client"}
    found = {str(path.relative_to(SCRIPTS).with_suffix("")) for path in SCRIPTS.rglob("*.py")}

    assert set(EXPLAINED) <= found
    assert found & (ours | shared) == ours | shared
    docs = (SCRIPTS.parent / "docs" / "export.md").read_text(encoding="utf-8")
    assert [name for name in EXPLAINED if f"{Path(name).name}.py" not in docs] == []


@pytest.mark.parametrize("name", EXPLAINED)
def test_a_script_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = script(name)
    first = str(module.__doc__).splitlines()[0]
    if not hasattr(module, "main"):
        assert module.run.__module__ in ("checkpoint", "tiny_model")  # its command line is argparse's
        return
    try:
        assert module.main(["--help"]) == 0
    except SystemExit as end:
        assert end.code == 0  # noqa: PT017  (argparse leaves so)
    assert first[:40] in capsys.readouterr().out


def test_one_script_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / "convert_ckpt" / "tiny_qwen3.py", "--help"], capture_output=True, check=True
    )
    assert b"tiny Qwen 3" in done.stdout


def test_predictions_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sacrebleu")
    file, wrong = tmp_path / "p.jsonl", tmp_path / "w.jsonl"
    file.write_text(json.dumps({"predict": "the cat sat down", "label": "the cat sat down"}) + "\n")
    wrong.write_text('{"text": 1}\n')
    module = script("eval_bleu_rouge")

    assert module.main([str(file), "--save-name", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["rouge-l"] == pytest.approx(100)
    assert module.main([str(wrong), "--save-name", str(tmp_path / "s2.json")]) == 1
    assert "`predict` and `label`" in capsys.readouterr().err


def test_merged_adapters_are_the_weighted_sum(tiny_llama_dir: Path, tmp_path: Path) -> None:
    one = save_adapter(tiny_llama_dir, tmp_path / "1", seed=1, lora_rank=4)
    two = save_adapter(tiny_llama_dir, tmp_path / "2", seed=2, lora_rank=2, use_rslora=True)
    module = script("merge_adapters")

    rank = module.merge([one, two], [0.7, -0.3], tmp_path / "sum")
    module.merge([tmp_path / "sum"], [1.0], tmp_path / "again", rank=6)
    module.merge([tmp_path / "sum"], [1.0], tmp_path / "cut", rank=3)

    def change(folder: Path) -> torch.Tensor:
        config = module.read_config(folder)
        weights = load_file(folder / "adapter_model.safetensors")
        name = next(name for name in sorted(weights) if name.endswith(module.A))
        return module.scale_of(config) * weights[name.replace("lora_A", "lora_B")] @ weights[name]

    expected = 0.7 * change(one) - 0.3 * change(two)
    assert rank == 6
    assert torch.allclose(change(tmp_path / "sum"), expected, atol=1e-6)
    assert torch.allclose(change(tmp_path / "again"), expected, atol=1e-6)
    best = torch.linalg.svdvals(expected)[3:].norm()  # no matrix of rank 3 is nearer
    assert torch.allclose((change(tmp_path / "cut") - expected).norm(), best, rtol=1e-3)
    assert module.main([str(one), "--weights", "1,2", "--output-dir", str(tmp_path / "bad")]) == 1


def test_distributed_checkpoints_there_and_back(tiny_llama_dir: Path, tmp_path: Path) -> None:
    there, back = script("hf2dcp"), script("dcp2hf")
    common = ["--dcp_path", str(tmp_path / "dcp"), "--hf_path"]

    assert there.main(["convert", *common, str(tiny_llama_dir)]) == 0
    assert back.main(["convert", *common, str(tmp_path / "hf"), "--config_path", str(tiny_llama_dir)]) == 0

    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_llama_dir, tmp_path / "hf"))
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert (tmp_path / "hf" / "tokenizer.json").is_file()


@pytest.fixture
def llama() -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=False, attention_bias=True, **sizes))
    return randomize(model)


def test_qwen_becomes_a_llama(llama: Any, tmp_path: Path) -> None:
    """The same weights under Qwen's names give the same answers."""
    module, state = script("convert_ckpt/llamafy_qwen"), llama.state_dict()
    names = {f"self_attn.{letter}_proj": None for letter in "qkv"} | {new: old for old, new in module.NAMES.items()}
    qwen = {old: state[new] for old, new in module.OUTER.items()}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        for kind in ("weight", "bias"):
            parts = [state[f"{prefix}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            qwen[f"transformer.h.{layer}.attn.c_attn.{kind}"] = torch.cat(parts)
        state[f"{prefix}.self_attn.o_proj.bias"].zero_()  # Qwen has none
        for new, old in names.items():
            if old:
                qwen[f"transformer.h.{layer}.{old}.weight"] = state[f"{prefix}.{new}.weight"]
    config = {
        "model_type": "qwen",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "seq_length": 2048,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
    }
    write(tmp_path / "qwen", config, qwen)

    module.convert(tmp_path / "qwen", tmp_path / "out", "2GB")

    assert torch.allclose(logits(llama), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), atol=1e-5)
    assert (
        module.run(None, module.convert, ["--input_dir", str(tmp_path / "out"), "--output_dir", str(tmp_path / "x")])
        == 1
    )


def test_baichuan_becomes_a_llama(llama: Any, tmp_path: Path) -> None:
    module = script("convert_ckpt/llamafy_baichuan2")
    state = {name: weight for name, weight in llama.state_dict().items() if not name.endswith("bias")}
    for parameter in (weight for name, weight in llama.named_parameters() if name.endswith("bias")):
        parameter.data.zero_()
    old = {name: weight for name, weight in state.items() if not any(f"{x}_proj" in name for x in "qkv")}
    for layer in range(2):
        prefix = f"model.layers.{layer}.self_attn"
        old[f"{prefix}.W_pack.weight"] = torch.cat([state[f"{prefix}.{letter}_proj.weight"] for letter in "qkv"])
    config = {
        "model_type": "baichuan",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    }
    write(tmp_path / "old", config, old, as_bin=True)
    write(tmp_path / "13b", {key: value for key, value in config.items() if "position" not in key}, old)

    module.convert(tmp_path / "old", tmp_path / "out", "2GB")

    lengths = llama.lm_head.weight.data.norm(dim=1)
    expected = logits(llama) / lengths
    assert torch.allclose(expected, logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), atol=1e-5)
    with pytest.raises(ValueError, match="ALiBi"):
        module.convert(tmp_path / "13b", tmp_path / "no", "2GB")


def write(folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor], *, as_bin: bool = False) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    state = {name: weight.clone().contiguous() for name, weight in state.items()}
    if as_bin:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("name", ["tiny_qwen3", "tiny_llama4"])
def test_tiny_models_can_be_loaded(name: str, tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    module = script(f"convert_ckpt/{name}")
    kind = {"tiny_qwen3": "qwen3", "tiny_llama4": "llama4_text"}[name]

    words = ["--tokenizer", str(tiny_tokenizer_dir), "--output_dir", str(tmp_path / "out")]
    assert module.run(None, kind, module.SIZES, words) == 0

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.isfinite(logits(model)).all()


def test_perplexity_of_each_row(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path) -> None:
    words = [
        f"model_name_or_path={tiny_llama_dir}",
        f"dataset_dir={demo_dataset_dir}",
        "dataset=tiny_alpaca",
        "max_samples=3",
        "infer_dtype=float32",
        f"save_name={tmp_path / 'ppl.json'}",
    ]
    assert script("stat_utils/cal_ppl").main(words) == 0

    figures = json.loads((tmp_path / "ppl.json").read_text())
    assert len(figures) == 3
    assert all(300 < figure < 1200 for figure in figures)  # a fresh model guesses among its 600 words


@pytest.fixture
def client() -> Iterator[tuple[OpenAI, list[Any]]]:
    """The official client over a server that calls the tool once, and tells an image by its bytes."""
    seen: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        seen.append(body)
        call = {"name": "grade_point_average", "arguments": '{"grades": ["A", "B"], "hours": [3, 1]}'}
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if body.get("tools") and body["messages"][-1]["role"] == "user":
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": call}]
        else:
            message["content"] = str(body["messages"][-1]["content"])
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return httpx.Response(
            200, json={"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        )

    transport = httpx.Client(transport=httpx.MockTransport(answer))
    yield OpenAI(api_key="k", base_url="http://127.0.0.1:1/v1", http_client=transport), seen
    transport.close()


def test_the_tool_sample_runs_the_tool(client: tuple[OpenAI, list[Any]]) -> None:
    module = script("api_example/test_toolcall")

    assert module.converse(client[0], "m") == "3.75"
    roles = [message["role"] for message in client[1][-1]["messages"]]
    assert roles == ["user", "assistant", "tool"]
    assert "KeyError" in module.run_tool("nothing", "{}")


def test_the_image_sample_sends_the_bytes(client: tuple[OpenAI, list[Any]], tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"\x89PNG")

    assert "data:image/png;base64,iVBORw==" in script("api_example/test_image").ask(
        client[0], "m", tmp_path / "p.png", "?"
    )


class FakeVllm(ModuleType):
    """vllm 0.33's offline engine, as far as the script calls it: it answers with the prompt's last ids."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.calls: list[Any] = []

    def SamplingParams(self, **values: Any) -> dict[str, Any]:  # noqa: N802
        assert values["detokenize"] is False
        self.calls.append(values)
        return values

    def LLM(self, **values: Any) -> Any:  # noqa: N802
        self.calls.append(values)

        def generate(prompts: Any, sampling_params: Any, *, lora_request: Any, use_tqdm: bool) -> list[Any]:
            self.calls.append((len(prompts), lora_request))
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=p["prompt_token_ids"][3:6])]) for p in prompts]

        return SimpleNamespace(generate=generate)


def test_vllm_answers_a_dataset(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, module = FakeVllm(), script("vllm_infer")
    monkeypatch.setattr(module, "require", lambda *names: fake)
    words = ["--model_name_or_path", str(tiny_llama_dir), f"dataset_dir={demo_dataset_dir}", "dataset=tiny_alpaca"]
    words += ["template=chatml", "batch_size=20", "seed=3", "max_new_tokens=7", "pipeline_parallel_size=2"]

    assert module.main([*words, f"save_name={tmp_path / 'p.jsonl'}"]) == 0

    options, sampling, *batches = fake.calls
    assert (options["model"], options["pipeline_parallel_size"]) == (str(tiny_llama_dir), 2)
    assert (sampling["max_tokens"], sampling["seed"], sampling["ignore_eos"]) == (7, 3, True)
    assert sampling["stop_token_ids"]
    assert batches == [(20, None), (4, None)]
    records = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(records) == 24
    assert records[0].keys() == {"prompt", "predict", "label"}
    assert records[0]["label"] in ("one.", "Sure: one. Done with row 0.")
    assert "Count to one." in records[0]["prompt"]
    assert module.main(["model_name_or_path"]) == 1
