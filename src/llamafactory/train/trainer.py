"""The Trainer driver: transformers' Trainer, fed with objectives that return sums.

One optimizer step is divided once, by the number of supervised units in all its micro-batches on all ranks. So the
update, the logged loss and the eval loss are true means per unit for every way of cutting the same rows into batches.
Checkpoints are written aside and renamed (see checkpoints.py).
"""

import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint, has_length

from ..data.batch_plan import BatchPlan, BatchSize
from ..data.streaming import StreamRows
from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..model.model_utils.valuehead import load_value_head, save_value_head
from .batches import FILLER, RankBatches, eval_loader, make_plan, seed_length_groups, take_filler, train_loader
from .callbacks.diagnosis import Diagnosis
from .callbacks.early_stopping import require_best_metric
from .callbacks.interrupt import Interrupt
from .callbacks.progress import CompactPrinter, CompactProgress
from .callbacks.run_start import RunStart
from .checkpoints import STATE_FILE, UNFINISHED, cache_in_config, publish, rotate
from .eval_pass import EvalPass
from .meter import LossMeter, count_tokens, means_of, sum_dtype
from .objective import Batch, Models
from .optimizers.making import MakeOptimizer
from .predictions import PredictionStore
from .rollouts.schedule import Replay, prompt_loader
from .schedule import settled_schedule
from .stage import StageParts
from .stream_batches import stream_loader, take_counts


logger = get_logger(__name__)

