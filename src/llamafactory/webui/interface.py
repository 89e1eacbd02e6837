"""The page itself: `create_ui` puts the tabs together, `run_webui` serves them."""

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..extras.env import read_env, set_defaults
from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..extras.packages import require
from ..extras.registry import load_attribute
from .engine import Engine
from .settings import Settings, read_settings
from .theme import launch_look
from .wording import DEFAULT_LANGUAGE, words_of


if TYPE_CHECKING:
    from gradio import Blocks

logger = get_logger(__name__)
PRIVACY = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
MAX_UPLOAD = "64mb"


class TabRow(NamedTuple):
    """One tab: its name (also the prefix of its elements), what builds it, and whether a demo shows it."""

    name: str
    build: str
    """"module:function"; the function takes the engine and returns the tab's elements by name."""
    in_demo: bool = True


COMPONENTS = "llamafactory.webui.components"
TABS: Sequence[TabRow] = (
    TabRow("train", f"{COMPONENTS}.train:create_train_tab"),
    TabRow("infer", f"{COMPONENTS}.infer:create_infer_tab"),
)


def create_ui(demo_mode: bool = False) -> "Blocks":
    """Build the whole board."""
    _require_gradio("webui")
    return build_page(Engine(demo_mode=demo_mode))


def build_page(engine: Engine) -> "Blocks":
    """Put the tabs together around an engine."""
    import gradio as gr

    from .components.footer import create_footer
    from .components.top import create_top
    from .loading import connect

    with gr.Blocks(title=_title(), analytics_enabled=False, fill_width=True) as demo:
        engine.manager.add_elems("head", _make_head())
        engine.manager.add_elems("top", create_top(engine))
        with gr.Tabs(elem_id="tabs"):
            for row in TABS:
                if engine.demo_mode and not row.in_demo:
                    continue
                label = words_of(f"tabs.{row.name}", DEFAULT_LANGUAGE)["label"]
                with gr.Tab(label, id=row.name, elem_id=f"tab-{row.name}") as tab:
                    engine.manager.add_elems(row.name, load_attribute(row.build)(engine))
                engine.manager.add_elems("tabs", {row.name: tab})
        engine.manager.add_elems("footer", create_footer(engine))
        connect(engine, demo)
    return demo


def run_webui(args: Sequence[str] = ()) -> None:
    """Serve the board until it is stopped."""
    _serve(args, "webui")


def _serve(args: Sequence[str], command: str) -> None:
    settings = read_settings(args, read_env(), command)
    set_defaults(PRIVACY)
    _require_gradio(command)
    demo = create_ui()
    demo.queue(default_concurrency_limit=8)
    try:
        _launch(demo, settings)
    except OSError as error:
        where = f"{settings.host}, port {settings.port or 'from 7860'}"
        raise UserError(
            f"The board cannot listen on {where}: {error}. Choose another with --host and --port."
        ) from None


def _launch(demo: "Blocks", settings: Settings) -> None:
    demo.launch(
        server_name=settings.host,
        server_port=settings.port,
        auth=settings.auth,
        share=settings.share,
        root_path=settings.root_path or None,
        inbrowser=settings.opens_browser,
        allowed_paths=[],
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        **launch_look(),
    )


def _require_gradio(command: str) -> None:
    require("gradio", "webui", f"`llamafactory-cli {command}`")


def _title() -> str:
    return f"LLaMA Factory ({platform.node() or 'localhost'})"


def _make_head() -> dict:
    import gradio as gr

    words = {name: words_of(f"head.{name}", DEFAULT_LANGUAGE)["value"] for name in ("title", "subtitle")}
    return {name: gr.HTML(text, elem_id=f"head-{name}") for name, text in words.items()}
