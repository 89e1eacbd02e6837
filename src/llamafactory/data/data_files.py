"""Files of rows, here or in a cloud store: which ones a dataset names, what is in them and how they are opened."""

import glob
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TextIO, cast

from ..extras.constants import DATASET_INFO
from ..extras.errors import UserError
from ..extras.packages import is_available


FILE_TYPES = ("arrow", "csv", "json", "jsonl", "parquet", "txt")
COMPRESSIONS = {"bz2": "bz2", "gz": "gzip", "lz4": "lz4", "zst": "zstd"}
COMPRESSED_TYPES = frozenset({"csv", "json", "jsonl", "txt"})  # the others are compressed inside
CLOUD_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "oss": "ossfs", "abfs": "adlfs", "az": "adlfs"}


@dataclass(frozen=True)
class DataFile:
    """One file of rows."""

    path: str
    """As messages show it."""
    system: Any = None
    """An fsspec file system; None is the local disk."""

    def __str__(self) -> str:
        return self.path

    @property
    def type(self) -> str:
        """Its suffix without the dot, and without that of its compression."""
        return file_type(self.path)

    def open(self) -> BinaryIO:
        """Open its content, unpacked."""
        import pyarrow as pa

        raw = self._open_raw()
        compression = COMPRESSIONS.get(suffix_of(self.path))
        return cast(BinaryIO, raw if compression is None else pa.input_stream(raw, compression=compression))

    def _open_raw(self) -> BinaryIO:
        return Path(self.path).open("rb") if self.system is None else self.system.open(self.path, "rb")

    def open_text(self) -> TextIO:
        """Open its content as text."""
        return io.TextIOWrapper(self.open(), encoding="utf-8-sig")

    def digest(self) -> bytes:
        """Hash its content; in a cloud store what the store says of it (size, version, time)."""
        if self.system is not None:
            return str(self.system.ukey(self.path)).encode()
        with Path(self.path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()


def suffix_of(path: str | Path) -> str:
    """Return the last suffix without its dot."""
    return PurePosixPath(path).suffix.lstrip(".").lower()


def file_type(path: str | Path) -> str:
    """Return the kind of rows in a file: "jsonl" for rows.jsonl and rows.jsonl.gz."""
    suffix = suffix_of(path)
    if suffix not in COMPRESSIONS:
        return suffix
    inner = suffix_of(PurePosixPath(path).stem)
    return inner if inner in COMPRESSED_TYPES else f"{inner}.{suffix}"


def is_data_file(path: str | Path) -> bool:
    """Tell whether a path ends like a file of rows."""
    return file_type(path) in FILE_TYPES and PurePosixPath(path).name != DATASET_INFO


def find_local(name: str) -> list[Path]:
    """Return the files that name stands for: a file, the files of rows of a folder, or a pattern like data/*.jsonl."""
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(child for child in path.iterdir() if child.is_file() and is_data_file(child))
    if glob.has_magic(name):
        found = (Path(match) for match in glob.glob(name, recursive=True))  # noqa: PTH207 (Path.glob wants a root)
        return sorted(match for match in found if match.is_file() and match.name != DATASET_INFO)
    return []


def list_files(name: str, who: str) -> list[DataFile]:
    """Return the files of a local dataset in the order of their names; all must be of one type."""
    path = Path(name)
    if not path.exists() and not glob.has_magic(name):
        raise UserError(f"The file {path} of the dataset {who} does not exist; check file_name and dataset_dir.")
    return check_types([DataFile(str(file)) for file in find_local(name)], name, who)


def list_cloud_files(url: str, who: str) -> list[DataFile]:
    """Return the files behind a URL of a cloud store: one file, a folder or a pattern."""
    import fsspec

    scheme = url.partition("://")[0]
    package = CLOUD_PACKAGES.get(scheme)
    if package is not None and not is_available(package):
        raise UserError(f"The dataset {who} is in a cloud store: reading {scheme}:// needs `pip install {package}`.")
    try:
        system, path = fsspec.core.url_to_fs(url)
        if glob.has_magic(path):
            found = sorted(str(match) for match in system.glob(path))
        elif system.isdir(path):
            found = sorted(str(child) for child in system.ls(path, detail=False) if is_data_file(str(child)))
        else:
            found = [str(path)] if system.exists(path) else []
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"The dataset {who} cannot be reached at {url}: {error}.") from None
    return check_types([DataFile(path, system) for path in found], url, who)


def check_types(files: list[DataFile], name: str, who: str) -> list[DataFile]:
    """Refuse no files, and files of different types."""
    types = sorted({file.type for file in files})
    if len(types) != 1 or types[0] not in FILE_TYPES:
        found = ", ".join(types) or "no files"
        raise UserError(
            f"The dataset {who} ({name}) must hold files of one type of {', '.join(FILE_TYPES)}, not {found}."
        )
    return files


def digest_files(files: list[DataFile]) -> str:
    """Hash types and content."""
    total = hashlib.blake2b(digest_size=16)
    for file in files:
        total.update(file.digest() + file.type.encode())
    return total.hexdigest()
