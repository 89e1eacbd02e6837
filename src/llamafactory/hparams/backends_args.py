"""Arguments of the large external back ends: KTransformers, Megatron, HyperParallel."""

from dataclasses import dataclass
from typing import Literal

from .kinds import Arguments, Count


@dataclass(frozen=True, kw_only=True)
class KTransformersArguments(Arguments):
    """KTransformers: experts on the CPU."""

    use_kt: bool = False
    """Keeps a mixture's experts on the CPU, so that one device can tune a very large model."""
    kt_cpu_activation: Literal["retain", "recompute"] | None = None
    """Keeps the experts' activations in memory, or computes them again in the backward pass."""
    kt_weight_path: str | None = None
    """Experts that were quantized to INT8 beforehand."""
    kt_non_expert_weight_path: str | None = None
    """Cache of all other weights in bfloat16."""
    kt_expert_checkpoint_path: str | None = None
    """Expert weights as safetensors, converted while loading."""
    kt_use_lora_experts: bool | None = None
    """Adds small trainable experts on the device."""
    kt_lora_expert_num: Count | None = None
    """How many such experts."""
    kt_lora_expert_intermediate_size: Count | None = None
    """Width of each such expert."""


@dataclass(frozen=True, kw_only=True)
class BackendArguments(Arguments):
    """Other training back ends."""

    use_mca: bool = False
    """Trains on Megatron-Core through mcore_adapter."""
    use_megatron_bridge: bool = False
    """Trains on Megatron-Core through Megatron Bridge."""
    use_hyper_parallel: bool = False
    """Trains with HyperParallel's mix of sharding and tensor parallelism."""
    hyper_parallel_args: str | None = None
    """JSON file that describes HyperParallel's strategy."""
    hyper_parallel_cp_size: Count = 1
    """Devices that one long sequence is split over."""


@dataclass(frozen=True, kw_only=True)
class MegatronBridgeArguments(Arguments):
    """Megatron Bridge."""

    tensor_model_parallel_size: Count = 1
    """Devices that each layer is split over."""
    pipeline_model_parallel_size: Count = 1
    """Stages that the layers are divided into."""
    expert_model_parallel_size: Count = 1
    """Devices that a layer's experts are divided among."""
    context_parallel_size: Count = 1
    """Devices that one sequence is split over."""
    virtual_pipeline_model_parallel_size: Count | None = None
    """Interleaved pieces per pipeline stage; shrinks the idle time."""
    sequence_parallel: bool = False
    """Also splits norms and dropout along the sequence; saves memory, needs tensor parallelism."""
    recompute_granularity: Literal["full", "selective"] | None = None
    """Recomputes whole layers, or only the attention core, to save memory."""
    recompute_method: Literal["uniform", "block"] | None = None
    """Which layers are recomputed: evenly spread ones, or the first of each stage."""
    recompute_num_layers: Count | None = None
    """Layers per recomputed unit."""
    account_for_embedding_in_pipeline_split: bool | None = None
    """Counts the embedding as a layer when stages are balanced."""
    account_for_loss_in_pipeline_split: bool | None = None
    """Counts the loss as a layer when stages are balanced."""
    bias_activation_fusion: bool | None = None
    """Fuses bias and activation into one kernel."""
    apply_rope_fusion: bool | None = None
    """Fuses the rotary embedding into one kernel."""
    masked_softmax_fusion: bool | None = None
    """Fuses mask and softmax into one kernel."""
    cross_entropy_loss_fusion: bool | None = None
    """Fuses the loss into one kernel."""
    moe_grouped_gemm: bool | None = None
    """Multiplies all experts of a layer in one call."""
    moe_token_dispatcher_type: Literal["allgather", "alltoall", "flex"] | None = None
    """How tokens travel to their experts."""
    calculate_per_token_loss: bool | None = None
    """Divides the loss by tokens instead of by sequences."""
    use_distributed_optimizer: bool = True
    """Shards the optimizer state over the data-parallel ranks."""
    overlap_param_gather: bool = True
    """Hides the gathering of weights behind computation."""
    overlap_grad_reduce: bool = True
    """Hides the reduction of gradients behind computation."""
    use_packed_sequences: bool = False
    """Packs short examples into one row."""
    mixed_precision: str = "bf16_mixed"
    """Name of the precision recipe."""
    megatron_pretrained_checkpoint: str | None = None
    """Megatron checkpoint to start from; unset converts the Hugging Face weights."""
    export_hf_on_finish: bool = False
    """Writes the result in Hugging Face format into hf_export/ at the end."""
    extra_config: str | None = None
    """Further settings as JSON or a JSON file; dotted paths reach inner fields."""
