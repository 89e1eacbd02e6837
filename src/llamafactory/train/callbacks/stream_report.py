"""The report of a stream: what became of its rows is known when they have been trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from accelerate.utils import gather_object
from transformers import TrainerCallback

from ...data.preparation import say
from ...data.report import PreparationReport
from ...data.streaming import StreamRows
from ...extras.constants import DATA_REPORT
from ..checkpoints import write_durably


class StreamReport(TrainerCallback):
    """Adds up the counts of all ranks at the end, and writes the report once more."""

    def __init__(self, rows: StreamRows, make_report: Callable[[], str]) -> None:
        self._reports = rows.reports
        self._make_report = make_report

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gathered = cast(list[tuple[PreparationReport, ...]], gather_object([self._reports]))
        if not state.is_world_process_zero:
            return
        for of_rank in gathered[1:]:  # the first is this rank's
            for own, other in zip(self._reports, of_rank, strict=True):
                own.add(other)
        for report in self._reports:
            if report.num_read:
                say(report, False)
        write_durably(Path(args.output_dir) / DATA_REPORT, self._make_report())
