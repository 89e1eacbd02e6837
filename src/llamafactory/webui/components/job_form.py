"""What tabs share whose form becomes a job: preview, start, and the sentences about what is wrong."""

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import gradio as gr

from .. import jobs
from ..engine import Engine
from ..job_pages import Job, Kind, job_yaml, start_job
from ..markup import notice
from ..tab_form import TabForm
from ..wording import page_words
from .job_panel import JobPanel


Updates: TypeAlias = dict[Any, Any]


class JobForm(ABC):
    """The handlers of one tab's form; its elements are in `made`."""

    tab: Kind
    command: str
    """The command whose keys the form has."""
    panel_type: type[JobPanel] = JobPanel

    def __init__(self, engine: Engine, made: dict[str, Any]) -> None:
        self.engine = engine
        self.made = made
        self.lang: Any = engine.manager.get_elem_by_id("top.lang")
        self.form = TabForm(engine, self.tab, made, self.command)
        self.panel = self.panel_type(engine, self.tab, made)

    def preview(self, data: dict[Any, Any]) -> Updates:
        """Show the configuration and what is wrong with it."""
        job, problems = self.read(data)
        return self.told(problems) | {
            self.made["preview_yaml"]: gr.update(value=job_yaml(job) if job else "", visible=job is not None)
        }

    def start(self, data: dict[Any, Any]) -> Updates:
        """Start the job."""
        job, problems = self.read(data)
        if job is None or problems:
            return self.told(problems)
        try:
            run = start_job(job, self.engine.places, self.form.values(data))
        except jobs.JobError as error:
            return self.told([problem.message for problem in error.problems])
        text = page_words(self.tab, str(data.get(self.lang)))["started"].format(name=run.run_id)
        return {
            self.made["output_box"]: notice(text, "good"),
            self.made["preview_yaml"]: gr.update(visible=False),
            self.made["result_of"]: self.panel.turn_to(run.run_id),
        }

    def told(self, problems: list[str]) -> Updates:
        """Show what is wrong."""
        return {self.made["output_box"]: "\n".join(notice(problem, "problem") for problem in problems)}

    @abstractmethod
    def read(self, data: dict[Any, Any]) -> tuple[Job | None, list[str]]:
        """Return the job that the form stands for, and what is wrong with it."""
