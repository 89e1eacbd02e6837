"""Losses and log-probabilities inside a model's own forward pass, on chosen positions, without [tokens, vocabulary].

Under data parallelism a weight is whole, and its gradient reduced, only in the forward pass of the wrapped model. So
a stage passes what it wants to know as `readout=` to the model it holds, whatever that is wrapped in:

    model(**inputs, use_cache=False, readout=Readout(positions_K, partial(linear_log_probs, targets_K=targets_K)))

The decoder runs, the hidden states of the positions go into the head module, and what `compute` makes of them there
is the model's output. Without `readout=` the forward pass is the original one. How the model gets from the decoder to
its logits is found out once, by running the model's own forward pass with stand-ins for decoder and head. Models that
do something else than scaling and soft-capping are computed through their own logits instead, on the same positions.
Only instances are changed. Shapes: B rows, T tokens, K positions, D hidden, V vocabulary.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, NamedTuple, cast

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..extras.logging import get_logger
from ..ops.head import OutputHead
from .request import LoadRequest


logger = get_logger(__name__)


class Readout(NamedTuple):
    """What is to be computed inside a forward pass."""

    positions_K: Tensor
    """Positions in all tokens of the batch laid end to end (B x T) whose hidden states are wanted."""
    compute: Callable[[Tensor, OutputHead], Any]
    """(hidden_KD, head) -> a tensor, NamedTuple or dict of tensors: the output of the model."""


@dataclass(frozen=True)
class HeadPlan:
    """How the logits of a model come from its decoder."""

    head: str | None
    """Name of the head module; None where the model's own logits have to be used."""
    decoder: str = ""
    """Name of the module that makes the hidden states."""
    is_plain: bool = False
    """The head is one matrix, whose weight can be multiplied directly."""
    scale: float = 1.0
    softcap: float | None = None
    reason: str = ""
    """Why it is not the direct way."""


def install_readout(model: PreTrainedModel, request: LoadRequest) -> PreTrainedModel:
    """The pass that lets a model take `readout=`; it comes after adapters and heads are on."""
    by_unsloth = HeadPlan(None, reason="its forward pass is Unsloth's") if request.is_by_unsloth else None
    enable_readout(model, by_unsloth)
    return model


def enable_readout(model: nn.Module, plan: HeadPlan | None = None) -> None:
    """Let a model, or the model under its adapter, take `readout=`; a second call sees what was adapted since.

    How logits are made is found out, unless it is told (`plan`).
    """
    inner = _inner(model)
    if "forward" in vars(inner) and not hasattr(inner.forward, "takes_readout"):
        return  # hooks that spread it over devices: a model that only answers
    plan = plan or plan_head(inner)
    if plan.reason:
        logger.info("Losses go through the logits of %s: %s.", type(inner).__name__, plan.reason)
    if plan.is_plain:
        for layer in _layers_of(inner.get_submodule(cast(str, plan.head))):
            layer.forward = MethodType(_head_forward, layer)
    inner.forward = MethodType(_make_forward(type(inner).forward, plan), inner)


def plan_head(model: nn.Module) -> HeadPlan:
    """Find out how a model makes logits, without running its decoder."""
    name = _head_name(model) if isinstance(model, PreTrainedModel) else None
    if name is None or not isinstance(model, PreTrainedModel):
        return HeadPlan(None, reason="it has no head beside its decoder")
    head = model.get_submodule(name)
    is_plain = all(_is_plain(layer) for layer in _layers_of(head))
    if not model.can_generate():
        return HeadPlan(
            name, _name_in(model, model.base_model) or "", is_plain
        )  # a score: a position is chosen, no more
    for decoder in (model.base_model, model.get_decoder(), getattr(model, "model", None)):
        if not isinstance(decoder, nn.Module) or decoder is model:
            continue
        found = _measure_transform(model, decoder, head)
        if found is not None:
            reason = "" if is_plain else "its output head is no plain matrix"
            return HeadPlan(name, _name_in(model, decoder) or "", is_plain, *found, reason=reason)
    return HeadPlan(None, reason="it does more between decoder and logits than scaling and soft-capping")


def _make_forward(original: Callable[..., Any], plan: HeadPlan) -> Callable[..., Any]:
    """Make the forward function of an instance; it holds no module, so that copies of the model stay whole."""

    @functools.wraps(original)
    def forward(self: PreTrainedModel, *args: Any, readout: Readout | None = None, **kwargs: Any) -> Any:
        if readout is None:
            return original(self, *args, **kwargs)
        given = {name: value for name, value in kwargs.items() if value is not None}
        if plan.head is None:
            return _through_logits(self, original, readout, args, given)
        decoder, head = self.get_submodule(plan.decoder), self.get_submodule(plan.head)
        hidden_BTD: Tensor = decoder(*args, **_accepted(decoder, given))[0]
        hidden_KD = hidden_BTD.flatten(0, -2).index_select(0, readout.positions_K)
        if plan.is_plain:
            return head(hidden_KD, readout.compute, (plan.scale, plan.softcap))
        return readout.compute(hidden_KD, OutputHead(None, None, plan.scale, plan.softcap, head))

    vars(forward)["takes_readout"] = True
    return forward


