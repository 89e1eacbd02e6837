"""Starts runs for the page and follows them: a thin face over `jobs`, which does the work.

One Runner serves all visitors: it holds nothing of any run, so each visitor follows whichever run they look at.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..extras.env import read_env
from ..extras.errors import UserError
from . import jobs
from .jobs import Options, Run, Status
from .places import Places, read_places


POLL_SECONDS = 2.0


class Runner:
    """Starts, follows and stops runs below one folder."""

    def __init__(self, places: Places | None = None, *, demo_mode: bool = False) -> None:
        self.places = places or read_places(read_env())
        self.demo_mode = demo_mode

    def run_train(self, values: Mapping[str, Any], options: Options | None = None) -> Iterator[Status]:
        """Start a training run and yield what it does until it is over."""
        run = self._launch({"do_train": True, **values}, options)
        yield from self.monitor(run.run_dir)

    def run_eval(self, values: Mapping[str, Any], options: Options | None = None) -> Iterator[Status]:
        """Start a run that measures or predicts, and yield what it does until it is over."""
        run = self._launch({"do_predict": True, **values, "do_train": False}, options)
        yield from self.monitor(run.run_dir)

    def monitor(self, run_dir: Path, seconds: float = POLL_SECONDS) -> Iterator[Status]:
        """Yield a run's status again and again, for the last time when it is over; dropping this stops nothing."""
        while True:
            status = jobs.read_status(run_dir)
            yield status
            if status.is_over:
                return
            time.sleep(seconds)

    def set_abort(self, run_dir: Path) -> None:
        """Ask a run to save and end."""
        jobs.abort(run_dir)

    def _launch(self, values: Mapping[str, Any], options: Options | None = None) -> Run:
        """Check a run and let it begin."""
        if self.demo_mode:
            raise UserError("This is a demonstration: it starts no runs.")
        return jobs.start(values, options, places=self.places)
