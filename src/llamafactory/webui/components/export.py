"""The Export tab: everything that the `export` command takes, as a job that ends with a verified folder."""

from typing import TYPE_CHECKING, Any

import gradio as gr

from ...extras.errors import UserError
from .. import jobs
from ..engine import Engine
from ..events import on, this_page
from ..form import folds, make_groups
from ..job_pages import Job, export_job, job_problems, verification
from ..jobs.runs import read_config
from ..markup import notice
from ..tab_form import MODEL_NAME
from ..wording import DEFAULT_LANGUAGE, page_words
from .job_form import JobForm
from .job_panel import JobPanel, create_job_panel


if TYPE_CHECKING:
    from gradio.blocks import Block

BUTTONS: tuple[tuple[str, Any], ...] = (
    ("cmd_preview_btn", "secondary"),
    ("export_btn", "primary"),
    ("stop_btn", "stop"),
)


def create_export_tab(engine: Engine) -> "dict[str, Block]":
    """Make the elements of the tab."""

    def words(name: str) -> dict[str, Any]:
        return engine.words(f"export.{name}", DEFAULT_LANGUAGE)

    extra = gr.Textbox("{}", render=False, elem_id="export-extra_args", **words("extra_args"))
    made: dict[str, Any] = {"extra_args": extra}
    made |= folds(make_groups("export", made))
    with gr.Row(elem_classes="actions"):
        for name, variant in BUTTONS:
            made[name] = gr.Button(variant=variant, min_width=110, elem_id=f"export-{name}", **words(name))
    made["output_box"] = gr.HTML("", elem_id="export-output_box", elem_classes="messages")
    made["preview_yaml"] = gr.Code(
        language="yaml", interactive=False, visible=False, elem_id="export-preview_yaml", **words("preview_yaml")
    )
    made |= create_job_panel(engine, "export")
    ExportHandlers(engine, made).connect()
    return made


class ExportPanel(JobPanel):
    """Says, too, whether the export was verified."""

    def told(self, status: "jobs.Status", folder: Any, language: str) -> str:
        """Return the verification."""
        text = verification(status, read_config(folder), language)
        return notice(text, "good") if text else ""


class ExportHandlers(JobForm):
    """What happens at the tab."""

    tab = "export"
    command = "export"
    panel_type = ExportPanel

    def connect(self) -> None:
        """Tie every handler to its event."""
        made = self.made
        self.panel.connect(this_page())
        inputs = {*self.form.inputs, self.lang}
        preview = [made["output_box"], made["preview_yaml"]]
        on(made["cmd_preview_btn"].click, self.preview, inputs, preview)
        on(made["export_btn"].click, self.start, inputs, [*preview, made["result_of"]])
        on(made["stop_btn"].click, self.panel.stop, [made["result_of"], self.lang], [made["output_box"]])

    def read(self, data: dict[Any, Any]) -> tuple[Job | None, list[str]]:
        """Return the job that the form stands for, and what is wrong with it."""
        words = page_words("export", str(data.get(self.lang)))
        values = self.form.values(data)
        missing = [words["no_model"]] if not values.get("top.model_path") else []
        missing += [words["no_folder"]] if not values.get("export.export_dir") else []
        if missing:
            return None, missing
        try:
            job = export_job(self.form.config(data), self.engine.places, model=str(values.get(MODEL_NAME) or ""))
        except UserError as error:
            return None, [str(error)]
        return job, job_problems(job, self.engine.places)
