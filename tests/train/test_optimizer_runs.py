"""Every optimizer in a run: the loss of rows that are seen again and again falls, and a resumed run is the same."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import StopAfter, assert_same
from tiny_trainer import losses, make_rows

from llamafactory.extras.errors import UserError
from llamafactory.extras.packages import is_available
from llamafactory.hparams import FinetuningArguments
from llamafactory.hparams.optimizers import OPTIM_FAMILIES, OPTIMIZERS
from llamafactory.train.optimizers import badam
from llamafactory.train.optimizers.making import check_optimizer, optimizer_maker


@dataclass(frozen=True)
class Case:
    """One way of updating weights."""

    keys: dict[str, Any]
    method: str = "full"
    training: dict[str, Any] = field(default_factory=dict)
    steps: int = 10
    falls_to: float = 0.95
    """Share of the first loss that the last one is below; an adapter cannot move the output layer of a tiny model."""


SAVED = 5
SMALL = {"galore_rank": 4, "galore_update_interval": 3, "galore_scale": 1.0}
FEW = {"apollo_rank": 4, "apollo_update_interval": 3, "apollo_scale": 1.0}
OURS = {
    "galore": Case({"use_galore": True, **SMALL}),
    "galore-full": Case({"use_galore": True, **SMALL, "galore_proj_type": "full"}),
    "galore-adafactor": Case({"use_galore": True, **SMALL}, training={"optim": "adafactor"}),
    "galore-8bit": Case({"use_galore": True, **SMALL}, training={"optim": "adamw_8bit"}),
    "galore-layerwise": Case({"use_galore": True, **SMALL, "galore_layerwise": True}),
    "apollo": Case({"use_apollo": True, **FEW}),
    "apollo-svd": Case({"use_apollo": True, **FEW, "apollo_proj": "svd", "apollo_scale_front": True}),
    "apollo-mini": Case({"use_apollo": True, **FEW, "apollo_rank": 1, "apollo_scale_type": "tensor"}),
    "apollo-layerwise": Case({"use_apollo": True, **FEW, "apollo_layerwise": True}),
    "badam": Case({"use_badam": True, "badam_switch_interval": 3}),
    "badam-random": Case({"use_badam": True, "badam_switch_interval": 2, "badam_switch_mode": "random"}),
    "badam-ratio": Case({"use_badam": True, "badam_mode": "ratio", "badam_update_ratio": 0.3}),
    "badam-scatter": Case(
        {
            "use_badam": True,
            "badam_mode": "ratio",
            "badam_update_ratio": 0.3,
            "badam_mask_mode": "scatter",
            "badam_switch_interval": 3,
        }
    ),
    "adam-mini": Case({"use_adam_mini": True}),
    "adam-mini-lora": Case({"use_adam_mini": True}, method="lora", falls_to=0.99),
    "muon": Case({"use_muon": True}),
    "loraplus": Case({"loraplus_lr_ratio": 8.0}, method="lora", falls_to=0.99),
    "loraplus-sgd": Case(
        {"loraplus_lr_ratio": 8.0}, method="lora", training={"optim": "sgd", "learning_rate": 0.3}, falls_to=0.99
    ),
}
NAMED = {
    name
    for family in OPTIM_FAMILIES
    if not family.instead and (not family.devices or "cpu" in family.devices)
    for name in family.names
}
RATES = {"sgd": 1.0, "schedule_free_sgd": 1.0}
"""Learning rates that suit rows other than Adam's."""


def installed(optim: str) -> bool:
    family = next(family for family in OPTIM_FAMILIES if optim in family.names)
    return family.package is None or is_available(family.package)


def run(make_trainer: Any, model: Any, case: Case, *, stop: int | None = None, resume: Path | None = None) -> Any:
    """A few steps over the same four rows, with a checkpoint in the middle of an interval."""
    trainer = make_trainer(
        model,
        make_rows(4),
        callbacks=[StopAfter(stop)] if stop else [],
        **{
            "per_device_train_batch_size": 4,
            "num_train_epochs": case.steps,
            "learning_rate": 1e-2,
            "weight_decay": 0.01,
            "save_strategy": "steps",
            "save_steps": SAVED,
            **case.training,
        },
    )
    trainer.make_optimizer = optimizer_maker(FinetuningArguments(**case.keys))
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer


def fingerprint(trainer: Any) -> dict[str, Any]:
    return {
        "weights": {name: weight.detach() for name, weight in trainer.model.named_parameters()},
        "optimizer": trainer.optimizer.state_dict(),
        "needs gradient": [weight.requires_grad for weight in trainer.model.parameters()],
    }


def assert_learns_and_resumes(make_trainer: Any, make: Callable[[], Any], case: Case) -> None:
    torch.manual_seed(0)
    whole = run(make_trainer, make(), case)
    told = losses(whole)
    assert told[-1] < case.falls_to * told[0], told

    torch.manual_seed(1)
    run(make_trainer, make(), case, stop=SAVED)
    resumed = run(make_trainer, make(), case, resume=make_trainer.output_dir / f"checkpoint-{SAVED}")
    assert losses(resumed) == told
    assert_same(fingerprint(whole), fingerprint(resumed))


@pytest.mark.parametrize("name", OURS)
def test_n40_each_optimizer_learns_and_resumes(name: str, make_model: Callable[..., Any], make_trainer: Any) -> None:
    case = OURS[name]
    if not installed(case.training.get("optim", "adamw_torch")):
        pytest.skip("its package is not installed")
    assert_learns_and_resumes(make_trainer, lambda: make_model(case.method), case)


