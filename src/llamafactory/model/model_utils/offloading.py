"""The inputs of checkpointed layers in main memory instead of on the device: room for longer texts (use_unsloth_gc).

A checkpointed layer keeps its input alone, so that is all there is to move. On the way forward each input is copied to
pinned memory by a stream of its own, while the device computes the layer; on the way back the input of the layer below
is fetched while the one above is differentiated. So the device waits for no copy as long as a layer takes longer than
its input. The idea is Unsloth's; the hooks are torch.autograd.graph.saved_tensors_hooks.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class Held(NamedTuple):
    """A tensor in main memory, and where it came from."""

    number: int
    device: torch.device


class HostStore:
    """Keeps tensors of one forward pass in main memory, numbered in the order in which they come.

    A buffer is used again by later passes for a tensor of the same shape, because pinning memory is slow.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, Any]] = {}  # number -> buffer, and the event after which it is filled
        self._fetched: dict[int, tuple[Tensor, Any]] = {}
        self._spare: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
        self._count = 0
        self._streams: dict[torch.device, Any] = {}

    def put(self, tensor: Tensor) -> Held | Tensor:
        """Take a tensor in; small ones, and those that are in main memory, stay what they are."""
        if tensor.device.type == "cpu" or not tensor.is_floating_point():
            return tensor
        self._count += 1
        buffer = self._buffer_like(tensor)
        stream = self._stream_of(tensor.device)
        stream.wait_stream(_current_stream(tensor.device))
        with _on(stream):
            buffer.copy_(tensor, non_blocking=True)
            filled = stream.record_event()
        tensor.record_stream(stream)
        self._kept[self._count] = buffer, filled
        return Held(self._count, tensor.device)

    def take(self, held: Held | Tensor) -> Tensor:
        """Give a tensor back, and start to fetch the one that is wanted next: the one that came before."""
        if isinstance(held, Tensor):
            return held
        if held.number not in self._fetched:
            self._fetch(held.number, held.device)
        tensor, arrived = self._fetched.pop(held.number)
        current = _current_stream(held.device)
        current.wait_event(arrived)
        tensor.record_stream(current)
        if held.number - 1 in self._kept:
            self._fetch(held.number - 1, held.device)
        return tensor

    def _fetch(self, number: int, device: torch.device) -> None:
        buffer, filled = self._kept.pop(number)
        stream = self._stream_of(device)
        with _on(stream):
            stream.wait_event(filled)
            tensor = buffer.to(device, non_blocking=True)
            arrived = stream.record_event()
        self._fetched[number] = tensor, arrived
        self._spare.setdefault((buffer.shape, buffer.dtype), []).append(buffer)

    def _buffer_like(self, tensor: Tensor) -> Tensor:
        """Return pinned memory. What still leaves a buffer does so in the stream that will fill it, in this order."""
        spare = self._spare.get((tensor.shape, tensor.dtype))
        if spare:
            return spare.pop()
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)

    def _stream_of(self, device: torch.device) -> Any:
        if device not in self._streams:
            self._streams[device] = _backend(device).Stream(device)
        return self._streams[device]


def offload_inputs(layers: Sequence[nn.Module], store: HostStore | None = None) -> HostStore:
    """Keep what the checkpoints of these layers save in main memory.

    The hooks stand around a layer's call, inside of which its checkpoint saves the input; what the layer computes
    again in the backward pass is not called this way and stays on the device.
    """
    store = store or HostStore()
    for layer in layers:
        _Around(layer, store)
    return store


class _Around:
    """Opens the hooks before a layer's call and closes them after it, also when the call fails."""

    def __init__(self, layer: nn.Module, store: HostStore) -> None:
        self.store = store
        self.open: list[AbstractContextManager[Any]] = []
        layer.register_forward_pre_hook(self.enter)
        layer.register_forward_hook(self.leave, always_call=True)

    def enter(self, layer: nn.Module, args: Any) -> None:
        """Begin to keep in main memory."""
        if layer.training and torch.is_grad_enabled():
            hooks = saved_tensors_hooks(self.store.put, self.store.take)
            hooks.__enter__()
            self.open.append(hooks)

    def leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        """Stop."""
        if self.open:
            self.open.pop().__exit__(None, None, None)


def _backend(device: torch.device) -> Any:
    return getattr(torch, device.type)


def _current_stream(device: torch.device) -> Any:
    return _backend(device).current_stream(device)


def _on(stream: Any) -> AbstractContextManager[Any]:
    return _backend(stream.device).stream(stream)
