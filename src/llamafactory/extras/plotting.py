"""Curves of a run as PNG files, drawn without a display and without pyplot's global state."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from .errors import UserError
from .logging import get_logger


logger = get_logger(__name__)

STATE_FILE = "trainer_state.json"
INK, CURVE, RAW, GRID = "#333333", "#1f5fa8", "#9dbfe3", "#e6e6e6"
_TITLES = {"loss": "training loss", "eval_loss": "evaluation loss", "eval_accuracy": "evaluation accuracy"}


def plot_loss(save_dictionary: str | Path, keys: Sequence[str] = ("loss",)) -> list[Path]:
    """Draw each logged value of trainer_state.json that has at least one point; return the files written.

    `loss` becomes training_loss.png, `eval_loss` training_eval_loss.png, `a/b` training_a_b.png.
    """
    folder = Path(save_dictionary)
    history = _read_history(folder / STATE_FILE)
    written: list[Path] = []
    for key in keys:
        points = [(entry["step"], entry[key]) for entry in history if _is_number(entry.get(key)) and "step" in entry]
        if not points:
            logger.debug(f"No {key} was logged, so there is nothing to plot for it.")
            continue
        steps, values = [point[0] for point in points], [float(point[1]) for point in points]
        path = folder / f"training_{key.replace('/', '_')}.png"
        _draw(path, _TITLES.get(key, key.replace("_", " ")), steps, values)
        written.append(path)
    return written


def smooth(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average; the more points there are, the longer its memory."""
    if not values:
        return []
    weight = 1.8 * (1 / (1 + math.exp(-0.05 * len(values))) - 0.5)
    smoothed: list[float] = []
    last = values[0]
    for value in values:
        last = last * weight + (1 - weight) * value
        smoothed.append(last)
    return smoothed


def _read_history(path: Path) -> list[dict[str, Any]]:
    try:
        history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"There is no readable log history in {str(path)!r} to plot: {error}.") from error
    return cast("list[dict[str, Any]]", history)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _draw(path: Path, title: str, steps: list[int], values: list[float]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure: Any = Figure(figsize=(7, 4.2), dpi=160, layout="constrained", facecolor="white")
    axes: Any = figure.add_subplot()
    is_short = len(values) < 3
    axes.plot(
        steps,
        values,
        color=CURVE if is_short else RAW,
        linewidth=1.2,
        marker="o" if len(values) <= 40 else None,
        markersize=3,
        label="logged",
    )
    if not is_short:
        axes.plot(steps, smooth(values), color=CURVE, linewidth=2.2, solid_capstyle="round", label="smoothed")
        axes.legend(frameon=False, labelcolor=INK)
    axes.annotate(
        f"{values[-1]:.4g}", (steps[-1], values[-1]), (6, 0), textcoords="offset points", va="center", color=INK
    )
    _style(axes, title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(str(path))


def _style(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold")
    axes.set_xlabel("step", color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.06)
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")
