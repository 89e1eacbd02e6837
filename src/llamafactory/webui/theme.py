"""How the page looks: one calm theme, light and dark, that stays readable from a phone to a wide screen."""

from pathlib import Path
from typing import Any


STYLES = [Path(__file__).with_name("assets") / name for name in ("board.css", "tabs.css")]
FONTS = ("system-ui", "Segoe UI", "Roboto", "Noto Sans", "Helvetica Neue", "Arial", "sans-serif")
"""The reader's own, which have all five languages; nothing is downloaded."""


def launch_look() -> dict[str, Any]:
    """Return the arguments of `Blocks.launch` (or `gr.mount_gradio_app`) that make the page look as it should."""
    import gradio as gr

    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        secondary_hue=gr.themes.colors.slate,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
        font=FONTS,
    )
    return {"theme": theme, "css_paths": STYLES, "footer_links": []}
