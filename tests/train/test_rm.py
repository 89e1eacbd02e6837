"""Stage rm: rows N1, N4, N33 and N40, files that plain transformers and peft load, and that it learns."""

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import FLOAT32, model_args, save_adapter, tuning
from safetensors.torch import load_file, save_file
from tiny_trainer import losses, trained_weights
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from llamafactory.data.collator import FlatCollator, PaddingCollator
from llamafactory.extras.errors import UserError
from llamafactory.model import load_model, load_tokenizer, load_valuehead_params
from llamafactory.model.readout import enable_readout
from llamafactory.train.objective import Models
from llamafactory.train.rm.objective import count_pairs, pairwise_objective
from llamafactory.train.rm.predictor import ScorePredictor
from llamafactory.train.rm.scoring import PairCollator, ScoredCollator, score_sequences
from llamafactory.train.stage import StageParts
from llamafactory.train.tuner import export_model, run_exp


GOOD, BAD = "Sure, gladly.", "No, never."


def make_pairs(num_rows: int, vocabulary: int = 300, seed: int = 0) -> list[dict[str, list[int]]]:
    """Pairs of very different lengths, with the end token inside of prompts and at the end of answers."""
    draw = random.Random(seed)  # noqa: S311
    rows = []
    for _ in range(num_rows):
        prompt = [draw.randrange(3, vocabulary) for _ in range(draw.randrange(2, 12))]
        prompt[len(prompt) // 2] = 2
        better, worse = ([draw.randrange(3, vocabulary) for _ in range(draw.randrange(1, 14))] + [2] for _ in range(2))
        row = {}
        for name, answer in (("chosen", better), ("rejected", worse)):
            row[f"{name}_input_ids"] = prompt + answer
            row[f"{name}_labels"] = [-100] * len(prompt) + answer
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def make_scorer(tiny_llama: Callable[[], Any]) -> Callable[..., Any]:
    """Makes equal tiny reward models, "full" or under "lora"."""
    from peft import LoraConfig, get_peft_model

    def make(method: str = "full") -> Any:
        source = tiny_llama()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            config = copy.deepcopy(source.config)
            config.num_labels = 1
            model = AutoModelForSequenceClassification.from_config(config)
            model.model.load_state_dict(source.model.state_dict())
            if method == "lora":
                lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="SEQ_CLS")
                model = get_peft_model(model, lora)
        enable_readout(model)
        return model

    return make


def collators(tokenizer: Any) -> dict[str, ScoredCollator]:
    return {
        "right": ScoredCollator(PaddingCollator(tokenizer)),
        "left": ScoredCollator(PaddingCollator(tokenizer, padding_side="left")),
        "multiple": ScoredCollator(PaddingCollator(tokenizer, pad_to_multiple_of=16)),
        "flat": ScoredCollator(FlatCollator(tokenizer)),
        "flat multiple": ScoredCollator(FlatCollator(tokenizer, 16)),
    }


@pytest.mark.parametrize("pads_with_end", [False, True])
def test_n33_the_score_is_read_at_the_last_real_token_whatever_the_padding(
    make_scorer: Callable[..., Any], tiny_tokenizer_dir: Path, pads_with_end: bool
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    if pads_with_end:
        tokenizer.pad_token = tokenizer.eos_token
    model = make_scorer().eval()
    rows = [{"input_ids": row["chosen_input_ids"], "labels": row["chosen_labels"]} for row in make_pairs(5)]
    with torch.no_grad():
        hidden = [model.model(input_ids=torch.tensor([row["input_ids"]])).last_hidden_state[0, -1] for row in rows]
        expected = torch.stack([model.score(state)[0] for state in hidden])
        for name, collate in collators(tokenizer).items():
            found = score_sequences(model, collate(rows))
            assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)
            one = torch.cat([score_sequences(model, collate([row])) for row in rows])
            assert_close(one, expected, rtol=1e-5, atol=1e-6, msg=name)


