"""The keys of transformers' Trainer about what comes in and out: logs, evaluation, checkpoints, hub, data loading."""

from dataclasses import dataclass, field
from typing import Literal

from .kinds import Arguments, Count, Names, Natural, Secret, Steps


LogLevel = Literal["debug", "info", "warning", "error", "critical", "passive", "detail"]


@dataclass(frozen=True, kw_only=True)
class LoggingArguments(Arguments):
    """Logging."""

    output_dir: str
    """Folder for checkpoints, weights, logs and plots."""
    overwrite_output_dir: bool = False
    """Uses output_dir although it holds an earlier run; that run's log and checkpoints are not continued."""
    logging_dir: str | None = None
    """Folder for tensorboard's files; unset takes runs/ in output_dir."""
    logging_strategy: Literal["no", "steps", "epoch"] = "steps"
    """Logs every `logging_steps` updates, once per epoch, or never."""
    logging_steps: Steps = 500
    """Updates between two log lines; below 1 it is a share of the run."""
    logging_first_step: bool = False
    """Also logs the very first update."""
    log_on_each_node: bool = True
    """Prints on every machine, not only on the first."""
    logging_nan_inf_filter: bool = True
    """Leaves losses that are not numbers out of the logged mean."""
    include_num_input_tokens_seen: Literal["all", "non_padding", "no"] | bool = "no"
    """Adds the number of tokens seen so far to the log."""
    log_level: LogLevel = "passive"
    """How much transformers prints on the first process."""
    log_level_replica: LogLevel = "warning"
    """How much transformers prints on the other processes."""
    disable_tqdm: bool | None = None
    """Hides the progress bar."""
    report_to: Names = ("none",)
    """Trackers that receive the curves, such as tensorboard or wandb."""
    run_name: str | None = None
    """Name of the run in the tracker."""
    project: str = "huggingface"
    """Project of the run in trackio."""
    trackio_space_id: str | None = None
    """Hugging Face Space that shows the run live in trackio."""
    trackio_bucket_id: str | None = None
    """Bucket in which trackio keeps the data of that Space."""
    trackio_static_space_id: str | Literal[False] | None = None
    """Read-only copy of the Space; false makes none."""


@dataclass(frozen=True, kw_only=True)
class EvalArguments(Arguments):
    """Evaluation and prediction."""

    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """Measures every `eval_steps` updates, once per epoch, or never."""
    eval_steps: Steps | None = None
    """Updates between two evaluations; unset takes `logging_steps`, below 1 it is a share of the run."""
    eval_delay: Steps = 0
    """Epochs or updates before the first evaluation."""
    per_device_eval_batch_size: Count = 8
    """Examples evaluated at a time on each device."""
    prediction_loss_only: bool = False
    """Reports the loss alone, without further metrics."""
    eval_on_start: bool = False
    """Evaluates once before training, so that errors show early."""
    eval_do_concat_batches: bool = True
    """Joins the outputs of all batches before metrics are computed."""
    eval_use_gather_object: bool = False
    """Gathers outputs that are not plain tensors from all devices."""
    eval_accumulation_steps: Count | None = None
    """Moves outputs to main memory every so many batches; unset at the end."""
    include_for_metrics: tuple[Literal["inputs", "loss"], ...] = ()
    """What metrics see besides predictions and labels."""
    batch_eval_metrics: bool = False
    """Computes metrics batch by batch to save memory."""
    predict_with_generate: bool = False
    """Lets the model write its answers in evaluation and prediction, and scores the text."""
    generation_max_length: Count | None = None
    """Cap on prompt plus answer when predicting; unset takes `cutoff_len`."""
    generation_num_beams: Count | None = None
    """Beams when predicting."""
    generation_config: str | None = None
    """File or model id with further generation settings for prediction."""
    sortish_sampler: bool = False
    """Puts examples of similar length together in prediction."""


@dataclass(frozen=True, kw_only=True)
class SavingArguments(Arguments):
    """Checkpoints and hub."""

    save_strategy: Literal["no", "steps", "epoch", "best"] = "steps"
    """Saves every `save_steps` updates, once per epoch, at each new best result, or never."""
    save_steps: Steps = 500
    """Updates between two checkpoints; below 1 it is a share of the run."""
    save_total_limit: Count | None = None
    """Keeps this many checkpoints and deletes older ones."""
    save_only_model: bool = False
    """Saves weights without optimizer state: small checkpoints that cannot be resumed."""
    save_on_each_node: bool = False
    """Saves on every machine, for disks that are not shared."""
    enable_jit_checkpoint: bool = False
    """Lets transformers save a checkpoint when the process is told to end."""
    load_best_model_at_end: bool = False
    """Ends with the best checkpoint instead of the last one."""
    metric_for_best_model: str | None = None
    """Metric that decides which checkpoint is best; unset takes the loss."""
    greater_is_better: bool | None = None
    """Says whether more of that metric is better; unset decides by its name."""
    push_to_hub: bool = False
    """Uploads the result to the hub."""
    hub_model_id: str | None = None
    """Repository that receives the result."""
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = "every_save"
    """When uploads happen and whether checkpoints are among them."""
    hub_token: Secret | None = field(default=None, repr=False)
    """Access token for uploads."""
    hub_private_repo: bool | None = None
    """Keeps a new repository private."""
    hub_always_push: bool = False
    """Uploads although the last upload is still running."""
    hub_revision: str | None = None
    """Branch of the repository that receives the result."""


@dataclass(frozen=True, kw_only=True)
class LoadingArguments(Arguments):
    """Data loading."""

    dataloader_drop_last: bool = False
    """Drops the last batch when it is not full."""
    dataloader_num_workers: Natural = 0
    """Processes that build batches; 0 builds them in the training process."""
    dataloader_pin_memory: bool = True
    """Speeds up copies to the device with memory that cannot be swapped."""
    dataloader_persistent_workers: bool = False
    """Keeps those processes between epochs."""
    dataloader_prefetch_factor: Count | None = None
    """Batches that each process prepares ahead."""
    dataloader_multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None
    """How those processes are started."""
    dataloader_in_order: bool = True
    """Takes batches in order; off takes whichever is ready first."""
    remove_unused_columns: bool = False
    """Drops columns that the model does not name; ours are all needed."""
    label_names: Names = ("labels",)
    """Columns that hold labels."""
    train_sampling_strategy: Literal["random", "sequential", "group_by_length", "batch_rebalance"] = "random"
    """Order of the training data; group_by_length pads less."""
    length_column_name: str = "length"
    """Column with lengths for group_by_length."""