@pytest.mark.parametrize("optim", sorted(NAMED))
def test_n40_each_optim_learns_and_resumes(optim: str, make_model: Callable[..., Any], make_trainer: Any) -> None:
    if not installed(optim):
        pytest.skip("its package is not installed")
    slow = optim == "schedule_free_radam"  # its first five steps are zero
    rate = RATES.get(optim, 1e-2)
    case = Case({}, training={"optim": optim, "learning_rate": rate}, falls_to=0.999 if slow else 0.95)
    assert_learns_and_resumes(make_trainer, make_model, case)


def test_every_row_of_the_table_is_tried() -> None:
    switches = {row.switch for row in OPTIMIZERS.values()}
    assert switches == {key for case in OURS.values() for key in case.keys if key in switches}


def test_layerwise_updates_are_those_of_the_whole(make_model: Callable[..., Any], make_trainer: Any) -> None:
    """Where nothing is clipped, the order in which weights are updated does not matter."""
    results = []
    for keys in (OURS["galore"].keys, OURS["galore-layerwise"].keys):
        trainer = run(make_trainer, make_model(), Case(keys, training={"max_grad_norm": 0.0}, steps=5))
        results.append({name: weight.detach() for name, weight in trainer.model.named_parameters()})
        assert all(weight.grad is None for weight in trainer.model.parameters())
    for name, weight in results[0].items():
        torch.testing.assert_close(weight, results[1][name], rtol=1e-4, atol=1e-5)


def test_layerwise_updates_drop_each_gradient_at_once(make_model: Callable[..., Any], make_trainer: Any) -> None:
    most = 0
    model = make_model()

    def count(*_: Any) -> None:
        nonlocal most
        most = max(most, sum(weight.grad is not None for weight in model.parameters()))

    for module in model.modules():
        module.register_full_backward_hook(count)
    run(make_trainer, model, Case(OURS["galore-layerwise"].keys, steps=2))
    assert most <= 2


def test_loraplus_gives_each_role_its_rate(make_model: Callable[..., Any], make_trainer: Any) -> None:
    trainer = make_trainer(make_model("lora"), make_rows(4), learning_rate=1e-3)
    trainer.make_optimizer = optimizer_maker(FinetuningArguments(loraplus_lr_ratio=16.0))
    optimizer = trainer.create_optimizer()
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad:
            assert rates[id(weight)] == pytest.approx(1.6e-2 if "lora_B" in name else 1e-3)


def test_muon_leaves_embeddings_and_vectors_to_adamw(make_model: Callable[..., Any], make_trainer: Any) -> None:
    trainer = make_trainer(make_model(), make_rows(4))
    trainer.make_optimizer = optimizer_maker(FinetuningArguments(use_muon=True))
    muon, adam = trainer.create_optimizer().parts
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    by_muon = {names[id(weight)] for group in muon.param_groups for weight in group["params"]}
    by_adam = {names[id(weight)] for group in adam.param_groups for weight in group["params"]}
    assert "model.embed_tokens.weight" in by_adam
    assert all("norm" in name or "embed" in name for name in by_adam)
    assert len(by_muon) == 14
    assert by_muon | by_adam == set(names.values())


def test_badam_trains_a_new_head_always(make_model: Callable[..., Any], make_trainer: Any) -> None:
    model = make_model()
    model.v_head = torch.nn.Linear(32, 1)
    trainer = make_trainer(model, make_rows(4))
    trainer.make_optimizer = optimizer_maker(FinetuningArguments(use_badam=True))
    trainer.create_optimizer()
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {"v_head.weight", "v_head.bias"} <= learning
    assert all(name.startswith(("model.layers.0.", "v_head.")) for name in learning)


def test_badam_says_whose_turn_it_is(
    make_model: Callable[..., Any], make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(badam.logger, "info", lambda text, *values: said.append(text % values))
    run(make_trainer, make_model(), Case({"use_badam": True, "badam_switch_interval": 2, "badam_verbose": 1}, steps=5))
    assert [line for line in said if "learns" in line] == [
        "BAdam: from update 3 on, model.layers.1 learns.",
        "BAdam: from update 5 on, model.layers.0 learns.",
    ]


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory.extras import packages

    monkeypatch.setattr(packages, "is_available", lambda module: False)
    with pytest.raises(UserError, match=r"optim: lion_8bit needs the package \'bitsandbytes\'.*llamafactory\[bnb\]"):
        check_optimizer("lion_8bit", FinetuningArguments())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"use_galore": True, "galore_rank": 64}, "no trained matrix is larger than galore_rank 64"),
        ({"use_galore": True, "galore_target": ("q_prj",), "galore_rank": 4}, "Did you mean 'q_proj'"),
        ({"use_apollo": True, "apollo_rank": 64}, "no trained matrix is larger than apollo_rank 64"),
        ({"use_badam": True, "badam_start_block": 7}, "badam_start_block is 7, but the model has 2 blocks"),
    ],
)
def test_what_cannot_be_made_is_refused(
    keys: dict[str, Any], words: str, make_model: Callable[..., Any], make_trainer: Any
) -> None:
    trainer = make_trainer(make_model(), make_rows(4))
    trainer.make_optimizer = optimizer_maker(FinetuningArguments(**keys))
    with pytest.raises(UserError, match=words):
        trainer.create_optimizer()
