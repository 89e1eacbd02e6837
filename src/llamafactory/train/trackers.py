"""Trackers that `report_to` names: known, and installed, before anything is loaded.

transformers' own callbacks report to them. It finds out that a package is missing only after data and model were
loaded, and with a traceback.
"""

from collections.abc import Iterable

from transformers.integrations import INTEGRATION_TO_CALLBACK

from ..extras.errors import UserError
from ..extras.packages import is_available, require
from ..extras.registry import nearest


OWN_EXTRAS = ("mlflow", "tensorboard", "trackio", "wandb")
"""Trackers that can be had with ours: extras of pyproject.toml."""
NOT_MODULES = {"azure_ml": "azureml", "dvclive": "dvclive", "flyte": "flytekit", "kubeflow": None}
"""Modules whose name is not the tracker's; None needs none."""
GENERAL = ("none", "all")


def check_trackers(names: Iterable[str]) -> None:
    """Refuse an unknown tracker, or one whose package is missing."""
    for name in names:
        if name in GENERAL:
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            near = nearest(name, [*GENERAL, *INTEGRATION_TO_CALLBACK], n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(
                f"report_to: {name} is no tracker; {hint}Known are {', '.join(sorted(INTEGRATION_TO_CALLBACK))}."
            )
        module = NOT_MODULES.get(name, name)
        if name == "tensorboard" and is_available("tensorboardX"):
            continue
        if module is not None and not is_available(module):
            require(module, name if name in OWN_EXTRAS else None, f"report_to: {name}")
