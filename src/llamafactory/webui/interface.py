"""The page itself: `create_ui` puts the tabs together, `run_webui` serves them."""

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..extras.env import read_env, set_defaults
from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..extras.packages import require
from ..extras.registry import load_attribute
from ..hparams.parser import load_run_config, read_args
from .engine import Engine
from .settings import Settings, read_chat_settings, read_settings
from .theme import launch_look
from .wording import DEFAULT_LANGUAGE, LANGUAGES, words_of


if TYPE_CHECKING:
    from gradio import Blocks
    from gradio.components import Component

    from ..hparams.parser import Args

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
    TabRow("eval", f"{COMPONENTS}.eval:create_eval_tab"),
    TabRow("infer", f"{COMPONENTS}.infer:create_infer_tab"),
    TabRow("export", f"{COMPONENTS}.export:create_export_tab", in_demo=False),
    TabRow("runs", f"{COMPONENTS}.runs:create_runs_tab", in_demo=False),
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
        if engine.demo_mode:
            engine.manager.add_elems("head", _make_demo_head(engine))
        engine.manager.add_elems("top", create_top(engine))
        with gr.Tabs(elem_id="tabs") as tabs:
            engine.manager.add_elems("tabs", {"all": tabs})
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


def create_web_demo(args: "Args" = None) -> "Blocks":
    """Build the page of `webchat`: a language and a chat with the model that the arguments name."""
    _require_gradio("webchat")
    import gradio as gr

    from .chat.desk import ChatDesk
    from .components.chatbot import create_chat_box
    from .loading import connect

    engine = Engine(pure_chat=True)
    engine.chatter = ChatDesk()
    engine.chatter.slot.load(read_args(args))
    with gr.Blocks(title=_title(), analytics_enabled=False, fill_width=True) as demo:
        engine.manager.add_elems("head", _make_head())
        engine.manager.add_elems("top", {"lang": _make_language(engine)})
        _, _, elements = create_chat_box(engine, visible=True)
        engine.manager.add_elems("infer", elements)
        connect(engine, demo)
    return demo


def run_webui(args: Sequence[str] = ()) -> None:
    """Serve the board until it is stopped."""
    settings = read_settings(args, read_env(), "webui")
    set_defaults(PRIVACY)
    _require_gradio("webui")
    _serve(create_ui(), settings)


def run_webchat(args: Sequence[str] = ()) -> None:
    """Serve a chat with one model until it is stopped."""
    settings, rest = read_chat_settings(args, read_env())
    load_run_config(rest, "chat", announce=False)  # what is wrong is said before anything heavy is imported
    set_defaults(PRIVACY)
    _require_gradio("webchat")
    _serve(create_web_demo(rest), settings)


def _serve(demo: "Blocks", settings: Settings) -> None:
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
        _frontend=False,  # else a machine too busy to answer itself within 3 s ends in advice about proxies
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


def _make_demo_head(engine: Engine) -> dict:
    """Make what tells visitors of a demonstration what it is, and copies it for those whose site offers that."""
    import gradio as gr
    from gradio.utils import get_space

    note = gr.HTML(elem_id="head-demo_note", **engine.words("head.demo_note", DEFAULT_LANGUAGE))
    button = gr.DuplicateButton(
        interactive=get_space() is not None,
        elem_id="head-duplicate_btn",
        **engine.words("head.duplicate_btn", DEFAULT_LANGUAGE),
    )
    return {"demo_note": note, "duplicate_btn": button}


def _make_language(engine: Engine) -> "Component":
    import gradio as gr

    choices = [(name, code) for code, name in LANGUAGES.items()]
    words = engine.words("top.lang", DEFAULT_LANGUAGE)
    return gr.Dropdown(choices, value=DEFAULT_LANGUAGE, elem_id="top-lang", **words)