def test_the_loss_is_that_of_bradley_and_terry_and_counts_pairs(make_scorer: Callable[..., Any], tiny_tokenizer: Any):
    model, rows = make_scorer(), make_pairs(4)
    pairs = PairCollator(collators(tiny_tokenizer)["right"])
    found = pairwise_objective(Models(model), pairs(rows))
    plain = [
        [model(input_ids=torch.tensor([row[f"{side}_input_ids"]])).logits.item() for side in ("chosen", "rejected")]
        for row in rows
    ]
    margins = torch.tensor([better - worse for better, worse in plain], dtype=torch.float64)
    assert found.total.item() == pytest.approx((1 + (-margins).exp()).log().sum().item(), rel=1e-5)
    assert found.weight.item() == count_pairs(pairs(rows)).item() == 4
    assert found.metrics["accuracy"].total.item() == (margins > 0).sum().item()


def parts_of(tokenizer: Any, kind: str = "flat") -> StageParts:
    pairs = PairCollator(collators(tokenizer)[kind])
    return StageParts(collate=pairs, objective=pairwise_objective, weigh=count_pairs, predictor=ScorePredictor(pairs))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_n1_updates_do_not_depend_on_how_a_step_is_cut(
    make_scorer: Callable[..., Any], make_trainer: Any, tiny_tokenizer: Any, method: str
):
    rows, results = make_pairs(11), []
    for batch, accumulation, kind in ((8, 1, "flat"), (4, 2, "right"), (2, 4, "flat"), (1, 8, "left")):
        model = make_scorer(method)
        trainer = make_trainer(
            model,
            rows,
            parts=parts_of(tiny_tokenizer, kind),
            eval_rows=make_pairs(5, seed=2),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.05,
        )
        trainer.train()
        results.append((torch.tensor(losses(trainer)), trained_weights(model), trainer.evaluate()["eval_loss"]))
    for curve, weights, eval_loss in results[1:]:
        assert_close(curve, results[0][0], rtol=0, atol=1e-5)
        assert_close(weights, results[0][1], rtol=0, atol=1e-5)
        assert eval_loss == pytest.approx(results[0][2], abs=1e-5)


