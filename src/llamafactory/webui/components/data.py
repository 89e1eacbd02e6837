"""The data panel below a choice of datasets: rows as the model will see them, figures, and uploads."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr

from ...extras.errors import UserError
from .. import jobs
from ..datasets.reading import count_rows, read_rows
from ..datasets.showing import show_figures, show_rows
from ..datasets.uploading import UPLOAD_TYPES, add_upload
from ..engine import Engine
from ..events import QUIET
from ..jobs.checking import find_stray_paths
from ..markup import notice
from ..offers import dataset_names
from ..tab_form import TabForm
from ..wording import DEFAULT_LANGUAGE, page_words, words_of


Updates: TypeAlias = dict[Any, Any]
BUSY: dict[str, Any] = {**QUIET, "show_progress": "minimal"}
PAGE_SIZE = 2
MAX_UPLOAD_MIB = 64
READ_ERRORS = (UserError, OSError, ValueError, RuntimeError, ImportError)
"""What a tokenizer that is not there, or is broken, raises."""


def create_data_panel(engine: Engine, tab: str) -> dict[str, Any]:
    """Make the buttons and, hidden until it is asked for, the panel, where the caller stands."""
    made: dict[str, Any] = {}

    def look(name: str) -> dict[str, Any]:
        return {"elem_id": f"{tab}-{name}", **_words(name)}

    with gr.Row():
        made["data_preview_btn"] = gr.Button(size="sm", **look("data_preview_btn"))
        made["stats_btn"] = gr.Button(size="sm", **look("stats_btn"))
        types = [f".{kind}" for kind in UPLOAD_TYPES]
        made["upload_btn"] = gr.UploadButton(
            file_types=types, size="sm", visible=not engine.demo_mode, **look("upload_btn")
        )
    made["data_message"] = gr.HTML(elem_classes="messages", elem_id=f"{tab}-data_message")
    with gr.Column(visible=False, elem_classes="modal-box", elem_id=f"{tab}-data_box") as made["data_box"]:
        with gr.Row(elem_classes="pager") as made["data_pager"]:
            made["preview_count"] = gr.Number(PAGE_SIZE, precision=0, minimum=1, maximum=50, **look("preview_count"))
            made["page_index"] = gr.Number(1, precision=0, minimum=1, **look("page_index"))
            made["prev_btn"] = gr.Button(size="sm", **look("prev_btn"))
            made["next_btn"] = gr.Button(size="sm", **look("next_btn"))
        made["preview_samples"] = gr.HTML(elem_classes="samples", elem_id=f"{tab}-preview_samples")
        made["close_btn"] = gr.Button(size="sm", **look("close_btn"))
    return made


def connect_data_panel(engine: Engine, tab: str, made: Mapping[str, Any]) -> None:
    """Connect a panel with the form of its tab, once all elements of the tab are there."""
    DataHandlers(engine, tab, made).connect()


class DataHandlers:
    """What happens at the data panel of one tab."""

    def __init__(self, engine: Engine, tab: str, made: Mapping[str, Any]) -> None:
        self.engine = engine
        self.tab = tab
        self.made = made
        self.lang: Any = engine.manager.get_elem_by_id("top.lang")
        self.form = TabForm(engine, tab, made, "train")

    def connect(self) -> None:
        """Tie every handler to its event."""
        made = self.made
        paging = (made["preview_count"], made["page_index"])
        inputs = {*self.form.inputs, *paging, self.lang}
        outputs = [made[name] for name in ("data_box", "data_pager", "page_index", "preview_samples")]
        made["data_preview_btn"].click(self.first_page, inputs, outputs, **BUSY)
        made["prev_btn"].click(self.page_before, inputs, outputs, **BUSY)
        made["next_btn"].click(self.page_after, inputs, outputs, **BUSY)
        gr.on([made["preview_count"].submit, made["page_index"].submit], self.this_page, inputs, outputs, **BUSY)
        counting = made["stats_btn"].click(self.count, inputs, outputs, **QUIET)
        made["close_btn"].click(self.close, None, [made["data_box"]], cancels=[counting], **QUIET)
        if self.engine.demo_mode:
            return
        uploading = [made["upload_btn"], made["dataset_dir"], made["dataset"], *self._stage(), self.lang]
        made["upload_btn"].upload(self.upload, uploading, [made["data_message"], made["dataset"]], **BUSY)

    def first_page(self, values: dict[Any, Any]) -> Updates:
        """Show the first rows."""
        return self._page(values, 1)

    def page_before(self, values: dict[Any, Any]) -> Updates:
        """Show the rows before these."""
        return self._page(values, self._number(values) - 1)

    def page_after(self, values: dict[Any, Any]) -> Updates:
        """Show the rows behind these."""
        return self._page(values, self._number(values) + 1)

    def this_page(self, values: dict[Any, Any]) -> Updates:
        """Show the rows of the page that was typed."""
        return self._page(values, self._number(values))

    async def count(self, values: dict[Any, Any]) -> AsyncGenerator[Updates, None]:
        """Show the figures; leaving early stops counting."""
        labels = self._labels(values)
        yield self._open(notice(labels["counting"]), pager=False)
        try:
            config = self._config(values)
            yield self._open(show_figures(await count_rows(config, self.engine.places.work), labels), pager=False)
        except READ_ERRORS as error:
            yield self._open(notice(str(error), "problem"), pager=False)

    def close(self) -> Updates:
        """Hide the panel."""
        return {self.made["data_box"]: gr.update(visible=False)}

    async def upload(self, file: str, dataset_dir: str, chosen: Any, *rest: Any) -> Updates:
        """Check a file and register it."""
        labels = page_words("data", str(rest[-1]))
        stage = str(rest[0]) if len(rest) > 1 else None
        try:
            folder = self.engine.places.readable(dataset_dir or "data", "data folder")
            path = Path(str(file))
            made = await asyncio.to_thread(add_upload, path, path.name, folder, MAX_UPLOAD_MIB)
        except (UserError, OSError) as error:
            return {self.made["data_message"]: notice(str(error), "problem")}
        text = labels["registered"].format(name=made.name, usable=made.num_usable, rows=made.num_rows)
        reasons = [f"{count} x {reason}" for reason, count in made.reasons.items()]
        names = dataset_names(self.engine.places, dataset_dir, stage)
        picked = [*chosen, made.name] if isinstance(chosen, list) else [made.name]
        return {
            self.made["data_message"]: notice(text, "good", [made.layout, *reasons]),
            self.made["dataset"]: gr.update(choices=names, value=picked),
        }

    def _stage(self) -> list[Any]:
        return [self.made["training_stage"]] if "training_stage" in self.made else []

    def _page(self, values: Mapping[Any, Any], number: int) -> Updates:
        number = max(number, 1)
        size = min(max(_whole(values.get(self.made["preview_count"]), PAGE_SIZE), 1), 50)
        try:
            shown = show_rows(read_rows(self._config(values), size, (number - 1) * size), self._labels(values))
        except READ_ERRORS as error:
            shown = notice(str(error), "problem")
        return self._open(shown) | {self.made["page_index"]: number}

    def _open(self, html: str, *, pager: bool = True) -> Updates:
        return {
            self.made["data_box"]: gr.update(visible=True),
            self.made["data_pager"]: gr.update(visible=pager),
            self.made["preview_samples"]: html,
        }

    def _config(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the configuration that the form says, its paths checked."""
        config = self.form.config(values)
        if problems := list(find_stray_paths(config, self.engine.places)):
            raise jobs.JobError(problems)
        return config

    def _number(self, values: Mapping[Any, Any]) -> int:
        return _whole(values.get(self.made["page_index"]), 1)

    def _labels(self, values: Mapping[Any, Any]) -> dict[str, str]:
        return page_words("data", str(values.get(self.lang)))


def _words(name: str) -> dict[str, Any]:
    words = words_of(f"data.{name}", DEFAULT_LANGUAGE)
    return {key: words[key] for key in ("label", "info", "placeholder", "value") if key in words}


def _whole(value: Any, otherwise: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return otherwise
