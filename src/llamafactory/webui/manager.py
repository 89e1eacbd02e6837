"""Elements of the page by their id `<tab>.<name>`, and the other way round."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from gradio.blocks import Block


class Manager:
    """Holds every element that has an id; it is filled while the page is built and only read afterwards."""

    def __init__(self) -> None:
        self._by_id: dict[str, Block] = {}
        self._ids: dict[Block, str] = {}

    def add_elems(self, tab: str, elements: "Mapping[str, Block]") -> None:
        """Register the elements of one tab."""
        for name, element in elements.items():
            self._by_id[f"{tab}.{name}"] = element
            self._ids[element] = f"{tab}.{name}"

    def get_elem_list(self) -> "list[Block]":
        """Return all elements."""
        return list(self._by_id.values())

    def get_elem_iter(self) -> "Iterator[tuple[str, Block]]":
        """Yield the name, without its tab, and the element."""
        for element_id, element in self._by_id.items():
            yield element_id.partition(".")[2], element

    def get_elem_by_id(self, element_id: str) -> Any:
        """Return the element of an id such as `train.dataset`; Any, because gradio adds its events at run time."""
        return self._by_id[element_id]

    def get_id_by_elem(self, element: "Block") -> str:
        """Return the id of an element."""
        return self._ids[element]

    def get_tab(self, tab: str) -> "dict[str, Block]":
        """Return the elements of one tab by name."""
        prefix = f"{tab}."
        return {key.removeprefix(prefix): item for key, item in self._by_id.items() if key.startswith(prefix)}

    def get_base_elems(self) -> "set[Block]":
        """Return the elements above the tabs that every tab reads."""
        return {element for key, element in self._by_id.items() if key.startswith("top.")}

    def __contains__(self, element_id: object) -> bool:
        return element_id in self._by_id
