"""Runs the sides of tasks in turn, each in a process of its own, and keeps what they measured."""

import contextlib
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..extras.env import child_environment
from ..extras.errors import UserError
from .job import Job
from .machine import describe_machine
from .report import ratios, summarise
from .tasks import BATCH, Side, Task


SCHEMA = 1
WAIT = 0.1
LOG_TAIL = 12


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user chose."""

    model: str
    data: Path | None
    steps: int | None
    warmup: int
    rounds: int
    rows: int
    """Rows of the task `preprocess`."""
    new_tokens: int
    """Tokens of an answer in the task `decode`."""


class Progress:
    """What is told about progress; the command draws a bar, tests listen."""

    def start(self, total: int) -> None:
        """So many steps will come."""

    def say(self, text: str) -> None:
        """This is being done now."""

    def advance(self, steps: int) -> None:
        """So many more steps are done."""


class JobFailedError(Exception):
    """A process of the benchmark ended with an error; the text is what it said last."""


def run_tasks(tasks: Sequence[Task], options: Options, progress: Progress) -> dict[str, Any]:
    """Measure everything and return the result as it is written to a file."""
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "settings": {
            "model": Path(options.model).name if Path(options.model).is_dir() else options.model,
            "rounds": options.rounds,
            "warmup_steps": options.warmup,
            "batch": BATCH,
        },
        "environment": describe_machine(),
        "tasks": {},
    }
    progress.start(
        sum(_num_steps(task, side, options) * _rounds(task, options) for task in tasks for side in task.sides)
    )
    with tempfile.TemporaryDirectory(prefix="llamafactory-bench-") as folder:
        bench = Bench(Path(folder), options, progress)
        if any(not task.needs_cuda for task in tasks):
            bench.locate_model()
        for task in tasks:
            try:
                result["tasks"][task.name] = bench.run_task(task)
            except JobFailedError as error:
                result["tasks"][task.name] = {"title": task.title, "error": str(error)}
    return result


@dataclass
class Bench:
    """One run of the command."""

    folder: Path
    options: Options
    progress: Progress
    _num_jobs: int = 0

    def locate_model(self) -> None:
        """Fetch the model if need be, once for all sides."""
        self.progress.say("looking for the model")
        try:
            folder = self.execute(self._job(run="llamafactory.bench.model:locate"))["folder"]
        except JobFailedError as error:
            raise UserError(f"The model cannot be loaded: {error}") from error
        self.options = replace(self.options, model=str(folder))

    def run_task(self, task: Task) -> dict[str, Any]:
        """Prepare the rows of a task and run its sides, round after round."""
        work = self._prepare(task)
        runs: dict[str, list[dict[str, Any]]] = {side.name: [] for side in task.sides}
        rounds = _rounds(task, self.options)
        for number in range(rounds):
            for side in task.sides:
                self.progress.say(f"{task.name}: {side.name}, round {number + 1} of {rounds}")
                runs[side.name].append(self.execute(self._side_job(task, side, work)))
        sides = {
            side.name: {"title": side.title, "figures": summarise(runs[side.name]), "runs": runs[side.name]}
            for side in task.sides
        }
        shown = {name: {key: value for key, value in facts.items() if key != "ids"} for name, facts in work.items()}
        return {"title": task.title, "work": shown, "sides": sides, **ratios(task, runs)}

    def execute(self, job: Job) -> dict[str, Any]:
        """Run a job in a process of its own and return its answer."""
        command = [sys.executable, "-m", "llamafactory.bench.worker", str(job.save())]
        log = Path(job.folder) / "log.txt"
        environment = child_environment(PYTHONUNBUFFERED="1")
        with log.open("wb") as stream:
            child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
            with _ended(child):
                self._follow(child, job)
        if child.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            said = lines[-1:] if child.returncode == UserError.exit_code else lines[-LOG_TAIL:]
            raise JobFailedError("\n".join(said) or f"exit code {child.returncode}")
        return json.loads(job.result_file.read_text(encoding="utf-8"))

    def _follow(self, child: "subprocess.Popen[bytes]", job: Job) -> None:
        seen = 0
        while child.poll() is None:
            time.sleep(WAIT)
            size = job.progress_file.stat().st_size if job.progress_file.exists() else 0
            self.progress.advance(size - seen)
            seen = size

    def _prepare(self, task: Task) -> dict[str, dict[str, Any]]:
        """Write the rows that sides share, once for plain and once for packed ones."""
        if not task.stage:
            return {}
        work: dict[str, dict[str, Any]] = {}
        for is_packed in sorted({side.is_packed for side in task.sides}):
            self.progress.say(f"{task.name}: choosing rows")
            steps = _steps(task, is_packed, self.options)
            settings = {"source": str(self.options.data or ""), "is_packed": is_packed}
            job = self._job(run="llamafactory.bench.rows:prepare", task=task, steps=steps, settings=settings)
            facts = self.execute(job)
            Path(job.folder, "work.json").write_text(json.dumps(facts), encoding="utf-8")
            work["packed" if is_packed else "plain"] = facts
        return work

    def _side_job(self, task: Task, side: Side, work: dict[str, dict[str, Any]]) -> Job:
        facts = work.get("packed" if side.is_packed else "plain", {})
        settings = {"rows": self.options.rows, "new_tokens": self.options.new_tokens, **side.settings}
        if task.stage:
            settings = dict(side.settings)
        elif self.options.data is not None:
            settings["source"] = str(self.options.data)
        ids = str(facts.get("ids", ""))
        return self._job(
            run=side.run,
            task=task,
            steps=_steps(task, side.is_packed, self.options),
            settings=settings,
            ids=ids,
            dataset="rows" if ids else "",
            dataset_dir=str(Path(ids).parent) if ids else "",
        )

    def _job(self, *, task: Task | None = None, **values: Any) -> Job:
        folder = self.folder / f"job-{self._num_jobs:03}"
        self._num_jobs += 1
        folder.mkdir()
        if task is not None:
            values |= {
                "stage": task.stage,
                "method": task.method,
                "cutoff_len": task.cutoff_len,
                "batch": task.batch,
                "accumulation": task.accumulation,
                "learning_rate": task.learning_rate,
                "warmup": self.options.warmup,
            }
        return Job(model=self.options.model, folder=str(folder), **values)


def _steps(task: Task, is_packed: bool, options: Options) -> int:
    if task.has_fixed_steps:
        return task.steps
    return options.warmup + (options.steps or (task.packed_steps if is_packed else task.steps))


def _rounds(task: Task, options: Options) -> int:
    return min(options.rounds, task.max_rounds or options.rounds)


def _num_steps(task: Task, side: Side, options: Options) -> int:
    """Steps that the bar counts: those of training, one for anything else."""
    is_training = bool(task.stage) and not side.run.endswith("gemm:measure")
    return _steps(task, side.is_packed, options) if is_training else 1


@contextlib.contextmanager
def _ended(child: "subprocess.Popen[bytes]") -> Iterator[None]:
    """See to it that the process is over, also when the user presses Ctrl-C."""
    try:
        yield
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
