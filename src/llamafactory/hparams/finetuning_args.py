"""Arguments about how the model is tuned: stage, method, objectives, adapters, tracking."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from .backends_args import BackendArguments
from .kinds import Arguments, Count, Names, Natural, NonNegative, PartShare, PluginName, Positive, Secret, Steps
from .optimizer_args import ApolloArguments, BadamArguments, GaloreArguments
from .plugin_args import PluginArguments
from .rollout_args import GrpoArguments, PpoArguments, RewardArguments


@dataclass(frozen=True, kw_only=True)
class MethodArguments(Arguments):
    """Stage and method."""

    stage: Literal["pt", "sft", "rm", "ppo", "dpo", "kto", "grpo"] | PluginName = "sft"
    """What is learned: plain text, answers, a reward, preferences (dpo, kto), or from rewarded tries (ppo, grpo)."""
    finetuning_type: Literal[
        "lora",
        "oft",
        "freeze",
        "full",
        "adalora",
        "vera",
        "loha",
        "lokr",
        "ia3",
        "prompt_tuning",
        "p_tuning",
        "prefix_tuning",
    ] = "lora"
    """What is trained: all weights (full), some layers (freeze), virtual tokens (last three), or small adapters."""
    pure_bf16: bool = False
    """Holds weights and optimizer in bfloat16 only: half the memory, coarser updates."""
    use_llama_pro: bool = False
    """Trains only the blocks that an expanded model received."""
    use_adam_mini: bool = False
    """Keeps one second moment per block instead of per weight: about half of Adam's memory."""
    use_muon: bool = False
    """Updates matrices with Muon and everything else with AdamW."""
    use_dft_loss: bool = False
    """Weighs each token by its own probability, which calms the learning of unlikely tokens."""
    use_asft_loss: bool = False
    """The same weighting, kept near the starting model."""
    asft_alpha: NonNegative = 0.1
    """How strongly `use_asft_loss` holds on to the starting model."""
    use_eaft_loss: bool = False
    """Weighs each token by how uncertain the model is about it."""
    eaft_alpha: NonNegative = 1.0
    """How sharply `use_eaft_loss` tells uncertain tokens from certain ones."""
    freeze_vision_tower: bool = True
    """Leaves the vision and audio encoders as they are."""
    freeze_multi_modal_projector: bool = True
    """Leaves the layers between encoder and language model as they are."""
    freeze_language_model: bool = False
    """Leaves the language model as it is, to train the other parts."""
    compute_accuracy: bool = False
    """Reports the share of tokens that evaluation predicts right."""
    disable_shuffling: bool = False
    """Goes through the data in its given order."""
    early_stopping_steps: Count | None = None
    """Stops after this many evaluations in a row without improvement."""
    plot_loss: bool = False
    """Draws the loss curves into output_dir."""
    include_effective_tokens_per_second: bool = False
    """Reports how many real tokens, without padding, are trained per second."""


@dataclass(frozen=True, kw_only=True)
class FreezeArguments(Arguments):
    """Freeze tuning."""

    freeze_trainable_layers: int = 2
    """Trains the last n layers, or the first n when negative."""
    freeze_trainable_modules: Names = ("all",)
    """Parts of those layers that are trained; `all` is every part."""
    freeze_extra_modules: Names | None = None
    """Parts outside the layers that are trained too, such as the output layer."""


@dataclass(frozen=True, kw_only=True)
class LoraArguments(Arguments):
    """LoRA."""

    additional_target: Names | None = None
    """Modules that are trained in full and saved beside the adapter, such as the embedding."""
    lora_alpha: Natural | None = None
    """Strength of the adapter; unset or 0 takes twice the rank."""
    lora_dropout: PartShare = 0.0
    """Share of the adapter's input that is dropped while training."""
    lora_rank: Count = 8
    """Width of the update matrices; memory and capacity grow with it."""
    lora_target: Names = ("all",)
    """Layers that get an adapter; `all` is every linear layer except the output, and all experts of a mixture."""
    lora_router: bool = False
    """Lets `all` adapt the routers of a mixture of experts too."""
    lora_init: Literal["default", "gaussian", "orthogonal", "olora", "eva"] = "default"
    """What LoRA starts from: noise of one kind or another, the weights (olora), or the data (eva)."""
    loraplus_lr_ratio: Positive | None = None
    """How much faster the second matrix learns than the first (LoRA+)."""
    loraplus_lr_embedding: Positive = 1e-6
    """Learning rate of adapted embeddings under LoRA+."""
    use_rslora: bool = False
    """Scales by the root of the rank, so that large ranks keep learning."""
    use_dora: bool = False
    """Learns size and direction of the update apart: often better, slower."""
    pissa_init: bool = False
    """Starts the adapter from the main directions of the weights."""
    pissa_iter: Annotated[int, Ge(-1)] = 16
    """Iterations of the fast decomposition for `pissa_init`; -1 is exact and slow."""
    pissa_convert: bool = False
    """Kept for older files: a PiSSA result is always saved as an ordinary adapter for the original weights."""
    create_new_adapter: bool = False
    """Merges the given adapters and starts a fresh one on top."""


@dataclass(frozen=True, kw_only=True)
class QatArguments(Arguments):
    """Training for weights in few bits."""

    qat_bits: Literal[4, 8] | None = None
    """Rounds weights to this many bits of torchao in each step, so that packing the result later costs little."""


@dataclass(frozen=True, kw_only=True)
class OftArguments(Arguments):
    """OFT: orthogonal adapters."""

    module_dropout: PartShare = 0.0
    """Share of the adapted modules that is skipped while training."""
    oft_rank: Natural = 0
    """Number of rotation blocks per layer; 0 lets `oft_block_size` decide."""
    oft_block_size: Natural = 32
    """Size of each rotation block; 0 lets `oft_rank` decide."""
    oft_target: Names = ("all",)
    """Layers that get an adapter; `all` is every linear layer except the output."""


