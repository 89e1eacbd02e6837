"""What a tab shows of a job: progress, figures, results and the end of the log. It only reads files."""

from typing import Any

import gradio as gr

from .. import jobs
from ..engine import Engine, as_language
from ..events import on
from ..job_pages import Kind, list_jobs, newest_job
from ..markup import notice
from ..run_view import RunView, find_shown, show_run
from ..wording import DEFAULT_LANGUAGE, page_words, say


POLL_SECONDS = 2.0
PARTS = ("progress_bar", "status_box", "log_box", "metrics_box")


def create_job_panel(engine: Engine, tab: str) -> dict[str, Any]:
    """Make the elements of the panel."""

    def words(name: str) -> dict[str, Any]:
        return engine.words(f"{tab}.{name}", DEFAULT_LANGUAGE)

    made: dict[str, Any] = {}
    with gr.Group(elem_classes="open"):
        made["result_of"] = gr.Dropdown([], value=None, elem_id=f"{tab}-result_of", **words("result_of"))
    made["progress_bar"] = gr.HTML("", elem_id=f"{tab}-progress_bar")
    made["status_box"] = gr.HTML("", elem_id=f"{tab}-status_box", padding=True)
    made["metrics_box"] = gr.HTML("", elem_id=f"{tab}-metrics_box", padding=True)
    with gr.Accordion(open=False, elem_id=f"{tab}-log_fold", elem_classes="fold", **words("log_fold")) as fold:
        made["log_box"] = gr.HTML("", elem_id=f"{tab}-log_box")
    made["log_fold"] = fold
    return made


class JobPanel:
    """Keeps the panel of one tab up to date."""

    def __init__(self, engine: Engine, tab: Kind, made: dict[str, Any]) -> None:
        self.engine = engine
        self.tab: Kind = tab
        self.made = made
        self.lang = engine.manager.get_elem_by_id("top.lang")

    def connect(self, demo: Any) -> None:
        """Tie the handlers to their events; `demo` is the page that is opened."""
        shown, seen = self.made["result_of"], gr.State("")
        outputs = [*(self.made[name] for name in PARTS), seen]
        on(shown.change, self.show_anew, [shown, self.lang], outputs)
        on(self.lang.change, self.show_anew, [shown, self.lang], outputs)
        on(gr.Timer(POLL_SECONDS).tick, self.show, [shown, self.lang, seen], outputs, trigger_mode="once")
        on(shown.focus, self.offer, None, [shown])
        on(demo.load, self.choose, None, [shown])

    def choose(self) -> Any:
        """Show the job that is going on, else the newest one."""
        return self.turn_to(newest_job(list_jobs(self.engine.places, self.tab)))

    def turn_to(self, run_id: str | None) -> Any:
        """Return the update that shows a job."""
        return gr.update(choices=self._choices(), value=run_id)

    def offer(self) -> Any:
        """List the jobs again."""
        return gr.update(choices=self._choices())

    def show_anew(self, run_id: str | None, lang: str) -> Any:
        """Show another job."""
        return self.show(run_id, lang, "")

    def show(self, run_id: str | None, lang: str, seen: str) -> Any:
        """Return all parts of the panel, or leave them alone where nothing has changed."""
        language = as_language(lang)
        folder = find_shown(self.engine.places.saves, run_id)
        if folder is None:
            return "", notice(page_words(self.tab, language)["no_run"]), "", "", ""
        status = jobs.read_status(folder, with_curves=False)
        stamp = f"{run_id} {status.state} {status.progress.step} {len(status.log_tail)} {status.log_tail[-80:]} {lang}"
        if stamp == seen and status.is_over:
            return (gr.skip(),) * (len(PARTS) + 1)
        view = show_run(status, language)
        told = self.told(status, folder, language)
        return view.bar, told + view.status, view.log, self.results(view), stamp

    def told(self, status: "jobs.Status", folder: Any, language: str) -> str:
        """Return what a tab says of a job beside its state."""
        return ""

    def results(self, view: RunView) -> str:
        """Return the metrics."""
        return view.results

    def stop(self, run_id: str | None, lang: str) -> str:
        """Ask the job that is shown to end."""
        words = page_words(self.tab, lang)
        folder = find_shown(self.engine.places.saves, run_id)
        if folder is None:
            return notice(words["no_run"], "warning")
        ends_at_once = jobs.press_abort(folder)
        return notice(say("info_ending", as_language(lang)) if ends_at_once else words["stopping"], "warning")

    def _choices(self) -> list[str]:
        return [row.run_id for row in list_jobs(self.engine.places, self.tab)]
