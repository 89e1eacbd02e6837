"""What stands below the tabs: how full the memory of the accelerators is, where there are any."""

from typing import TYPE_CHECKING

import gradio as gr

from ..engine import Engine
from ..events import on
from ..jobs import Device, list_devices
from ..wording import DEFAULT_LANGUAGE


if TYPE_CHECKING:
    from gradio.blocks import Block

SECONDS = 5.0


def create_footer(engine: Engine) -> "dict[str, Block]":
    """Make the elements below the tabs; without an accelerator there is nothing to show."""
    devices = list_devices()
    used, total = memory_of(devices)
    memory = gr.Slider(
        0,
        max(total, 1.0),
        value=used,
        interactive=False,
        visible=bool(total),
        elem_id="footer-device_memory",
        **engine.words("footer.device_memory", DEFAULT_LANGUAGE),
    )
    if total:
        on(gr.Timer(SECONDS).tick, lambda: memory_of(list_devices())[0], None, [memory])
    return {"device_memory": memory}


def memory_of(devices: list[Device]) -> tuple[float, float]:
    """Return the memory in use and all there is, in GiB, of the accelerators that tell."""
    told = [(device.used_gib, device.memory_gib) for device in devices]
    known = [(used, total) for used, total in told if used is not None and total is not None]
    return round(sum(used for used, _ in known), 1), round(sum(total for _, total in known), 1)