@pytest.fixture
def keys(tiny_llama_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """A run over pairs of which the better answer is the polite one, whatever else it says."""
    draw = random.Random(0)  # noqa: S311
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    rows = []
    for _ in range(96):
        filler = " ".join(draw.choices(words, k=draw.randrange(1, 8)))
        rows.append(
            {
                "instruction": f"Count {draw.choice(words)} things.",
                "chosen": f"{filler}. {GOOD}" if draw.random() < 0.5 else f"{GOOD} {filler}.",
                "rejected": f"{filler}. {BAD}" if draw.random() < 0.5 else f"{BAD} {filler}.",
            }
        )
    data = tmp_path / "data"
    data.mkdir()
    (data / "pairs.json").write_text(json.dumps(rows), encoding="utf-8")
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    info = {"pairs": {"file_name": "pairs.json", "ranking": True, "columns": columns}}
    (data / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return {
        "model_name_or_path": str(tiny_llama_dir),
        "stage": "rm",
        "do_train": True,
        "do_eval": True,
        "do_predict": True,
        "finetuning_type": "full",
        "dataset": "pairs",
        "dataset_dir": str(data),
        "template": "chatml",
        "cutoff_len": 128,
        "val_size": 32,
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 3e-3,
        "num_train_epochs": 3,
        "logging_steps": 4,
        "save_strategy": "no",
        "bf16": False,
        "disable_tqdm": True,
        "use_cpu": True,
        "padding_free": True,
    }


@pytest.mark.parametrize("method", ["full", "lora", "freeze"])
def test_a_learnable_preference_is_learned_and_the_result_loads_with_plain_libraries(
    keys: dict[str, Any], tmp_path: Path, tiny_llama_dir: Path, method: str
):
    out = tmp_path / "out"
    run_exp({**keys, "finetuning_type": method, "learning_rate": 1e-2 if method == "lora" else 3e-3, "lora_rank": 8})
    results = json.loads((out / "all_results.json").read_text())
    assert results["eval_accuracy"] > 0.9
    assert results["predict_accuracy"] == pytest.approx(results["eval_accuracy"])

    records = [json.loads(line) for line in (out / "generated_predictions.jsonl").open(encoding="utf-8")]
    assert len(records) == 32
    assert all(list(record) == ["chosen", "rejected"] for record in records)
    right = sum(record["chosen"] > record["rejected"] for record in records) / len(records)
    assert right == pytest.approx(results["eval_accuracy"], abs=0.05)

    tokenizer = AutoTokenizer.from_pretrained(out)
    if method == "lora":
        from peft import AutoPeftModelForSequenceClassification

        model = AutoPeftModelForSequenceClassification.from_pretrained(out, num_labels=1)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(out)
        assert model.config.num_labels == 1
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "Count two things."}, {"role": "assistant", "content": answer}],
            tokenize=False,
        ).removesuffix("\n")
        for answer in (f"{GOOD} one two three.", f"{BAD} one two three four.")
    ]
    batch = tokenizer(chats, padding=True, return_tensors="pt", add_special_tokens=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        better, worse = model.eval()(**batch).logits[:, 0].tolist()
    assert better > worse + 0.5


@pytest.mark.parametrize("method", ["full", "lora"])
def test_n33_plain_transformers_reads_the_same_scores_where_the_tokenizer_padded_with_its_end_token(
    keys: dict[str, Any], tmp_path: Path, tiny_llama_dir: Path, method: str
):
    from peft import AutoPeftModelForSequenceClassification

    source = tmp_path / "model"
    shutil.copytree(tiny_llama_dir, source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(source)
    run_exp({**keys, "model_name_or_path": str(source), "finetuning_type": method, "max_steps": 2, "do_eval": False})
    records = [json.loads(line) for line in (tmp_path / "out" / "generated_predictions.jsonl").open(encoding="utf-8")]

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.pad_token != tokenizer.eos_token
    if method == "lora":
        model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
    else:
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    data = dialogues(keys, tokenizer)
    batch = tokenizer(data, padding=True, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        scores = model.eval()(**batch).logits[:, 0].tolist()
    found = {(round(better, 2), round(worse, 2)) for better, worse in zip(scores[::2], scores[1::2], strict=True)}
    close = [any(abs(a - r["chosen"]) + abs(b - r["rejected"]) < 0.03 for a, b in found) for r in records]
    assert len(close) == 32
    assert all(close)


def dialogues(keys: dict[str, Any], tokenizer: Any) -> list[str]:
    """All dialogues of the pairs, better answers before worse ones, up to and with the end token."""
    rows = json.loads((Path(keys["dataset_dir"]) / "pairs.json").read_text(encoding="utf-8"))
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row[side]}],
            tokenize=False,
        ).removesuffix("\n")
        for row in rows
        for side in ("chosen", "rejected")
    ]


def value_head_file(folder: Path, width: int, kind: str) -> torch.Tensor:
    """Write a head as the established tool does."""
    weight = torch.randn(1, width, generator=torch.Generator().manual_seed(8))
    params = {"v_head.summary.weight": weight, "v_head.summary.bias": torch.tensor([0.25])}
    if kind == "bin":
        torch.save(params, folder / "value_head.bin")
    else:
        save_file(params, folder / "value_head.safetensors")
    return weight


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_an_adapter_with_a_value_head_file_is_read_as_a_reward_model(tiny_llama_dir: Path, tmp_path: Path, kind: str):
    folder = save_adapter(tiny_llama_dir, tmp_path / "adapter")
    weight = value_head_file(folder, 32, kind)
    arguments = model_args(tiny_llama_dir, adapter_name_or_path=(str(folder),))
    params = load_valuehead_params(str(folder), arguments)
    assert params is not None
    assert torch.equal(params["v_head.summary.weight"], weight)
    assert load_valuehead_params(str(tmp_path), arguments) is None

    tokenizer = load_tokenizer(arguments)["tokenizer"]
    model: Any = load_model(tokenizer, arguments, tuning(), dtype=FLOAT32, head="score")
    assert torch.equal(model.score.weight, weight)
    plain: Any = load_model(tokenizer, arguments, tuning(), dtype=FLOAT32)
    ids = torch.arange(3, 20)[None]
    expected = plain.model(input_ids=ids).last_hidden_state[0, -1] @ weight[0]
    assert_close(model(input_ids=ids).logits[0, 0], expected)

    with pytest.raises(UserError, match="set create_new_adapter: true"):
        load_model(tokenizer, arguments, tuning(), True, dtype=FLOAT32, head="score")
    fresh: Any = load_model(tokenizer, arguments, tuning(create_new_adapter=True), True, dtype=FLOAT32, head="score")
    assert_close(fresh(input_ids=ids).logits[0, 0], expected)


