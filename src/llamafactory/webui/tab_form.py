"""The fields of one tab, with those above all tabs, as the configuration of a command."""

from collections.abc import Mapping, Sequence
from typing import Any

from .arguments import place_checkpoints, read_extra
from .engine import Engine
from .exchange import read_form
from .layout import fields_of


MODEL_NAME = "top.model_name"


class TabForm:
    """Knows which elements a configuration is read from; made once all elements of the tab are there."""

    def __init__(self, engine: Engine, tab: str, made: Mapping[str, Any], command: str) -> None:
        self.engine = engine
        self.command = command
        self.extra = f"{tab}.extra_args"
        self.fields = fields_of(("top", tab))
        elements = {f"top.{name}": item for name, item in engine.manager.get_tab("top").items()}
        elements |= {f"{tab}.{name}": item for name, item in made.items()}
        wanted = (*self.fields, self.extra, MODEL_NAME)
        self.elements = {key: elements[key] for key in wanted if key in elements}

    @property
    def inputs(self) -> Sequence[Any]:
        """The elements whose values an event has to bring."""
        return list(self.elements.values())

    def values(self, data: Mapping[Any, Any]) -> dict[str, Any]:
        """Return what the elements hold, by their ids."""
        return {key: data.get(element) for key, element in self.elements.items()}

    def config(self, data: Mapping[Any, Any], *, without: str = "") -> dict[str, Any]:
        """Return the keys of the command that the elements stand for, as if one of them were empty."""
        values = {**self.values(data), without: None}
        config = place_checkpoints(read_form(self.fields, values, self.command), values, self.engine.places)
        return config | read_extra(str(values.get(self.extra) or ""))
