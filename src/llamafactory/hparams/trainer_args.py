"""The keys of transformers' Trainer that shape the computation: steps, optimizer, precision, devices.

Declared here, so that a YAML is checked without importing torch; a test compares them with the installed
transformers.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from .kinds import Arguments, Count, Json, Names, Natural, NonNegative, PartShare, Steps


Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
]
Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adafactor",
    "adamw_anyprecision",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "ademamix",
    "sgd",
    "adagrad",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "ademamix_8bit",
    "lion_8bit",
    "lion_32bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "galore_adamw",
    "galore_adamw_8bit",
    "galore_adafactor",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "lomo",
    "adalomo",
    "grokadamw",
    "schedule_free_radam",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "apollo_adamw",
    "apollo_adamw_layerwise",
    "stable_adamw",
]


@dataclass(frozen=True, kw_only=True)
class StepArguments(Arguments):
    """Steps, batches and optimizer."""

    do_train: bool = False
    """Trains on `dataset`."""
    do_eval: bool = False
    """Measures the result on `eval_dataset` or the held-out part."""
    do_predict: bool = False
    """Writes an answer to every evaluation prompt."""
    per_device_train_batch_size: Count = 8
    """Examples in one forward pass on each device."""
    gradient_accumulation_steps: Count = 1
    """Forward passes that share one update; batch times this is what the update sees."""
    num_train_epochs: NonNegative = 3.0
    """Passes over the training data."""
    max_steps: Annotated[int, Ge(-1)] = -1
    """Ends after this many updates, whatever `num_train_epochs` says; -1 sets no limit."""
    learning_rate: NonNegative = 5e-5
    """Size of the first updates; LoRA takes about ten times that of full tuning."""
    lr_scheduler_type: Scheduler = "linear"
    """How the learning rate goes down during the run."""
    lr_scheduler_kwargs: Json | None = None
    """Further settings of the schedule."""
    warmup_steps: Steps = 0
    """Updates over which the learning rate rises from zero; below 1 it is a share of the run."""
    optim: Optimizer = "adamw_torch_fused"
    """Optimizer; the 8-bit and paged ones need bitsandbytes."""
    optim_args: str | None = None
    """Further settings of the optimizer, as `name=value` pairs."""
    optim_target_modules: Names | None = None
    """Modules for those optimizers that treat some modules differently."""
    weight_decay: NonNegative = 0.0
    """Pull of the weights towards zero; biases and norms are left out."""
    adam_beta1: PartShare = 0.9
    """Memory of Adam's average gradient."""
    adam_beta2: PartShare = 0.999
    """Memory of Adam's average squared gradient."""
    adam_epsilon: NonNegative = 1e-8
    """Keeps Adam from dividing by zero."""
    max_grad_norm: NonNegative = 1.0
    """Longer gradients are shortened to this; 0 leaves them."""
    label_smoothing_factor: PartShare = 0.0
    """Spreads this share of each label over all words."""
    neftune_noise_alpha: NonNegative | None = None
    """Adds noise of this strength to the embeddings while training; 5 is usual."""
    average_tokens_across_devices: bool = True
    """Counts the tokens of all devices, so that every token weighs the same."""
    auto_find_batch_size: bool = False
    """Tries smaller batches when memory runs out."""
    seed: Natural = 42
    """Makes runs repeat exactly on the same machine."""
    data_seed: int | None = None
    """Seed of the order of the data; unset takes `seed`."""
    full_determinism: bool = False
    """Uses only deterministic kernels: repeats exactly, slower."""
    resume_from_checkpoint: str | bool | None = None
    """Checkpoint to go on from; true takes the newest in output_dir, unset does so when there is one."""
    ignore_data_skip: bool = False
    """Begins the data anew when resuming; faster, but not the same run."""
    restore_callback_states_from_checkpoint: bool = False
    """Brings callbacks back to their state in the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class PrecisionArguments(Arguments):
    """Precision, memory and speed."""

    bf16: bool | None = None
    """Computes in bfloat16; unset does so where the hardware does it well, false stays in float32."""
    fp16: bool = False
    """Computes in float16, for devices without bfloat16."""
    bf16_full_eval: bool = False
    """Evaluates with all weights in bfloat16."""
    fp16_full_eval: bool = False
    """Evaluates with all weights in float16."""
    tf32: bool | None = None
    """Lets float32 products use the faster TF32 units; unset is torch's own choice."""
    activation_checkpointing: bool | None = None
    """Recomputes activations to save memory, or not; the opposite of `disable_gradient_checkpointing`."""
    activation_checkpointing_kwargs: Json | None = None
    """Further settings of activation checkpointing."""
    gradient_checkpointing: bool | None = None
    """Older name of `activation_checkpointing`."""
    gradient_checkpointing_kwargs: Json | None = None
    """Older name of `activation_checkpointing_kwargs`."""
    torch_compile: bool = False
    """Compiles the model: slow first steps, then faster ones."""
    torch_compile_backend: str | None = None
    """Compiler back end; naming one turns compilation on."""
    torch_compile_mode: str | None = None
    """Compiler mode; naming one turns compilation on."""
    use_liger_kernel: bool = False
    """Uses Liger's fused kernels; the same as `enable_liger_kernel`."""
    liger_kernel_config: dict[str, bool] | None = None
    """Which of Liger's kernels are used."""
    use_cache: bool = False
    """Makes a key-value cache while training; only some adapters need it."""
    torch_empty_cache_steps: Count | None = None
    """Frees cached device memory every so many updates: less memory, slower."""
    skip_memory_metrics: bool = True
    """Leaves memory measurements out of the results; measuring slows the run."""
    use_cpu: bool = False
    """Computes on the CPU although there is an accelerator."""


@dataclass(frozen=True, kw_only=True)
class DistributedArguments(Arguments):
    """Several devices."""

    ddp_find_unused_parameters: bool | None = None
    """Looks for weights without gradient in each step; slower, needed by models with unused parts."""
    ddp_bucket_cap_mb: Count | None = None
    """Size of the pieces in which gradients are exchanged."""
    ddp_broadcast_buffers: bool | None = None
    """Copies buffers from the first rank in each step."""
    ddp_static_graph: bool | None = None
    """Promises that every step uses the same weights, which allows shortcuts."""
    ddp_backend: Literal["nccl", "mpi", "xccl", "gloo", "hccl", "cncl", "mccl", "ccl"] | None = None
    """How the processes talk; unset suits the device."""
    ddp_timeout: Count = 1800
    """Seconds a process waits for the others; raise it when data preparation takes long."""
    fsdp: str | bool | None = None
    """Shards weights, gradients and optimizer over the devices; older strings such as `full_shard auto_wrap` work."""
    fsdp_config: Json | str | None = None
    """Settings of FSDP: a mapping, a JSON string or a JSON file."""
    deepspeed: Json | str | None = None
    """Trains through DeepSpeed with this configuration: a mapping, a JSON string or a JSON file."""
    accelerator_config: Json | str | None = None
    """Settings of accelerate: a mapping, a JSON string or a JSON file."""
    parallelism_config: Json | None = None
    """Sizes of accelerate's device mesh."""
    local_rank: Annotated[int, Ge(-1)] = -1
    """Set by launchers; leave it."""
    debug: tuple[Literal["underflow_overflow", "tpu_metrics_debug"], ...] = ()
    """Watches for numbers that overflow; slow."""
