"""The table of number formats: what is asked for, what the device does well, what comes out."""

import pytest
import torch

from llamafactory.extras.device import DeviceFacts
from llamafactory.extras.errors import UserError
from llamafactory.model.dtype import DtypeFlags, choose_dtype


FAST_CPU = DeviceFacts("cpu", 1, True, "CPU")
PLAIN_CPU = DeviceFacts("cpu", 1, False, "CPU")
GPU = DeviceFacts("cuda", 1, True, "H100")
OLD_GPU = DeviceFacts("cuda", 1, False, "V100")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("flags", "facts", "frozen", "trainable", "autocast"),
    [
        ({}, FAST_CPU, BF16, FP32, "bf16"),
        ({}, GPU, BF16, FP32, "bf16"),
        ({}, PLAIN_CPU, FP32, FP32, None),
        ({}, OLD_GPU, FP32, FP32, None),
        ({"bf16": True}, PLAIN_CPU, BF16, FP32, "bf16"),
        ({"bf16": False}, GPU, FP32, FP32, None),
        ({"fp16": True}, GPU, FP16, FP32, "fp16"),
        ({"fp16": True}, OLD_GPU, FP16, FP32, "fp16"),
        ({"pure_bf16": True}, GPU, BF16, BF16, None),
        ({"pure_bf16": True}, FAST_CPU, BF16, BF16, None),
    ],
)
def test_training(flags: dict, facts: DeviceFacts, frozen: torch.dtype, trainable: torch.dtype, autocast: str) -> None:
    choice = choose_dtype(DtypeFlags(is_trainable=True, **flags), facts)

    assert (choice.frozen, choice.trainable, choice.autocast) == (frozen, trainable, autocast)
    assert choice.reason


@pytest.mark.parametrize(
    ("infer_dtype", "facts", "stored", "expected"),
    [
        ("auto", FAST_CPU, BF16, BF16),
        ("auto", PLAIN_CPU, BF16, FP32),
        ("auto", FAST_CPU, FP16, FP32),
        ("auto", GPU, FP16, FP16),
        ("auto", OLD_GPU, BF16, FP32),
        ("auto", GPU, FP32, FP32),
        ("auto", GPU, None, FP32),
        ("bfloat16", PLAIN_CPU, FP32, BF16),
        ("float32", GPU, BF16, FP32),
        ("float16", GPU, BF16, FP16),
    ],
)
def test_inference(infer_dtype: str, facts: DeviceFacts, stored: torch.dtype | None, expected: torch.dtype) -> None:
    choice = choose_dtype(DtypeFlags(infer_dtype=infer_dtype), facts, stored)

    assert (choice.frozen, choice.trainable, choice.autocast) == (expected, expected, None)


def test_float16_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match="needs a GPU"):
        choose_dtype(DtypeFlags(is_trainable=True, fp16=True), FAST_CPU)
    with pytest.raises(UserError, match="needs a GPU"):
        choose_dtype(DtypeFlags(infer_dtype="float16"), FAST_CPU)


def test_a_choice_knows_whether_weights_are_sharded() -> None:
    assert not choose_dtype(DtypeFlags(is_trainable=True), GPU).is_sharded
    assert choose_dtype(DtypeFlags(is_trainable=True, bf16=True, is_sharded=True), GPU).is_sharded


def test_the_choice_says_what_and_why() -> None:
    text = str(choose_dtype(DtypeFlags(is_trainable=True), FAST_CPU))

    assert text == "bf16 autocast, bf16 frozen weights, fp32 trained weights (CPU is fast at bf16)"
