"""The Evaluate & Predict tab: a job that measures, and its answers beside the expected ones."""

from typing import TYPE_CHECKING, Any

import gradio as gr

from ...extras.errors import UserError
from ..engine import Engine
from ..events import on, this_page
from ..form import folds, make_groups
from ..job_pages import Job, eval_job, job_problems, time_name
from ..offers import dataset_names
from ..predictions import predictions_file, read_page, show_page
from ..run_view import find_shown
from ..tab_form import MODEL_NAME
from ..wording import DEFAULT_LANGUAGE, page_words
from .data import connect_data_panel, create_data_panel
from .job_form import JobForm, Updates
from .job_panel import create_job_panel


if TYPE_CHECKING:
    from gradio.blocks import Block

ROWS = 5
BUTTONS: tuple[tuple[str, Any], ...] = (
    ("cmd_preview_btn", "secondary"),
    ("start_btn", "primary"),
    ("stop_btn", "stop"),
)


def create_eval_tab(engine: Engine) -> "dict[str, Block]":
    """Make the elements of the tab."""

    def words(name: str) -> dict[str, Any]:
        return engine.words(f"eval.{name}", DEFAULT_LANGUAGE)

    made: dict[str, Any] = {}
    offered = {"dataset": dataset_names(engine.places, "data", None)}
    make_groups("eval", made, ["data"], choices=offered)
    made |= create_data_panel(engine, "eval")
    made["extra_args"] = gr.Textbox("{}", render=False, elem_id="eval-extra_args", **words("extra_args"))
    made |= folds(make_groups("eval", made, ["basics", "more"]))
    with gr.Group(elem_classes="open"):
        made["output_dir"] = gr.Textbox(
            time_name("eval_"), interactive=True, elem_id="eval-output_dir", **words("output_dir")
        )
    with gr.Row(elem_classes="actions"):
        for name, variant in BUTTONS:
            usable = name == "cmd_preview_btn" or not engine.demo_mode
            made[name] = gr.Button(
                variant=variant, interactive=usable, min_width=110, elem_id=f"eval-{name}", **words(name)
            )
    made["output_box"] = gr.HTML("", elem_id="eval-output_box", elem_classes="messages")
    made["preview_yaml"] = gr.Code(
        language="yaml", interactive=False, visible=False, elem_id="eval-preview_yaml", **words("preview_yaml")
    )
    made |= create_job_panel(engine, "eval")
    made |= _make_predictions(words)
    EvalHandlers(engine, made).connect()
    connect_data_panel(engine, "eval", made)
    return made


def _make_predictions(words: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["predictions"] = gr.HTML("", elem_id="eval-predictions", elem_classes="samples")
    with gr.Row(visible=False, elem_classes="pager") as made["pager"]:
        made["rows"] = gr.Number(ROWS, precision=0, minimum=1, maximum=100, elem_id="eval-rows", **words("rows"))
        made["page"] = gr.Number(1, precision=0, minimum=1, elem_id="eval-page", **words("page"))
        made["back_btn"] = gr.Button(size="sm", elem_id="eval-back_btn", **words("back_btn"))
        made["forth_btn"] = gr.Button(size="sm", elem_id="eval-forth_btn", **words("forth_btn"))
        label = words("download_btn")["label"]
        made["download_btn"] = gr.DownloadButton(label, size="sm", elem_id="eval-download_btn")
    return made


class EvalHandlers(JobForm):
    """What happens at the tab."""

    tab = "eval"
    command = "train"

    def connect(self) -> None:
        """Tie every handler to its event."""
        made, demo = self.made, this_page()
        self.panel.connect(demo)
        inputs = {*self.form.inputs, made["output_dir"], self.lang}
        preview = [made["output_box"], made["preview_yaml"]]
        on(made["cmd_preview_btn"].click, self.preview, inputs, preview)
        if not self.engine.demo_mode:
            on(made["start_btn"].click, self.start, inputs, [*preview, made["result_of"], made["output_dir"]])
            on(made["stop_btn"].click, self.panel.stop, [made["result_of"], self.lang], [made["output_box"]])
        on(made["dataset"].focus, self.offer, [made["dataset_dir"]], [made["dataset"]])
        paging = [made["result_of"], made["rows"], made["page"], self.lang]
        shown = [made[name] for name in ("predictions", "pager", "page", "download_btn")]
        on(made["back_btn"].click, self.page_before, paging, shown)
        on(made["forth_btn"].click, self.page_behind, paging, shown)
        for event in (made["rows"].submit, made["page"].submit, self.lang.change, made["metrics_box"].change):
            on(event, self.this_page, paging, shown)
        on(made["result_of"].change, self.first_page, paging, shown)

    def start(self, data: dict[Any, Any]) -> Updates:
        """Start the job, and name the next one."""
        updates = super().start(data)
        started = self.made["result_of"] in updates
        return updates | ({self.made["output_dir"]: time_name("eval_")} if started else {})

    def offer(self, dataset_dir: str) -> Any:
        """List the datasets of the folder."""
        return gr.update(choices=dataset_names(self.engine.places, dataset_dir, None))

    def first_page(self, run_id: str | None, rows: Any, page: Any, lang: str) -> Updates:
        """Show the first predictions of a run."""
        return self._page(run_id, rows, 1, lang)

    def page_before(self, run_id: str | None, rows: Any, page: Any, lang: str) -> Updates:
        """Show the predictions before these."""
        return self._page(run_id, rows, _whole(page, 1) - 1, lang)

    def page_behind(self, run_id: str | None, rows: Any, page: Any, lang: str) -> Updates:
        """Show the predictions behind these."""
        return self._page(run_id, rows, _whole(page, 1) + 1, lang)

    def this_page(self, run_id: str | None, rows: Any, page: Any, lang: str) -> Updates:
        """Show the page that was typed."""
        return self._page(run_id, rows, _whole(page, 1), lang)

    def _page(self, run_id: str | None, rows: Any, page: int, lang: str) -> Updates:
        words = page_words("eval", lang)
        folder = find_shown(self.engine.places.saves, run_id)
        path = predictions_file(folder) if folder is not None else None
        if path is None:
            return {self.made["predictions"]: "", self.made["pager"]: gr.update(visible=False)}
        size = min(max(_whole(rows, ROWS), 1), 100)
        found = read_page(path, page - 1, size)
        first, last = found.first + 1, found.first + len(found.rows)
        place = f'<p class="place">{words["of"].format(first=first, last=last, total=found.total)}</p>'
        return {
            self.made["predictions"]: show_page(found, words) + place,
            self.made["pager"]: gr.update(visible=True),
            self.made["page"]: found.first // size + 1,
            self.made["download_btn"]: str(path),
        }

    def read(self, data: dict[Any, Any]) -> tuple[Job | None, list[str]]:
        """Return the job that the form stands for, and what is wrong with it."""
        words = page_words("eval", str(data.get(self.lang)))
        values = self.form.values(data)
        missing = [words["no_model"]] if not values.get("top.model_path") else []
        missing += [words["no_dataset"]] if not values.get("eval.dataset") else []
        try:
            job = eval_job(
                self.form.config(data),
                self.engine.places,
                model=str(values.get(MODEL_NAME) or ""),
                method=str(values.get("top.finetuning_type") or "lora"),
                name=str(data.get(self.made["output_dir"]) or ""),
            )
        except UserError as error:
            return None, [*missing, str(error)]
        return job, missing or job_problems(job, self.engine.places)


def _whole(value: Any, otherwise: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return otherwise
