"""Keys that older files carry, given the meaning they had; each translation is said once."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .reading import Given
from .tables import load_table
from .values import plain
from .yamltext import Scalar


@dataclass(frozen=True)
class Legacy:
    """The tables of legacy.toml."""

    rename: Mapping[str, str]
    ignored: Mapping[str, str]
    refused: Mapping[str, str]
    values: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Translation:
    """What one old key becomes."""

    given: Mapping[str, Any]
    """New key -> raw value; a mapping value is merged into one that stands there."""
    notice: str = ""
    problem: str = ""
    """Why the key cannot be translated, when it cannot."""
    wins: bool = False
    """Whether the translation replaces a value that stands under the new name."""


Rule = Callable[[Given, Mapping[str, Given]], Translation]


@functools.cache
def load_legacy() -> Legacy:
    """Read legacy.toml."""
    return Legacy(**load_table("legacy.toml"))


def list_legacy() -> dict[str, str]:
    """Return every old key with one line on what it means now."""
    legacy = load_legacy()
    rows = {old: f"read as `{new}`" for old, new in legacy.rename.items()}
    rows.update({old: target for old, (_, target) in RULES.items()})
    rows.update({old: f"has no effect: {why}" for old, why in legacy.ignored.items()})
    rows.update({old: f"refused: {why}" for old, why in legacy.refused.items()})
    return dict(sorted(rows.items()))


def translate(given: Given, everything: Mapping[str, Given]) -> Translation | None:
    """Translate one key; None when it is not an old one."""
    legacy = load_legacy()
    key = given.key
    if key in legacy.rename:
        new = legacy.rename[key]
        return Translation({new: given.raw}, f"{key} is called {new} now")
    if key in RULES:
        return RULES[key][0](given, everything)
    if key in legacy.ignored:
        return Translation({}, f"{key} has no effect any more: {legacy.ignored[key]}")
    if key in legacy.refused:
        return Translation({}, problem=f"{key} cannot be set: {legacy.refused[key]}")
    new_value = legacy.values.get(key, {}).get(str(plain(given.raw)).lower())
    if new_value is not None:
        return Translation({key: new_value}, f"{key}: {plain(given.raw)} is written {key}: {new_value} now")
    return None


def _truth(given: Given) -> bool | None:
    value = given.raw.value if isinstance(given.raw, Scalar) else given.raw
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "none": False}
    return words.get(str(value).lower())


def _number(raw: Any) -> float | None:
    try:
        return float(str(plain(raw)))
    except ValueError:
        return None


def _switch(given: Given, meaning: Mapping[str, Any], words: str) -> Translation:
    """Translate an old switch: on means `meaning`, off means nothing."""
    truth = _truth(given)
    if truth is None:
        return Translation({}, problem=f"{given.key} is {plain(given.raw)!r} but must be true or false")
    return Translation(
        meaning if truth else {}, f"{given.key}: {str(truth).lower()} is read as {words if truth else 'the default'}"
    )


def _warmup_ratio(given: Given, everything: Mapping[str, Given]) -> Translation:
    ratio = _number(given.raw)
    if plain(given.raw) is None or (isinstance(given.raw, Scalar) and given.raw.value is None):
        return Translation({}, "warmup_ratio without a value means no warm-up")
    if ratio is None or not 0 <= ratio < 1:
        return Translation({}, problem=f"warmup_ratio is {plain(given.raw)!r} but must be a number >= 0 and < 1")
    steps = everything.get("warmup_steps")
    if steps is not None and (_number(steps.raw) or 0) > 0:
        return Translation({}, "warmup_ratio has no effect beside warmup_steps")
    return Translation(
        {"warmup_steps": ratio}, f"warmup_ratio: {ratio:g} is read as warmup_steps: {ratio:g}", wins=True
    )


def _save_safetensors(given: Given, everything: Mapping[str, Given]) -> Translation:
    if _truth(given) is False:
        return Translation(
            {}, problem="save_safetensors: false cannot be done: weights are always safetensors; remove it"
        )
    return Translation({}, "save_safetensors has no effect any more: weights are always safetensors")


def _half_precision_backend(given: Given, everything: Mapping[str, Given]) -> Translation:
    if str(plain(given.raw)) == "apex":
        return Translation({}, problem=f"{given.key}: apex cannot be done: it is gone; remove it and use fp16 or bf16")
    return Translation({}, f"{given.key} has no effect any more: mixed precision is torch's own")


def _into(outer: str, inner: str) -> Rule:
    def rule(given: Given, everything: Mapping[str, Given]) -> Translation:
        value = given.raw.value if isinstance(given.raw, Scalar) else given.raw
        if value is None:
            return Translation({}, f"{given.key} without a value has no effect")
        return Translation({outer: {inner: value}}, f"{given.key} is read as {outer}.{inner}")

    return rule


def _on(key: str, value: str | tuple[str, ...]) -> Rule:
    shown = value if isinstance(value, str) else ",".join(value)

    def rule(given: Given, everything: Mapping[str, Given]) -> Translation:
        return _switch(given, {key: value}, f"{key}: {shown}")

    return rule


def _squared(new: str) -> Rule:
    def rule(given: Given, everything: Mapping[str, Given]) -> Translation:
        side = _number(given.raw)
        if side is None or side < 1 or side != int(side):
            return Translation({}, problem=f"{given.key} is {plain(given.raw)!r} but must be a whole number >= 1")
        return Translation({new: int(side) ** 2}, f"{given.key}: {side:g} is read as {new}: {int(side) ** 2}")

    return rule


def _source_and_target(given: Given, everything: Mapping[str, Given]) -> Translation:
    """Older files cut prompts and answers apart; the row they allowed is the sum."""
    names = ("max_source_length", "max_target_length")
    lengths = [_number(everything[name].raw) for name in names if name in everything]
    if any(length is None or length < 1 for length in lengths):
        return Translation({}, problem=f"{given.key} is {plain(given.raw)!r} but must be a whole number >= 1")
    if len(lengths) < 2 or "cutoff_len" in everything:
        return Translation({}, problem=f"{given.key} is gone; set cutoff_len to the length of prompt plus answer")
    total = int(sum(length for length in lengths if length is not None))
    return Translation({"cutoff_len": total}, f"max_source_length + max_target_length are read as cutoff_len: {total}")


def _resume_lora_training(given: Given, everything: Mapping[str, Given]) -> Translation:
    truth = _truth(given)
    if truth is None:
        return Translation({}, problem=f"{given.key} is {plain(given.raw)!r} but must be true or false")
    return Translation(
        {"create_new_adapter": not truth}, f"{given.key} is read as create_new_adapter: {str(not truth).lower()}"
    )


def _use_auth_token(given: Given, everything: Mapping[str, Given]) -> Translation:
    if _truth(given) is None:
        return Translation({"hf_hub_token": given.raw}, "use_auth_token is called hf_hub_token now")
    return Translation({}, "use_auth_token has no effect any more: a stored login is always used")


def _train_mm_proj_only(given: Given, everything: Mapping[str, Given]) -> Translation:
    meaning = {"freeze_vision_tower": True, "freeze_multi_modal_projector": False, "freeze_language_model": True}
    return _switch(given, meaning, "freezing all but the projector")


RULES: Mapping[str, tuple[Rule, str]] = {
    "adafactor": (_on("optim", "adafactor"), "read as `optim: adafactor`"),
    "dispatch_batches": (
        _into("accelerator_config", "dispatch_batches"),
        "read as `accelerator_config.dispatch_batches`",
    ),
    "evaluate_during_training": (_on("eval_strategy", "steps"), "read as `eval_strategy: steps`"),
    "fp16_backend": (_half_precision_backend, "has no effect: mixed precision is torch's own"),
    "fsdp_min_num_params": (_into("fsdp_config", "min_num_params"), "read as `fsdp_config.min_num_params`"),
    "fsdp_transformer_layer_cls_to_wrap": (
        _into("fsdp_config", "transformer_layer_cls_to_wrap"),
        "read as `fsdp_config.transformer_layer_cls_to_wrap`",
    ),
    "group_by_length": (
        _on("train_sampling_strategy", "group_by_length"),
        "read as `train_sampling_strategy: group_by_length`",
    ),
    "half_precision_backend": (_half_precision_backend, "has no effect: mixed precision is torch's own"),
    "image_resolution": (_squared("image_max_pixels"), "read as `image_max_pixels`, squared"),
    "include_inputs_for_metrics": (_on("include_for_metrics", ("inputs",)), "read as `include_for_metrics: inputs`"),
    "max_source_length": (_source_and_target, "read as `cutoff_len`, together with max_target_length"),
    "max_target_length": (_source_and_target, "read as `cutoff_len`, together with max_source_length"),
    "resume_lora_training": (_resume_lora_training, "read as the opposite of `create_new_adapter`"),
    "save_safetensors": (_save_safetensors, "has no effect: weights are always safetensors"),
    "split_batches": (_into("accelerator_config", "split_batches"), "read as `accelerator_config.split_batches`"),
    "tpu_metrics_debug": (_on("debug", ("tpu_metrics_debug",)), "read as `debug: tpu_metrics_debug`"),
    "train_mm_proj_only": (_train_mm_proj_only, "read as the three `freeze_*` switches of multimodal models"),
    "use_auth_token": (_use_auth_token, "read as `hf_hub_token`"),
    "video_resolution": (_squared("video_max_pixels"), "read as `video_max_pixels`, squared"),
    "warmup_ratio": (_warmup_ratio, "read as `warmup_steps` below 1"),
}


def each_legacy(everything: Mapping[str, Given]) -> Iterator[tuple[Given, Translation]]:
    """Translate every old key that was given."""
    for given in everything.values():
        translation = translate(given, everything)
        if translation is not None:
            yield given, translation
