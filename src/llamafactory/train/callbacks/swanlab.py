"""SwanLab: the run is opened as the swanlab_* keys say, then transformers' own callback reports to it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.integrations import SwanLabCallback

from ...extras.packages import require


if TYPE_CHECKING:
    from ...hparams import FinetuningArguments

MODES = {"cloud": "online", "local": "local"}


def swanlab_callbacks(args: "FinetuningArguments") -> list[TrainerCallback]:
    """Return the callbacks of a run that is reported to SwanLab."""
    require("swanlab", "swanlab", "use_swanlab: true")
    return [SwanlabStart(args), SwanLabCallback()]


class SwanlabStart(TrainerCallback):
    """Logs in and opens the run on the first process, before anything is reported."""

    def __init__(self, args: "FinetuningArguments") -> None:
        self._args = args

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._open(args, state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._open(args, state)

    def _open(self, args: Any, state: Any) -> None:
        swanlab = require("swanlab", "swanlab", "use_swanlab: true")
        if not state.is_world_process_zero or swanlab.has_run():
            return
        if self._args.swanlab_api_key is not None and self._args.swanlab_mode == "cloud":
            swanlab.login(api_key=self._args.swanlab_api_key)
        swanlab.init(
            project=self._args.swanlab_project,
            workspace=self._args.swanlab_workspace,
            name=self._args.swanlab_run_name or args.run_name,
            mode=MODES[self._args.swanlab_mode],
            log_dir=str(self._args.swanlab_logdir or Path(args.output_dir) / "swanlab"),
            callbacks=self._notifications() or None,
        )

    def _notifications(self) -> list[Any]:
        if self._args.swanlab_lark_webhook_url is None:
            return []
        plugin = require("swanlab.plugin", "swanlab", "swanlab_lark_webhook_url")
        return [plugin.LarkCallback(self._args.swanlab_lark_webhook_url, self._args.swanlab_lark_secret)]
