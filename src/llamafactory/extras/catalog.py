"""The models that are known by a display name: their ids on each hub, their chat template, whether they take media.

The tables are TOML files in model/catalog/; they are read on the first question, since most runs never ask one.
"""

import tomllib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .env import Env
from .registry import did_you_mean


FOLDER = Path(__file__).parent.parent / "model" / "catalog"


class DownloadSource(StrEnum):
    """Where a model is fetched from."""

    DEFAULT = "hf"
    MODELSCOPE = "ms"
    OPENMIND = "om"

    @property
    def label(self) -> str:
        """The hub's own name."""
        return {"hf": "Hugging Face", "ms": "ModelScope", "om": "Modelers"}[self.value]

    @classmethod
    def of(cls, env: Env) -> "DownloadSource":
        """Return the hub that the environment chose."""
        if env.use_modelscope_hub:
            return cls.MODELSCOPE
        return cls.OPENMIND if env.use_openmind_hub else cls.DEFAULT


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """One row of the catalog."""

    name: str
    hubs: MappingProxyType[DownloadSource, str]
    template: str | None
    """The chat template it is answered with; None for a base model."""
    is_multimodal: bool


@cache
def known_models() -> MappingProxyType[str, KnownModel]:
    """Return every row by its display name, the models of a family side by side."""
    models: dict[str, KnownModel] = {}
    for path in sorted(FOLDER.glob("*.toml")):
        for group in tomllib.loads(path.read_text(encoding="utf-8"))["groups"]:
            for row in _read_group(group):
                if row.name in models:
                    raise ValueError(f"The model {row.name!r} stands in the catalog twice; once in {path.name}.")
                models[row.name] = row
    return MappingProxyType(models)


def is_display_name(name: str | None) -> bool:
    """Whether the catalog knows the name; a file or folder that is called so comes first."""
    if not name or "/" in name:
        return False
    return name in known_models() and not Path(name).exists()


def find_hub_id(name: str, source: DownloadSource) -> str | None:
    """Return the id that a display name has on a hub; None for an unknown name or one that the hub lacks."""
    model = known_models().get(name)
    return None if model is None else model.hubs.get(source)


def similar_models(name: str) -> str:
    """Return " Did you mean ...?" with the nearest display names and hub ids, or nothing."""
    known = {*known_models(), *(hub_id for model in known_models().values() for hub_id in model.hubs.values())}
    return "" if name in known else did_you_mean(name, sorted(known))


def _read_group(group: dict[str, Any]) -> list[KnownModel]:
    template, is_multimodal = group.get("template"), group.get("multimodal", False)
    rows = [(name, ids, None) for name, ids in group.get("base", {}).items()]
    rows += [(name, ids, template) for name, ids in group.get("models", {}).items()]
    return [
        KnownModel(name=name, hubs=_hubs(ids), template=own, is_multimodal=is_multimodal) for name, ids, own in rows
    ]


def _hubs(ids: str | dict[str, str]) -> MappingProxyType[DownloadSource, str]:
    table = {"hf": ids, "ms": ids} if isinstance(ids, str) else ids
    return MappingProxyType({DownloadSource(hub): name for hub, name in table.items()})
