"""Uploading a finished export."""

from pathlib import Path
from typing import TYPE_CHECKING

from ...extras.logging import get_logger
from ...model.load_errors import reading_model


if TYPE_CHECKING:
    from ...hparams import ModelArguments


logger = get_logger(__name__)


def push(folder: Path, model_args: "ModelArguments") -> None:
    """Upload the finished export."""
    from huggingface_hub import HfApi

    with reading_model(str(model_args.export_hub_model_id)):
        api = HfApi(token=model_args.hf_hub_token)
        address = api.create_repo(str(model_args.export_hub_model_id), exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Export")
    logger.info("Uploaded to %s.", address)
