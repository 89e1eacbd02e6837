"""The Trainer driver: transformers' Trainer, fed with objectives that return sums.

One optimizer step is divided once, by the number of supervised units in all its micro-batches on all ranks. So the
update, the logged loss and the eval loss are true means per unit for every way of cutting the same rows into batches.
Checkpoints are written aside and renamed (see checkpoints.py).
"""

import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, has_length

from ..extras.errors import UserError
from ..extras.logging import get_logger
from .batches import RankBatches, eval_loader, seed_length_groups
from .callbacks.interrupt import Interrupt
from .callbacks.progress import CompactPrinter, CompactProgress
from .checkpoints import STATE_FILE, UNFINISHED, publish, rotate
from .meter import LOSS, LossMeter, SumMeter, ratio, sum_dtype
from .objective import Batch, LossSum, MetricSum, Models
from .run_plan import open_folder
from .stage import StageParts


logger = get_logger(__name__)

PICKLED_ARGUMENTS = "training_args.bin"


@dataclass
class EvalPass:
    """One pass over an evaluation set: sums, or the records of a predictor."""

    num_left: int | None = None
    """Batches still to come that count, the rest are fillers; None counts all."""
    meter: SumMeter = field(default_factory=SumMeter)
    records: list[dict[str, Any]] | None = None

    def add_loss(self, loss: LossSum) -> None:
        """Add the sums of one batch; of a filler only the names, which must be the same on all ranks."""
        is_real = self._counts()
        for name, sums in {LOSS: MetricSum(loss.total, loss.weight), **loss.metrics}.items():
            total, weight = sums if is_real else (torch.zeros_like(sums.total), torch.zeros_like(sums.weight))
            self.meter.add(name, total, weight)

    def add_records(self, records: list[dict[str, Any]]) -> None:
        """Add the predictions of one batch."""
        if self._counts() and self.records is not None:
            self.records.extend(records)

    def _counts(self) -> bool:
        if self.num_left is None:
            return True
        self.num_left -= 1
        return self.num_left >= 0


