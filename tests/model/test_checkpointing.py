"""Recomputed activations, all or some, kept on the device or in main memory: the gradients are the same numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import load, tuning

from llamafactory.model.model_utils.checkpointing import decoder_layers
from llamafactory.model.model_utils.offloading import HostStore, offload_inputs


IDS = torch.arange(3, 40)[None]
FORMS = {
    "all": {"disable_gradient_checkpointing": False},
    "first layer": {"disable_gradient_checkpointing": False, "checkpointed_layers": 1},
    "all, non-reentrant": {"disable_gradient_checkpointing": False, "use_reentrant_gc": False},
    "first layer, non-reentrant": {
        "disable_gradient_checkpointing": False,
        "checkpointed_layers": 1,
        "use_reentrant_gc": False,
    },
}


def make(folder: Path, method: str, **switches: Any) -> Any:
    """A model for training; adapters are moved off zero, so that every gradient says something."""
    model = load(folder, tuning(method, lora_rank=2), **switches)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
        elif "lora_A" in name:
            weight.data = torch.randn(weight.shape, generator=generator)
    return model


def gradients(model: Any) -> dict[str, torch.Tensor]:
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach(), **found}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradients_are_equal_to_the_bit(tiny_llama_dir: Path, method: str, form: str) -> None:
    kept = make(tiny_llama_dir, method, disable_gradient_checkpointing=True)
    again = make(tiny_llama_dir, method, **FORMS[form])

    checkpointed = [layer.gradient_checkpointing for layer in decoder_layers(again)]

    assert checkpointed == ([True, False] if "first" in form else [True, True])
    assert_same(gradients(again), gradients(kept))


class FakeStream:
    """A stream of a device that copies at once, and writes down what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def wait_stream(self, stream: Any) -> None:
        self.told.append("waits for stream")

    def wait_event(self, event: Any) -> None:
        assert event is not None
        self.told.append("waits for event")

    def record_event(self) -> object:
        self.told.append("event")
        return object()


class FakeDevice:
    """As much of torch.cuda as the store uses."""

    def __init__(self) -> None:
        self.current, self.made = FakeStream(), list[FakeStream]()

    def Stream(self) -> FakeStream:  # noqa: N802
        self.made.append(FakeStream())
        return self.made[-1]

    def current_stream(self) -> FakeStream:
        return self.current

    def stream(self, stream: FakeStream) -> Any:
        return torch.cpu.stream(torch.cpu.current_stream())


class CountingStore(HostStore):
    """Counts what goes through."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__(device, moves=lambda tensor: tensor.is_floating_point())
        self.shapes: list[torch.Size] = []

    def put(self, tensor: torch.Tensor) -> Any:
        self.shapes.append(tensor.shape)
        return super().put(tensor)


@pytest.mark.parametrize("is_reentrant", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_inputs_that_went_through_main_memory_give_the_same_gradients(
    tiny_llama_dir: Path, method: str, is_reentrant: bool
) -> None:
    expected = gradients(make(tiny_llama_dir, method, disable_gradient_checkpointing=True))
    model = make(tiny_llama_dir, method, disable_gradient_checkpointing=False, use_reentrant_gc=is_reentrant)
    device = FakeDevice()
    store = CountingStore(device)
    offload_inputs(decoder_layers(model), store)

    found = gradients(model)

    assert_same(found, expected)
    assert [shape for shape in store.shapes if len(shape) == 3] == [(1, IDS.shape[1], 32)] * 2
    assert len(device.made) == 1
    assert device.current.told.count("waits for event") == 2

    for weight in model.parameters():
        weight.grad = None
    assert_same(gradients(model), expected)  # from buffers that are used again
    assert len(store._spare) == 1


def test_a_forward_pass_without_a_backward_pass_keeps_nothing(tiny_llama_dir: Path) -> None:
    model = make(tiny_llama_dir, "lora", disable_gradient_checkpointing=False)
    store = offload_inputs(decoder_layers(model), CountingStore(FakeDevice()))

    for _ in range(3):
        model(input_ids=IDS, use_cache=False)

    assert sum(map(len, store._spare.values())) <= 4


def test_on_a_cpu_nothing_is_moved_and_one_line_says_so(tiny_llama_dir: Path, said: pytest.LogCaptureFixture) -> None:
    model = make(tiny_llama_dir, "lora", disable_gradient_checkpointing=False, use_unsloth_gc=True)

    assert sum("use_unsloth_gc" in record.getMessage() for record in said.records) == 1
    assert not any(layer._forward_pre_hooks for layer in decoder_layers(model))
