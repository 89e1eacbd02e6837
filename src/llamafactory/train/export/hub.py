"""Uploading a finished export."""

from pathlib import Path
from typing import TYPE_CHECKING

from ...extras.errors import UserError
from ...extras.logging import get_logger


if TYPE_CHECKING:
    from ...hparams import ModelArguments


logger = get_logger(__name__)


def push(folder: Path, model_args: "ModelArguments") -> None:
    """Upload the finished export, with its GGUF file and Modelfile where it has them."""
    from huggingface_hub import HfApi

    name = str(model_args.export_hub_model_id)
    api = HfApi(token=model_args.hf_hub_token)
    try:
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Export")
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"The export stands in {folder}, but it could not be uploaded to {name}: {first}.") from error
    logger.info("Uploaded to %s.", address)