PICKLED_ARGUMENTS = "training_args.bin"


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
        diagnosis: Diagnosis | None = None,
        **kwargs: Any,
    ) -> None:
        self.meter = LossMeter(skip_nonfinite=args.logging_nan_inf_filter)
        args.logging_nan_inf_filter = False  # the Trainer's own filter waits for the device in every micro-batch
        super().__init__(
            model=model,
            args=args,
            data_collator=parts.collate,
            callbacks=[
                RunStart(parts.batch_limit),
                self.meter,
                *parts.callbacks,
                *([diagnosis] if diagnosis else []),
                *callbacks,
            ],
            **kwargs,
        )
        if self.args.n_gpu > 1:
            raise UserError(
                f"One process sees {self.args.n_gpu} devices: start training with `llamafactory-cli train` or "
                "torchrun, which run one process per device."
            )
        self.parts = parts
        self.make_optimizer: MakeOptimizer | None = None
        """Makes the optimizer; without one, the Trainer makes the one that `optim` names."""
        self.interrupt = interrupt or Interrupt()
        self.diagnosis = diagnosis
        self.helpers = {name: self._prepare_helper(helper) for name, helper in parts.helpers.items()}
        rollout, accumulation = parts.rollout, self.args.gradient_accumulation_steps
        self.replay = Replay(rollout, accumulation, self.args.seed) if rollout is not None else None
        self.model_card = ""
        self.prediction_store: PredictionStore | None = None
        self._eval_pass = EvalPass()
        for verbose, compact in ((ProgressCallback, CompactProgress), (PrinterCallback, CompactPrinter)):
            if self.pop_callback(verbose) is not None:
                self.add_callback(compact)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, after reading from a checkpoint what the Trainer itself does not know of."""
        found = get_last_checkpoint(str(self.output_dir)) if resume_from_checkpoint is True else resume_from_checkpoint
        if found:
            load_value_head(cast(nn.Module, self.model), Path(str(found)))
            if self.replay is not None:
                self.replay.load(Path(str(found)) / self._rollout_file)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # one optimizer step

    def create_optimizer(self, model: Any = None) -> Any:
        """Make the optimizer of the run."""
        if self.make_optimizer is None or self.optimizer is not None:
            return super().create_optimizer(model)
        trained = cast(nn.Module, model or self.model)
        self.optimizer = self.make_optimizer(trained, self.args, self.get_decay_parameter_names(trained))
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule of the learning rate; how long its parts are follows from the length of the run."""
        with settled_schedule(self.args, num_training_steps):
            return super().create_scheduler(num_training_steps, optimizer)

    def get_train_dataloader(self) -> Any:
        """Every row once an epoch over all ranks, in an order that a resumed run finds again."""
        args = self.args
        if isinstance(self.train_dataset, StreamRows):
            place = (self.accelerator.process_index, self.accelerator.num_processes)
            return stream_loader(self.train_dataset, self.data_collator, args, place, self._train_batch_size)
        if self.parts.rollout is not None:
            place = (self.accelerator.process_index, self.accelerator.num_processes)
            return prompt_loader(self.train_dataset, self.parts.rollout.plan, args, place)
        is_split = max(self.get_tp_size(), self.get_cp_size(), self.get_sp_size()) > 1  # ranks share rows
        is_searched = args.auto_find_batch_size or args.train_sampling_strategy == "batch_rebalance"
        if is_split or is_searched or not has_length(self.train_dataset):
            loader = super().get_train_dataloader()
            seed_length_groups(loader, args.data_seed if args.data_seed is not None else args.seed)
            return loader
        rank = self.accelerator.process_index
        return train_loader(self.train_dataset, self.batch_plan, self.data_collator, args, rank)

    @cached_property
    def batch_plan(self) -> BatchPlan:
        """Which rows share a batch."""
        limit = self.parts.batch_limit or BatchSize(
            self.args.per_device_train_batch_size, drops_rest=self.args.dataloader_drop_last
        )
        return make_plan(self.train_dataset, limit, self.args, self.accelerator.num_processes)

    def get_total_train_batch_size(self, args: Any) -> int:
        """Rows of an update, for the speed in the metrics; their mean where a batch holds as many as fit."""
        if self.parts.batch_limit is None or self.parts.batch_limit.max_tokens is None:
            return super().get_total_train_batch_size(args)
        updates = max(self.batch_plan.num_batches / args.gradient_accumulation_steps, 1)
        return max(round(self.batch_plan.num_rows / updates), 1)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Take the micro-batches of one step and the weight of all of them, on all ranks."""
        at_end = 0 < self.state.max_steps <= self.state.global_step  # a resumed run that only has to be finished
        batches = [] if at_end else list(itertools.islice(epoch_iterator, num_batches))
        fillers = [take_filler(batch) for batch in batches]
        take_counts(batches, self.train_dataset)
        if self.replay is not None and batches:
            models = self._models(cast(nn.Module, self.model_wrapped))
            batches = self.replay.take(models, batches, self.state.global_step)
        if self.parts.survey is not None and batches:
            counted = zip(batches, [not is_filler for is_filler in fillers], strict=True)
            shared = self.parts.survey(self._models(cast(nn.Module, self.model_wrapped)), counted, is_training=True)
            batches = [{**batch, **shared} for batch in batches]
        own = torch.zeros(2, dtype=sum_dtype(device), device=device)
        for batch, is_filler in zip(batches, fillers, strict=True):
            if is_filler:
                batch[FILLER] = True
            else:
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
        is_filler = take_filler(inputs)
        loss = self.parts.objective(self._models(model), inputs)
        loss = loss.emptied() if is_filler else loss
        self.meter.add(loss, count_tokens(inputs) * (not is_filler))
        if self.diagnosis is not None and not is_filler:
            self.diagnosis.observe(loss, inputs)
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

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> dict[str, float]:
        """Measure, and say in one sentence when what decides about the best checkpoint was not among it."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **kwargs)
        if self.is_in_train and metric_key_prefix == "eval":
            require_best_metric(self.args.metric_for_best_model, metrics)
        return metrics

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
        stride = self.accelerator.process_index, self.accelerator.num_processes
        num_real = batches.num_real if isinstance(batches, RankBatches) else None
        self._eval_pass = EvalPass(num_real, stride=stride, store=self.prediction_store, loader=dataloader)
        if self._generates(description == "Prediction" or self.args.predict_with_generate):
            self._eval_pass.records = []
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        eval_pass = self._eval_pass

        if eval_pass.records is not None and self.parts.predictor is not None:
            records = self._in_row_order(eval_pass.records)
            if self.prediction_store is not None:
                records = self.prediction_store.complete(records)
            metrics = self.parts.predictor.measure(records)
            output = output._replace(predictions=cast(Any, records))
        else:
            metrics = means_of(eval_pass.meter.read(self._add_up))
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
                models = self._models(model)
                if self.parts.survey is not None:
                    batch |= self._eval_pass.survey(self.parts.survey, models, self.args.device)
                self._eval_pass.add_loss(self.parts.objective(models, batch))
        return None, None, None

    # files

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights and tokenizer, without the pickle of all arguments (access tokens among them)."""
        averages = getattr(self.optimizer, "eval", None)
        if averages is not None:
            averages()  # schedule-free optimizers: the weights to keep are not those that gradients are taken at
        with cache_in_config(getattr(self.model, "config", None)):
            super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(output_dir or self.output_dir)
            (folder / PICKLED_ARGUMENTS).unlink(missing_ok=True)
            save_value_head(cast(nn.Module, self.model), folder)

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
            if self.replay is not None:
                self.replay.save(staged / self._rollout_file)
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

    @property
    def _rollout_file(self) -> str:
        return f"rollout_{self.accelerator.process_index}.pt"

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
        return (is_wanted or self.parts.rollout is not None) and self.parts.predictor is not None

    def _loader(self, dataset: Any, generates: bool) -> Any:
        collate = self.data_collator
        if self._generates(generates):
            collate = cast(Any, self.parts.predictor).collate
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