def _head_forward(
    self: nn.Linear,
    hidden: Tensor,
    compute: Callable[[Tensor, OutputHead], Any] | None = None,
    transform: tuple[float, float | None] = (1.0, None),
) -> Any:
    """The forward function of a head: logits as ever, or what `compute` makes of hidden states and weights."""
    if compute is None:
        return type(self).forward(self, hidden)
    return compute(hidden, OutputHead(self.weight, self.bias, *transform))


def _through_logits(
    model: PreTrainedModel,
    original: Callable[..., Any],
    readout: Readout,
    args: tuple[Any, ...],
    given: dict[str, Any],
) -> Any:
    """Compute on the model's own logits, made for columns of the batch in which a position is wanted."""
    ids = args[0] if args else given.get("input_ids", given.get("inputs_embeds"))
    width = cast(Tensor, ids).shape[1]
    rows_K, columns_K = readout.positions_K // width, readout.positions_K % width
    if "logits_to_keep" in inspect.signature(original).parameters:
        given["logits_to_keep"], columns_K = torch.unique(columns_K, return_inverse=True)
    logits_BSV: Tensor = original(model, *args, **_accepted(model, given)).logits
    return readout.compute(logits_BSV[rows_K, columns_K], OutputHead(None))


def _accepted(module: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a forward function does not know about its cache."""
    parameters = inspect.signature(module.forward).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    if "use_cache" in parameters or takes_all:
        return given
    return {name: value for name, value in given.items() if name != "use_cache"}


# finding out how logits are made


class _StandIn(BaseModelOutputWithPast):
    """What a decoder returns, with nothing in all the fields that only some models have."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _measure_transform(
    model: PreTrainedModel, decoder: nn.Module, head: nn.Module
) -> tuple[float, float | None] | None:
    """Return scale and softcap between decoder and logits; None where something else happens."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hidden, products = draw((1, 2, 8)), draw((1, 2, model.config.get_text_config().vocab_size))
    products[0, 0, :2] = torch.tensor([1.0, 1e9])  # slope and ceiling of what is done to them
    ids, seen = torch.tensor([[1, 2]]), dict[str, Any]()

    def decode(*args: Any, **kwargs: Any) -> _StandIn:
        seen["ids"] = args[0] if args else kwargs.get("input_ids")
        return _StandIn(last_hidden_state=cast(Any, hidden))

    def multiply(given: Tensor, *args: Any) -> Tensor:
        seen["hidden"] = given
        return products.clone()

    try:
        with torch.no_grad(), _replaced(decoder, decode), _replaced(head, multiply):
            logits: Tensor = model.forward(input_ids=ids).logits
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError):
        return None  # its forward pass looks at more than decoder and head give it
    if seen.get("ids") is not ids or logits.shape != products.shape:
        return None
    before = _fit_before(hidden, seen.get("hidden"))
    after = _fit(products, logits.to(torch.float64))
    if before is None or after is None or (before != 1.0 and any(bias is not None for bias in _biases(head))):
        return None
    return before * after[0], after[1]


def _fit_before(hidden: Tensor, given: Tensor | None) -> float | None:
    """Return what hidden states are multiplied by on their way to the head."""
    if given is None or given.shape != hidden.shape:
        return None
    factor = float(given.flatten()[0] / hidden.flatten()[0])
    factor = 1.0 if abs(factor - 1.0) < 1e-6 else factor  # the rounding of a cast
    return factor if torch.allclose(given.to(hidden), hidden * factor, rtol=1e-6) else None


def _fit(products: Tensor, logits: Tensor) -> tuple[float, float | None] | None:
    """Return (scale, softcap) if that is what made logits of products; the products 1 and 1e9 come first."""
    at_one, at_far = (float(value) for value in logits.flatten()[:2])
    scale, softcap = at_one, None
    if abs(at_far) < abs(at_one) * 1e6:
        if abs(at_one) >= abs(at_far):
            return None
        softcap = abs(at_far)
        scale = float(f"{softcap * math.atanh(at_one / softcap):.9g}")
    expected = products * scale if softcap is None else softcap * torch.tanh(products * scale / softcap)
    return (scale, softcap) if torch.allclose(logits, expected, rtol=1e-5, atol=1e-8) else None


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Put another forward function on an instance for a moment."""
    held = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if held is None:
            del module.forward
        else:
            module.forward = held


def _head_name(model: PreTrainedModel) -> str | None:
    if model.can_generate():
        head = model.get_output_embeddings()
    else:
        base = model.base_model
        beside = [module for module in model.children() if module is not base]
        head = beside[0] if len(beside) == 1 else None
    return _name_in(model, head)


def _name_in(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)


def _biases(head: nn.Module) -> list[Any]:
    return [getattr(layer, "bias", None) for layer in _layers_of(head)]


def _layers_of(head: nn.Module) -> list[nn.Module]:
    """Return the layers that may do a head's work: PEFT keeps the trained one beside the original."""
    if isinstance(head, ModulesToSaveWrapper):
        return [head.original_module, *head.modules_to_save.values()]
    return [head]


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.weight.is_floating_point()


def _inner(model: nn.Module) -> nn.Module:
    outer: Any = model
    return outer.get_base_model() if hasattr(outer, "get_base_model") else outer
