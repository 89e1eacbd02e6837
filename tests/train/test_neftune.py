"""Row N6: the noise of NEFTune has the size that the paper gives it, for each document by its own length."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_pairs import PAD, dpo_parts, make_pairs
from tiny_trainer import make_rows, with_lora

from llamafactory.data.batch import documents_of, model_inputs
from llamafactory.data.collator import FlatCollator, PackedCollator, PaddingCollator
from llamafactory.data.shared_prefix import SharedPrefixCollator
from llamafactory.extras.errors import UserError
from llamafactory.hparams.parser import get_train_args
from llamafactory.model.readout import Readout, enable_readout
from llamafactory.train.callbacks.neftune import EmbeddingNoise, add_noise, document_lengths
from llamafactory.train.objective import Models
from llamafactory.train.reference import measuring, reference_of


ALPHA, WIDTH = 5.0, 32
ROWS = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in make_rows(6, seed=2)]
COLLATORS: dict[str, Any] = {
    "padded": PaddingCollator(PAD),
    "padded on the left": PaddingCollator(PAD, padding_side="left"),
    "packed": PackedCollator(PAD),
    "flat": FlatCollator(PAD),
    "flat without bounds": FlatCollator(PAD, with_bounds=False),
}


def embedded(model: Any, batch: Any) -> torch.Tensor:
    """What the decoder gets from the embedding, as a stage calls the model."""
    seen: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(output))
    readout = Readout(torch.tensor([0]), lambda hidden_KD, head: hidden_KD)
    model(**model_inputs(batch), use_cache=False, readout=readout)
    hook.remove()
    return seen[0].detach()


@pytest.mark.parametrize("kind", COLLATORS)
@pytest.mark.parametrize("adapted", [False, True])
def test_n6_noise_is_as_large_as_the_length_of_its_own_document_says(
    tiny_llama: Callable[[], Any], kind: str, adapted: bool
):
    model = with_lora(tiny_llama()) if adapted else tiny_llama()
    enable_readout(model)
    batch = COLLATORS[kind](ROWS)
    plain = embedded(model.train(), batch)
    torch.manual_seed(0)
    hooks = add_noise(model, ALPHA)
    noise = embedded(model, batch) - plain

    lengths = [len(row["input_ids"]) for row in ROWS]
    documents, is_token = documents_of(batch), batch["attention_mask"].bool()
    for number, length in zip(documents[is_token].unique(), lengths, strict=True):
        found = noise[is_token & (documents == number)]
        bound = ALPHA / math.sqrt(length * WIDTH)
        assert found.shape == (length, WIDTH)
        assert found.abs().max() <= bound * (1 + 1e-5)
        assert found.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)  # of numbers drawn evenly from both sides
        assert abs(float(found.mean())) < 0.2 * bound
    assert max(lengths) > 4 * min(lengths)
    assert not (embedded(model.eval(), batch) - plain).any()
    for hook in hooks:
        hook.remove()
    assert not (embedded(model.train(), batch) - plain).any()


def test_n6_a_shared_prompt_has_the_length_of_the_first_answer_with_it():
    rows = make_pairs(3)
    sides = [
        {"input_ids": row[f"{side}_input_ids"], "labels": row[f"{side}_labels"]}
        for side in ("chosen", "rejected")
        for row in rows
    ]
    batch = SharedPrefixCollator(PAD)(sides)
    lengths = document_lengths(model_inputs(batch))
    for number, row in enumerate(sides):
        assert lengths[batch["documents"] == number].unique().tolist() == [len(row["input_ids"])]


def test_n6_n27_neither_evaluation_nor_a_reference_gets_noise(make_model: Callable[..., Any]):
    model = make_model("lora")
    parts = dpo_parts(model)
    batch, models = parts.collate(make_pairs(4)), Models(model.train())
    plain = parts.objective(models, batch)
    with reference_of(models) as reference:
        before = embedded(reference, {name: value for name, value in batch.items() if name != "num_answers"})

    add_noise(model, 50.0)

    inputs = {name: value for name, value in batch.items() if name != "num_answers"}
    with reference_of(models) as reference:
        assert torch.equal(embedded(reference, inputs), before)
    with measuring(model) as measured:
        assert torch.equal(embedded(measured, inputs), before)
    assert (parts.objective(models, batch).total - plain.total).abs() > 1e-3  # the policy in training does
    model.eval()
    assert parts.objective(models, batch).total.item() == pytest.approx(plain.total.item(), abs=1e-6)


def test_noise_begins_and_ends_with_training(make_model: Callable[..., Any], make_trainer: Any):
    losses = {}
    for alpha in (None, 50.0):
        model = make_model("lora")
        callbacks = [EmbeddingNoise(alpha)] if alpha else []
        trainer = make_trainer(model, make_rows(8), callbacks=callbacks, learning_rate=0.0, eval_rows=make_rows(3))
        losses[alpha] = (trainer.train().metrics["train_loss"], trainer.evaluate()["eval_loss"])
        assert not model.get_input_embeddings()._forward_hooks
    assert abs(losses[50.0][0] - losses[None][0]) > 1e-3
    assert losses[50.0][1] == losses[None][1]


@pytest.mark.parametrize(
    ("stage", "keys", "words"),
    [
        ("grpo", {"neftune_noise_alpha": 5, "reward_funcs": "r.py:f"}, "neftune_noise_alpha: 5.0 cannot go with"),
        ("dpo", {"label_smoothing_factor": 0.1}, "label_smoothing_factor: 0.1 cannot go with stage: dpo"),
        ("rm", {"label_smoothing_factor": 0.1}, "label_smoothing_factor: 0.1 cannot go with stage: rm"),
    ],
)
def test_what_a_stage_would_ignore_is_refused(stage: str, keys: dict[str, Any], words: str):
    needed = {"model_name_or_path": "m", "output_dir": "o", "do_train": True, "dataset": "d", "template": "chatml"}
    with pytest.raises(UserError, match=words):
        get_train_args({**needed, "stage": stage, **keys})