def test_a_head_of_another_width_or_none_at_all_is_refused(tiny_llama_dir: Path, tmp_path: Path):
    folder = save_adapter(tiny_llama_dir, tmp_path / "adapter")
    value_head_file(folder, 16, "safetensors")
    arguments = model_args(tiny_llama_dir, adapter_name_or_path=(str(folder),))
    tokenizer = load_tokenizer(arguments)["tokenizer"]
    with pytest.raises(UserError, match="does not fit the score layer"):
        load_model(tokenizer, arguments, tuning(), dtype=FLOAT32, head="score")
    with pytest.raises(UserError, match="has no score layer"):
        load_model(tokenizer, model_args(tiny_llama_dir), tuning(), dtype=FLOAT32, head="score")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_reward_model_is_exported_as_one_that_plain_transformers_loads(
    keys: dict[str, Any], tmp_path: Path, method: str
):
    run_exp({**keys, "finetuning_type": method, "max_steps": 2, "do_eval": False, "do_predict": False})
    trained = str(tmp_path / "out")
    base = trained if method == "full" else keys["model_name_or_path"]
    given = {"adapter_name_or_path": trained} if method == "lora" else {}
    export_model({"model_name_or_path": base, "template": "chatml", "export_dir": str(tmp_path / "merged"), **given})

    arguments = model_args(base, adapter_name_or_path=(trained,) if method == "lora" else None)
    tokenizer = load_tokenizer(arguments)["tokenizer"]
    expected = load_model(tokenizer, arguments, tuning(), dtype=FLOAT32, head="score")
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    ids = torch.arange(3, 30)[None]
    assert_close(exported(input_ids=ids).logits, expected(input_ids=ids).logits, rtol=0, atol=2e-2)
    assert "AutoModelForSequenceClassification" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_the_score_of_a_value_head_file_is_exported_with_stage_rm_and_told_of_without(
    tiny_llama_dir: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
):
    if kind == "adapter":
        folder = save_adapter(tiny_llama_dir, tmp_path / "source")
        keys = {"model_name_or_path": str(tiny_llama_dir), "adapter_name_or_path": str(folder), "template": "chatml"}
    else:
        folder = Path(shutil.copytree(tiny_llama_dir, tmp_path / "source"))
        keys = {"model_name_or_path": str(folder), "template": "chatml"}
    with pytest.raises(UserError, match="has neither a score layer nor a value head file"):
        export_model({**keys, "stage": "rm", "export_dir": str(tmp_path / "nothing")})
    weight = value_head_file(folder, 32, "safetensors")
    export_model({**keys, "export_dir": str(tmp_path / "words")})
    assert "to export it as a reward model, with its score, set stage: rm" in caplog.text
    assert AutoConfig.from_pretrained(tmp_path / "words").architectures == ["LlamaForCausalLM"]

    export_model({**keys, "stage": "rm", "infer_dtype": "float32", "export_dir": str(tmp_path / "reward")})
    scorer = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "words", dtype=torch.float32).eval()
    assert scorer.config.num_labels == 1
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = plain.model(input_ids=ids).last_hidden_state[0, -1] @ weight[0]
        assert_close(scorer(input_ids=ids).logits[0, 0], expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_n40_a_resumed_run_equals_the_uninterrupted_one(keys: dict[str, Any], tmp_path: Path, method: str):
    common = {
        **keys,
        "finetuning_type": method,
        "do_eval": False,
        "do_predict": False,
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 5,
        "lora_dropout": 0.1,
    }
    run_exp(common)
    half = tmp_path / "half"
    run_exp({**common, "output_dir": str(half)})
    for name in ("train_results.json", "all_results.json"):
        (half / name).unlink()
    for folder in ("checkpoint-4", "checkpoint-5"):
        (half / folder / "trainer_state.json").unlink(missing_ok=True)
    run_exp({**common, "output_dir": str(half), "resume_from_checkpoint": str(half / "checkpoint-2")})
    name = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    whole, resumed = load_file(tmp_path / "out" / name), load_file(half / name)
    assert any("score" in key for key in whole)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
