"""What the tests of the data package share: a private cache, fresh tokenizers, arguments with defaults."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspection_tools import Result, Run

from llamafactory import cli
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments, TrainingArguments


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fresh_tokenizer(tiny_tokenizer_dir: Path) -> Callable[..., Any]:
    """A maker of tokenizers that a test may change."""
    from transformers import AutoTokenizer

    def make(**changes: Any) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        return tokenizer

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[str, list[Any]], str]:
    """Write rows as JSON under a name; returns the path."""

    def write(name: str, rows: list[Any]) -> str:
        path = tmp_path / name
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def load(demo_dataset_dir: Path, fresh_tokenizer: Callable[..., Any]) -> Callable[..., Any]:
    """get_dataset with the tiny tokenizer; keywords are data arguments."""

    def run(
        dataset: str | None = None,
        *,
        predict: bool = False,
        tokenizer: Any = None,
        max_steps: int = -1,
        **options: Any,
    ) -> Any:
        tokenizer = tokenizer or fresh_tokenizer()
        options = {"dataset_dir": str(demo_dataset_dir), "template": "chatml"} | options
        data_args = DataArguments(dataset=dataset, **options)
        template = get_template_and_fix_tokenizer(tokenizer, data_args)
        training_args = TrainingArguments(output_dir="unused", predict_with_generate=predict, max_steps=max_steps)
        model_args = ModelArguments(model_name_or_path="unused")
        return get_dataset(template, model_args, data_args, training_args, stage="sft", tokenizer=tokenizer)

    return run


@pytest.fixture
def data(tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `data` in this process; keywords are keys of the configuration."""

    def run(*words: str, model: Path = tiny_llama_dir, **options: Any) -> Result:
        options = {"model_name_or_path": str(model), "template": "chatml", "dataset_dir": str(tmp_path)} | options
        file = tmp_path / "run.yaml"
        file.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in options.items()), encoding="utf-8")
        code: object = 0
        try:
            cli.main(["data", words[0], str(file), *words[1:]])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
