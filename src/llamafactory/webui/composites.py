"""Widgets that set several keys at once, such as the number format: each writes its keys and reads them back."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


Config = Mapping[str, Any]

ATTENTION = {"flashattn2": "fa2", "flashattn3": "fa3", "sdpa": "sdpa", "disabled": "disabled"}
COMPUTE = {
    "auto": {},
    "bf16": {"bf16": True},
    "fp16": {"fp16": True},
    "fp32": {"bf16": False},
    "pure_bf16": {"pure_bf16": True},
}
OFFLOAD = {"device": "cpu", "pin_memory": True}


class Composite(NamedTuple):
    """How one widget and its keys follow from each other."""

    write: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    """(the widget's value, all values by element name) -> keys."""
    read: Callable[[Config], Any]
    """Keys -> the widget's value; None where no value of the widget says the same."""


def deepspeed_config(stage: int, is_offloaded: bool) -> dict[str, Any]:
    """Return a DeepSpeed configuration whose sizes follow from the run's own keys."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    if is_offloaded:
        zero["offload_optimizer"] = OFFLOAD
    if is_offloaded and stage == 3:
        zero["offload_param"] = OFFLOAD
    automatic = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return {
        **dict.fromkeys((*automatic, "gradient_clipping"), "auto"),
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": zero,
    }


def _write_compute(value: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(COMPUTE.get(str(value), {}))


def _read_compute(config: Config) -> str | None:
    given = {key: config[key] for key in ("bf16", "fp16", "pure_bf16") if config.get(key) not in (None, "")}
    given = {key: value for key, value in given.items() if value or key == "bf16"}
    return next((word for word, keys in COMPUTE.items() if keys == given), None)


def _write_booster(value: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    if value in ATTENTION:
        return {"flash_attn": ATTENTION[value]}
    return {"liger_kernel": {"enable_liger_kernel": True}, "unsloth": {"use_unsloth": True}}.get(str(value), {})


def _read_booster(config: Config) -> str | None:
    attention = config.get("flash_attn", "auto")
    chosen = [word for word, name in ATTENTION.items() if name == attention]
    chosen += ["liger_kernel"] if config.get("enable_liger_kernel") else []
    chosen += ["unsloth"] if config.get("use_unsloth") else []
    if not chosen:
        return "auto" if attention == "auto" else None
    return chosen[0] if len(chosen) == 1 else None


def _write_deepspeed(value: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    stage = str(values.get("ds_stage", "none"))
    return {"deepspeed": deepspeed_config(int(stage), bool(values.get("ds_offload")))} if stage in ("2", "3") else {}


def _read_stage(config: Config) -> str | None:
    given = config.get("deepspeed")
    if not given:
        return "none"
    return next((str(n) for n in (2, 3) for off in (False, True) if deepspeed_config(n, off) == given), None)


def _read_offload(config: Config) -> bool:
    return any(deepspeed_config(stage, True) == config.get("deepspeed") for stage in (2, 3))


COMPOSITES: Mapping[str, Composite] = {
    "compute_type": Composite(_write_compute, _read_compute),
    "booster": Composite(_write_booster, _read_booster),
    "ds_stage": Composite(_write_deepspeed, _read_stage),
    "ds_offload": Composite(lambda value, values: {}, _read_offload),
}
