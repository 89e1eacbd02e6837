"""Before the first step of a run over packed rows: documents in one row must not see each other."""

from typing import Any

import torch
from transformers import TrainerCallback

from ...model.model_utils.isolation import require_isolation


class IsolationCheck(TrainerCallback):
    """Asks the model on its device, under the precision it trains in and as it is wrapped."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        device_type = torch.device(args.device).type
        with torch.autocast(
            device_type, dtype=torch.bfloat16 if args.bf16 else torch.float16, enabled=args.bf16 or args.fp16
        ):
            require_isolation(kwargs["model"])