@dataclass(frozen=True, kw_only=True)
class AdaloraArguments(Arguments):
    """AdaLoRA: a rank that moves between layers; `lora_rank` is the mean in the end."""

    adalora_init_rank: Count | None = None
    """Rank that every layer starts from; unset takes one and a half times `lora_rank`."""
    adalora_start: Steps = 0.1
    """Steps with all directions at the beginning, or a share of the run below 1."""
    adalora_end: Steps = 0.3
    """Steps at the end in which the ranks stay as they are, or a share of the run below 1."""
    adalora_interval: Count = 1
    """Steps between two cuts."""
    adalora_orth_weight: NonNegative = 0.5
    """How strongly the directions are held orthogonal."""


@dataclass(frozen=True, kw_only=True)
class PromptArguments(Arguments):
    """Virtual tokens: prompt tuning, p-tuning and prefix tuning."""

    num_virtual_tokens: Count = 20
    """Trained vectors before every text; each takes the room of a token."""
    prompt_init_text: str | None = None
    """Text whose embeddings prompt tuning starts from; unset draws words at random."""
    prompt_encoder_size: Count | None = None
    """Width of the network behind the vectors (p-tuning, `prefix_projection`); unset takes that of the model."""
    prefix_projection: bool = False
    """Makes the prefix by a small network: steadier training, a larger state."""


@dataclass(frozen=True, kw_only=True)
class RlhfArguments(Arguments):
    """Preferences and rewards."""

    pref_beta: NonNegative = 0.1
    """How closely preference tuning stays to the reference model; larger stays closer."""
    pref_ftx: NonNegative = 0.0
    """Weight of an added SFT loss on the chosen answers."""
    pref_bco_weight: NonNegative = 0.0
    """Weight of the BCO term that is mixed into DPO."""
    pref_loss: (
        Literal[
            "sigmoid",
            "hinge",
            "ipo",
            "kto_pair",
            "orpo",
            "simpo",
            "sigmoid_norm",
            "robust",
            "exo_pair",
            "bco_pair",
            "apo_zero",
            "apo_down",
            "sppo_hard",
            "discopop",
        ]
        | PluginName
    ) = "sigmoid"
    """Preference loss; orpo and simpo need no reference model."""
    dpo_label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0
    """Share of preference pairs that are taken to be the wrong way round."""
    kto_chosen_weight: NonNegative = 1.0
    """Weight of the good answers in KTO."""
    kto_rejected_weight: NonNegative = 1.0
    """Weight of the bad answers in KTO."""
    simpo_gamma: float = 0.5
    """Lead that SimPO wants the chosen answer to have."""
    ppo_buffer_size: Count = 1
    """Batches gathered for one PPO step."""
    ppo_epochs: Count = 4
    """Passes over the gathered batches in one PPO step."""
    ppo_score_norm: bool = False
    """Brings rewards to a common scale."""
    ppo_target: Positive = 6.0
    """Distance from the reference model that PPO steers to."""
    ppo_whiten_rewards: bool = False
    """Centres and scales rewards before advantages are computed."""
    precompute_ref_logps: bool = False
    """Asks the reference model once, before training, and keeps its answers in the cache: faster from then on."""
    ref_model: str | None = None
    """Reference model; unset uses the starting model itself."""
    ref_model_adapters: Names | None = None
    """Adapters of the reference model."""
    ref_model_quantization_bit: Literal[4, 8] | None = None
    """Loads the reference model quantized to this many bits."""
    reward_model: str | None = None
    """Reward model: a folder or id, an adapter, or the address of a server."""
    reward_model_adapters: Names | None = None
    """Adapters of the reward model."""
    reward_model_quantization_bit: Literal[4, 8] | None = None
    """Loads the reward model quantized to this many bits."""
    reward_model_type: Literal["lora", "full", "api"] = "lora"
    """The reward model is an adapter of the policy, a model of its own, or a server."""
    ld_alpha: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Weight of the words beyond the shorter answer's length (LD-DPO); 1 is plain DPO."""


@dataclass(frozen=True, kw_only=True)
class SwanlabArguments(Arguments):
    """SwanLab tracking."""

    use_swanlab: bool = False
    """Sends the curves to SwanLab."""
    swanlab_project: str | None = "llamafactory"
    """Project that the run is filed under."""
    swanlab_workspace: str | None = None
    """Workspace of the project."""
    swanlab_run_name: str | None = None
    """Name of the run."""
    swanlab_mode: Literal["cloud", "local"] = "cloud"
    """Uploads the run, or keeps it on this machine."""
    swanlab_api_key: Secret | None = field(default=None, repr=False)
    """Access key."""
    swanlab_logdir: str | None = None
    """Folder for the local files."""
    swanlab_lark_webhook_url: Secret | None = field(default=None, repr=False)
    """Lark address that hears when the run ends."""
    swanlab_lark_secret: Secret | None = field(default=None, repr=False)
    """Secret of that address."""


@dataclass(frozen=True, kw_only=True)
class FinetuningArguments(
    BackendArguments,
    PluginArguments,
    SwanlabArguments,
    BadamArguments,
    ApolloArguments,
    GaloreArguments,
    GrpoArguments,
    PpoArguments,
    RewardArguments,
    RlhfArguments,
    PromptArguments,
    AdaloraArguments,
    OftArguments,
    QatArguments,
    LoraArguments,
    FreezeArguments,
    MethodArguments,
):
    """Everything about the method."""
