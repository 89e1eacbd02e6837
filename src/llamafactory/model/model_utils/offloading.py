"""The inputs of checkpointed layers in main memory instead of on the device: room for longer texts (use_unsloth_gc).

A checkpointed layer keeps its input alone, so that is all there is to move. On the way forward each input is copied to
pinned memory by a stream of its own, while the device computes the layer; on the way back the input of the layer below
is fetched while the one above is differentiated. So the device waits for no copy as long as a layer takes longer than
its input. The idea is Unsloth's; the hooks are torch.autograd.graph.saved_tensors_hooks.
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class Held:
    """A tensor in main memory; it knows the one that was put away before it, which is wanted after it."""

    def __init__(self, buffer: Tensor, filled: Any, device: torch.device, before: "Held | None") -> None:
        self.buffer, self.filled, self.device = buffer, filled, device
        self.fetched: tuple[Tensor, Any] | None = None
        self._before = weakref.ref(before) if before is not None else None

    @property
    def before(self) -> "Held | None":
        """The one before, unless its layer is done."""
        return None if self._before is None else self._before()


class HostStore:
    """Puts tensors away and brings them back.

    A buffer is used again for a tensor of the same shape once nobody holds it, because pinning memory is slow. What
    still leaves it then, and what comes next, go through the same stream, in this order.
    """

    def __init__(self, backend: Any = None, moves: Callable[[Tensor], bool] | None = None) -> None:
        self._backend = backend
        self._moves = moves or is_on_accelerator
        self._last: weakref.ref[Held] | None = None
        self._spare: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
        self._streams: dict[torch.device, Any] = {}

    def put(self, tensor: Tensor) -> Held | Tensor:
        """Take a tensor in; one that need not be moved stays what it is."""
        if not self._moves(tensor):
            return tensor
        buffer, stream = self._buffer_like(tensor), self._stream_of(tensor.device)
        stream.wait_stream(self._module(tensor.device).current_stream())
        with self._module(tensor.device).stream(stream):
            buffer.copy_(tensor, non_blocking=True)
            filled = stream.record_event()
        keep_for(tensor, stream)
        held = Held(buffer, filled, tensor.device, None if self._last is None else self._last())
        weakref.finalize(held, self._give_back, buffer)
        self._last = weakref.ref(held)
        return held

    def take(self, held: Held | Tensor) -> Tensor:
        """Give a tensor back, and start to fetch the one that is wanted next."""
        if isinstance(held, Tensor):
            return held
        tensor, arrived = held.fetched or self._fetch(held)
        held.fetched = None
        current = self._module(held.device).current_stream()
        current.wait_event(arrived)
        keep_for(tensor, current)
        if held.before is not None and held.before.fetched is None:
            held.before.fetched = self._fetch(held.before)
        return tensor

    def _fetch(self, held: Held) -> tuple[Tensor, Any]:
        stream = self._stream_of(held.device)
        with self._module(held.device).stream(stream):
            stream.wait_event(held.filled)
            tensor = torch.empty_like(held.buffer, device=held.device, pin_memory=False)
            tensor.copy_(held.buffer, non_blocking=True)
            return tensor, stream.record_event()

    def _buffer_like(self, tensor: Tensor) -> Tensor:
        spare = self._spare.get((tensor.shape, tensor.dtype))
        if spare:
            return spare.pop()
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_on_accelerator(tensor))

    def _give_back(self, buffer: Tensor) -> None:
        self._spare.setdefault((buffer.shape, buffer.dtype), []).append(buffer)

    def _stream_of(self, device: torch.device) -> Any:
        if device not in self._streams:
            self._streams[device] = self._module(device).Stream()
        return self._streams[device]

    def _module(self, device: torch.device) -> Any:
        return self._backend or getattr(torch, device.type)


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


def is_on_accelerator(tensor: Tensor) -> bool:
    """Whether a tensor takes device memory; whole numbers (positions) are small and stay."""
    return tensor.device.type != "cpu" and tensor.is_floating_point()


def keep_for(tensor: Tensor, stream: Any) -> None:
    """Tell the device's allocator that a stream still works on a tensor."""
    if tensor.device.type != "cpu":
        tensor.record_stream(stream)