class CustomSeq2SeqTrainer(Seq2SeqTrainer):
    """The only subclass of transformers' Trainer; every stage runs in it."""

    args: Seq2SeqTrainingArguments
    loss_is_scaled_for_ga = True  # `compute_loss` divides by the weight of the whole step

    def __init__(
        self,
        model: nn.Module,
        args: Any,
        parts: StageParts,
        *,
        callbacks: Iterable[TrainerCallback] = (),
        interrupt: Interrupt | None = None,
        **kwargs: Any,
    ) -> None:
        self.meter = LossMeter(skip_nonfinite=args.logging_nan_inf_filter)
        args.logging_nan_inf_filter = False  # the Trainer's own filter waits for the device in every micro-batch
        super().__init__(
            model=model,
            args=args,
            data_collator=parts.collate,
            callbacks=[RunStart(), self.meter, *callbacks],
            **kwargs,
        )
        if self.args.n_gpu > 1:
            raise UserError(
                f"One process sees {self.args.n_gpu} devices: start training with `llamafactory-cli train` or "
                "torchrun, which run one process per device."
            )
        self.parts = parts
        self.interrupt = interrupt or Interrupt()
        self.helpers = {name: self._prepare_helper(helper) for name, helper in parts.helpers.items()}
        self.model_card = ""
        self._eval_pass = EvalPass()
        for verbose, compact in ((ProgressCallback, CompactProgress), (PrinterCallback, CompactPrinter)):
            if self.pop_callback(verbose) is not None:
                self.add_callback(compact)

    # one optimizer step

    def get_train_dataloader(self) -> Any:
        """The Trainer's loader, with an order that a resumed run finds again."""
        loader = super().get_train_dataloader()
        seed_length_groups(loader, self.args.data_seed if self.args.data_seed is not None else self.args.seed)
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Take the micro-batches of one step and the weight of all of them, on all ranks."""
        at_end = 0 < self.state.max_steps <= self.state.global_step  # a resumed run that only has to be finished
        batches = [] if at_end else list(itertools.islice(epoch_iterator, num_batches))
        if self.parts.rollout is not None:
            prompts, models = batches, self._models(cast(nn.Module, self.model_wrapped))
            batches = self.parts.rollout(models, prompts, self.state.global_step)
            if len(batches) != len(prompts):
                raise RuntimeError(
                    f"A rollout made {len(batches)} batches of {len(prompts)}; the Trainer counts them."
                )
        own = torch.zeros(2, dtype=sum_dtype(device), device=device)
        for batch in batches:
            own[0] += self.parts.weigh(batch).to(device)
        weight = own[0]
        if self.accelerator.num_processes > 1:
            own[1] = self.interrupt.own
            ranks = cast(Tensor, self.accelerator.gather(own)).view(-1, 2)
            self.interrupt.agree(ranks[:, 1].max())
            if self.args.average_tokens_across_devices:
                weight = ranks[:, 0].sum() / (self.get_tp_size() * self.get_cp_size() * self.get_sp_size())
        return batches, weight.where(weight > 0, 1.0)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's share of the step's mean loss."""
        loss = self.parts.objective(self._models(model), inputs)
        self.meter.add(loss, count_tokens(inputs))
        weight = loss.weight if num_items_in_batch is None else num_items_in_batch
        share = loss.total * self._num_averaged() / torch.as_tensor(weight).to(loss.total)
        return (share, {"loss": share}) if return_outputs else share

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Put the true means in place of the mean over steps that the Trainer computes."""
        if "loss" in logs or "train_loss" in logs:
            self.meter.settle(self._add_up)
        if "loss" in logs:
            logs.update(self.meter.means())
        if "train_loss" in logs:
            logs["train_loss"] = self.meter.run_mean()
        super().log(logs, start_time)

    # evaluation and prediction

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Every row once over all ranks, unpadded."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            held = self.eval_dataset
            eval_dataset = held[eval_dataset] if isinstance(held, Mapping) and eval_dataset is not None else held
        return self._loader(eval_dataset, generates=self.args.predict_with_generate)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """The same for prediction."""
        return self._loader(test_dataset, generates=True)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Let the Trainer walk over the set, and return sums divided once, or the predictor's records."""
        batches = getattr(dataloader, "batch_sampler", None)
        self._eval_pass = EvalPass(batches.num_real if isinstance(batches, RankBatches) else None)
        if self._generates(description == "Prediction" or self.args.predict_with_generate):
            self._eval_pass.records = []
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        eval_pass = self._eval_pass

        if eval_pass.records is not None and self.parts.predictor is not None:
            records = self._in_row_order(eval_pass.records)
            metrics = self.parts.predictor.measure(records)
            output = output._replace(predictions=cast(Any, records))
        else:
            metrics = {name: ratio(*sums) for name, sums in eval_pass.meter.read(self._add_up).items()}
            metrics |= self.parts.derive(metrics) if self.parts.derive else {}
        prefixed = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **prefixed})

    def prediction_step(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> tuple[None, None, None]:
        """Add one batch to the pass; the Trainer has nothing to gather."""
        batch = cast(Batch, send_to_device(inputs, self.args.device))
        with torch.no_grad(), self.compute_loss_context_manager():
            if self._eval_pass.records is not None and self.parts.predictor is not None:
                self._eval_pass.add_records(self.parts.predictor.predict(self._models(model), batch))
            else:
                self._eval_pass.add_loss(self.parts.objective(self._models(model), batch))
        return None, None, None

    # files

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights and tokenizer, without the pickle of all arguments (access tokens among them)."""
        with cache_in_config(getattr(self.model, "config", None)):
            super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            Path(output_dir or self.output_dir, PICKLED_ARGUMENTS).unlink(missing_ok=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write our card, where an upload would write the Trainer's."""
        if not self.model_card:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            (self.output_dir / "README.md").write_text(self.model_card, encoding="utf-8")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Private, and overridden all the same: it is the one place that knows all files of a checkpoint (model,
        # optimizer, scheduler, scaler, one random state per rank, DeepSpeed and FSDP shards), it writes them under
        # their final name one by one, and no public hook runs between the last file and the deletion of older
        # checkpoints. It is sent to a folder aside; tests/train/test_checkpoints.py fails when its way changes.
        target = self.output_dir
        final = target / f"checkpoint-{self.state.global_step}"
        self.meter.settle(self._add_up)
        if final.is_dir():
            return  # this step is saved already, with the same weights
        staged = target / UNFINISHED / final.name
        if self.args.local_process_index == 0:
            shutil.rmtree(staged, ignore_errors=True)
        self.accelerator.wait_for_everyone()

        pushes, self.args.push_to_hub, self.args.output_dir = self.args.push_to_hub, False, str(staged.parent)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.push_to_hub, self.args.output_dir = pushes, str(target)
        self.accelerator.wait_for_everyone()
        self._publish(staged, final)
        if pushes and self.args.hub_strategy != "end":
            self.push_to_hub(f"Training in progress, step {self.state.global_step}", blocking=False)

    def _publish(self, staged: Path, final: Path) -> None:
        """Name the checkpoint, then delete older ones; on all ranks, done by one of them."""
        is_best = self.state.best_model_checkpoint is not None and Path(self.state.best_model_checkpoint) == staged
        if is_best:
            self.state.best_model_checkpoint = str(final)
        if self.args.should_save:
            if is_best:
                self.state.save_to_json(str(staged / STATE_FILE))
            publish(staged, final)
            rotate(final.parent, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
        if self.args.local_process_index == 0 and staged.is_dir():
            staged.rename(final)  # a machine with a disk of its own: the random states of its ranks

    # helpers

    @property
    def output_dir(self) -> Path:
        """The folder of the run."""
        return Path(str(self.args.output_dir))

    def _models(self, policy: nn.Module) -> Models:
        return Models(policy, self.helpers)

    def _prepare_helper(self, helper: nn.Module) -> nn.Module:
        return self.accelerator.prepare_model(helper.requires_grad_(False).eval(), evaluation_mode=True)

    def _num_averaged(self) -> int:
        """Gradients are averaged over this many ranks, which undoes the sum unless it is multiplied back."""
        if not self.args.average_tokens_across_devices:
            return 1
        return self.accelerator.num_processes // self.get_tp_size()

    def _add_up(self, sums: Tensor) -> Tensor:
        return cast(Tensor, self.accelerator.reduce(sums.to(self.args.device), "sum"))

    def _generates(self, is_wanted: bool) -> bool:
        return is_wanted and self.parts.predictor is not None

    def _loader(self, dataset: Any, generates: bool) -> Any:
        collate = self.data_collator
        if generates and self.parts.predictor is not None:
            collate = self.parts.predictor.collate
        size, num_ranks = self.args.per_device_eval_batch_size, self.accelerator.num_processes
        if not has_length(dataset):  # a stream: accelerate splits it
            return self.accelerator.prepare(torch.utils.data.DataLoader(dataset, size, collate_fn=collate))
        batches = RankBatches(len(dataset), size, self.accelerator.process_index, num_ranks)
        return eval_loader(dataset, batches, collate, self.args)

    def _in_row_order(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Put the records of all ranks together; rank r holds rows r, r + num_ranks, ..."""
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        numbered = [(rank + index * num_ranks, record) for index, record in enumerate(records)]
        if num_ranks > 1:
            numbered = gather_object(numbered)
        return [record for _, record in sorted(numbered, key=lambda pair: pair[0])]


@contextmanager
def cache_in_config(config: Any) -> Iterator[None]:
    """Save a model that uses its key-value cache, which is off while it trains."""
    use_cache = getattr(config, "use_cache", None)
    if use_cache is not None:
        config.use_cache = True
    yield
    if use_cache is not None:
        config.use_cache = use_cache


class RunStart(TrainerCallback):
    """Puts the settings of this run and the folder in order before the first step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)  # a resumed state brings the intervals of the earlier run
        if state.is_world_process_zero:
            open_folder(Path(args.output_dir), state.global_step)
            num_rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
            done = f", {state.global_step} of them done" if state.global_step else ""
            logger.info(f"Training: {state.max_steps} updates of {num_rows} rows each{done}.")


def count_tokens(batch: Batch) -> Tensor:
    """Count the tokens of a batch without its padding."""
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.sum()
    return torch.tensor(batch["input_ids"].numel(), device=batch["input_ids"].device)
