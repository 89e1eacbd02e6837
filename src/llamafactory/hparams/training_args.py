"""Arguments of the training run: all keys of transformers' Seq2SeqTrainingArguments, and ours beside them."""

from dataclasses import dataclass
from typing import Literal

from .kinds import Arguments, Count, Json, Names, Natural
from .reporting_args import EvalArguments, LoadingArguments, LoggingArguments, SavingArguments
from .trainer_args import DistributedArguments, PrecisionArguments, StepArguments


@dataclass(frozen=True, kw_only=True)
class RayArguments(Arguments):
    """Ray."""

    ray_num_workers: Count = 1
    """Workers, one device each, when the run is started by Ray."""
    ray_init_kwargs: Json | None = None
    """Arguments for `ray.init`, as a mapping or a JSON string."""
    master_addr: str | None = None
    """Address where Ray's workers meet."""
    master_port: str | None = None
    """Port where Ray's workers meet."""


@dataclass(frozen=True, kw_only=True)
class ProfilerArguments(Arguments):
    """Profiler."""

    enable_torch_profiler: bool = False
    """Records traces with torch's profiler."""
    profiler_output_dir: str | None = None
    """Folder for the traces; unset takes profiler/ in output_dir."""
    profiler_wait_steps: Natural = 1
    """Updates to wait before each cycle."""
    profiler_warmup_steps: Natural = 1
    """Updates to warm up in each cycle; they are not recorded."""
    profiler_active_steps: Count = 1
    """Updates recorded in each cycle."""
    profiler_repeat: Natural = 1
    """Cycles; 0 goes on to the end."""
    profiler_record_shapes: bool = True
    """Records the shapes of tensors."""
    profiler_profile_memory: bool = True
    """Records memory."""
    profiler_with_stack: bool = True
    """Records the Python lines that calls came from."""
    profile_modules: Names | None = None
    """Modules (name patterns) whose time on the device is reported."""


@dataclass(frozen=True, kw_only=True)
class Fp8Arguments(Arguments):
    """FP8."""

    fp8: bool = False
    """Multiplies in 8-bit floats, forwards and backwards; needs an Ada, Hopper or newer NVIDIA card, and torchao."""
    fp8_backend: Literal["auto", "torchao", "te", "msamp"] = "auto"
    """Library that does the 8-bit products; auto is torchao."""
    fp8_enable_fsdp_float8_all_gather: bool = False
    """Sends sharded weights in 8 bits under FSDP2."""


@dataclass(frozen=True, kw_only=True)
class TrainingArguments(
    Fp8Arguments,
    ProfilerArguments,
    RayArguments,
    DistributedArguments,
    LoadingArguments,
    SavingArguments,
    EvalArguments,
    LoggingArguments,
    PrecisionArguments,
    StepArguments,
):
    """Everything about the training run."""
