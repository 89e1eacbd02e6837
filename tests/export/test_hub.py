"""Uploading an export: what is asked of the hub, against its client's real signatures."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from model_making import model_args

from llamafactory.extras.errors import UserError
from llamafactory.train.export import export_model
from llamafactory.train.export.hub import push


def test_the_whole_folder_goes_to_the_hub(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = huggingface_hub.HfApi, []

    class FakeApi:
        """Checks each call against the real client's signature."""

        def __init__(self, **values: Any) -> None:
            inspect.signature(real).bind(**values)
            calls.append(("token", values["token"]))

        def create_repo(self, *args: Any, **values: Any) -> Any:
            inspect.signature(real.create_repo).bind(self, *args, **values)
            calls.append(("create", args, values))
            return SimpleNamespace(repo_id="me/model")

        def upload_folder(self, **values: Any) -> None:
            inspect.signature(real.upload_folder).bind(self, **values)
            names = {path.name for path in Path(values["folder_path"]).iterdir()}
            calls.append(("upload", values["repo_id"], names))

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    export_model(
        {
            "model_name_or_path": str(tiny_llama_dir),
            "export_dir": str(tmp_path / "out"),
            "export_gguf": "q8_0",
            "template": "chatml",
            "export_hub_model_id": "model",
            "hf_hub_token": "hf_secret",
        }
    )

    token, create, upload = calls
    assert token == ("token", "hf_secret")
    assert create == ("create", ("model",), {"exist_ok": True})
    assert upload[1] == "me/model"
    assert {"Modelfile", "README.md", "config.json", "generation_config.json", "out-Q8_0.gguf"} <= upload[2]


def test_a_hub_that_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, *args: Any, **values: Any) -> None:
        raise OSError("You are not allowed to write there.")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(UserError, match=r"stands in .*uploaded to me/model: You are not allowed to write there"):
        push(tmp_path, model_args("m", export_hub_model_id="me/model"))
