"""Arguments about the data: what is read, how it is rendered, cut, mixed and packed."""

from dataclasses import dataclass
from typing import Literal

from .kinds import Arguments, Count, Json, Names, NonNegative, Share


MixStrategy = Literal["concat", "interleave_under", "interleave_over", "interleave_once"]
Overlong = Literal["truncate", "drop", "error"]


@dataclass(frozen=True, kw_only=True)
class DataArguments(Arguments):
    """Data."""

    template: str | None = None
    """Chat format of prompts and answers; unset takes the one that the tokenizer carries."""
    dataset: Names | None = None
    """Names from dataset_info.json to train on."""
    eval_dataset: Names | None = None
    """Names from dataset_info.json to measure on; give this or `val_size`."""
    dataset_dir: str | Json = "data"
    """Folder with dataset_info.json; `ONLINE` and `REMOTE:<repo>` read from a hub."""
    media_dir: str | None = None
    """Folder that relative paths of images, videos and audio start from; unset takes `dataset_dir`."""
    cutoff_len: Count = 2048
    """Longest example in tokens; what is longer is cut."""
    on_overlong: Overlong = "truncate"
    """What happens to an example longer than `cutoff_len`: it is cut, dropped and counted, or ends the run by name."""
    allow_special_tokens: bool = False
    """Control tokens typed in an example (like `<|im_end|>`) become control tokens instead of staying text."""
    train_on_prompt: bool = False
    """Learns the prompts too, not only the answers."""
    mask_history: bool = False
    """Learns only the last answer of a conversation."""
    streaming: bool = False
    """Reads examples while training instead of preparing them all; needs `max_steps` if they cannot be counted."""
    buffer_size: Count = 16384
    """Examples that are shuffled (and packed) together when streaming; more mixes better."""
    mix_strategy: MixStrategy = "concat"
    """Puts datasets end to end, or alternates between them until the first, the last or each once is used up."""
    interleave_probs: tuple[Share, ...] | None = None
    """Chance of each dataset when alternating; unset treats all alike."""
    overwrite_cache: bool = False
    """Prepares the data again although a cached preparation exists."""
    preprocessing_batch_size: Count = 1000
    """Examples prepared at a time."""
    preprocessing_num_workers: Count | None = None
    """Processes that prepare data; unset chooses by the size of the data."""
    max_samples: Count | None = None
    """Takes only this many examples from the head of each dataset."""
    eval_num_beams: Count | None = None
    """Beams when predicting; unset takes `num_beams`."""
    ignore_pad_token_for_loss: bool = True
    """Leaves padding out of the loss."""
    val_size: NonNegative = 0.0
    """Holds out examples for evaluation: a share when below 1, otherwise a count."""
    eval_on_each_dataset: bool = False
    """Reports every evaluation dataset on its own."""
    packing: bool | None = None
    """Fills rows of `cutoff_len` with several examples, kept apart in fine-tuning; unset packs in pre-training."""
    neat_packing: bool = False
    """Another name for `packing` in fine-tuning: here packed examples are always kept apart."""
    padding_free: bool | None = None
    """Lays the examples of a batch end to end instead of padding them; unset does so where the model allows it."""
    max_batch_tokens: Count | None = None
    """Training batches hold what fits into so many tokens instead of `per_device_train_batch_size` examples."""
    tool_format: str | None = None
    """Wire format of tool calls, when it should differ from the template's own."""
    default_system: str | None = None
    """System message for conversations that have none, instead of the template's."""
    enable_thinking: bool | None = True
    """Reasoning models: true keeps the thoughts, false strips them, null leaves an empty thought in the prompt."""
    preserve_thinking: bool = False
    """Keeps the thoughts of earlier turns in the prompt."""
    tokenized_path: str | None = None
    """Folder with prepared data: read when it exists, written otherwise."""
    data_shared_file_system: bool = False
    """Has no effect: on a disk that machines share, the first process prepares the data and the others wait for it."""
