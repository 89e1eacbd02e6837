"""The folders that the board works in, and the check that keeps what comes from a browser inside of them."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..extras.env import Env
from ..extras.errors import UserError


NAME = re.compile(r"[\w][\w .+@=-]{0,199}", re.UNICODE)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where runs, saved arguments and settings lie; all of them below the folder that the board was started in."""

    work: Path
    others: tuple[Path, ...] = ()
    """Further folders that may be read, from LLAMABOARD_ROOTS."""

    @property
    def saves(self) -> Path:
        return self.work / "saves"

    @property
    def arguments(self) -> Path:
        """Where Save puts the form."""
        return self.work / "llamaboard_config"

    @property
    def cache(self) -> Path:
        return self.work / "llamaboard_cache"

    @property
    def roots(self) -> tuple[Path, ...]:
        return (self.work, *self.others)

    def run_dir(self, model_name: str, finetuning_type: str, name: str) -> Path:
        """Return the folder of a run, `saves/<model>/<method>/<name>`; a name that leads elsewhere is refused."""
        parts = name.strip().replace(os.sep, "/").split("/")
        if not name.strip():
            raise UserError("The run has no name; write one into the field of the output folder.")
        if not all(NAME.fullmatch(part) for part in parts):
            raise UserError(f"{name!r} cannot name the folder of a run; use letters, digits and any of ' .+@=-_'.")
        if len(parts) > 1 and parts[0] == "saves":
            return confine(self.saves / "/".join(parts[1:]), (self.saves,), "output folder", name)
        base = self.saves / plain_name(model_name) / finetuning_type
        return confine(base / "/".join(parts), (base,), "output folder", name)

    def arguments_file(self, name: str) -> Path:
        """Return the file that Save writes and Load reads."""
        if not NAME.fullmatch(name.strip()):
            raise UserError(f"{name!r} cannot name saved arguments; use a plain file name such as my_run.yaml.")
        file = name.strip() if name.strip().endswith((".yaml", ".yml")) else f"{name.strip()}.yaml"
        return confine(self.arguments / file, (self.arguments,), "file of saved arguments", name)

    def readable(self, text: str, what: str) -> Path:
        """Return a path that the form names; one outside the configured folders is refused."""
        return confine(self.work / Path(text).expanduser(), self.roots, what, text)

    def shown(self, path: Path) -> str:
        """Write a path as short as it is unambiguous."""
        return path.relative_to(self.work).as_posix() if path.is_relative_to(self.work) else path.as_posix()


def read_places(env: Env, work: Path | None = None) -> Places:
    """Take the folders from the environment; the current folder is the first."""
    others = tuple(Path(item).expanduser().resolve() for item in env.board_roots.split(os.pathsep) if item.strip())
    return Places(work=(work or Path.cwd()).resolve(), others=others)


def confine(path: Path, roots: tuple[Path, ...], what: str, text: str) -> Path:
    """Return the path with links and `..` resolved; UserError where it lies in none of the roots."""
    try:
        resolved = path.resolve()
    except (OSError, ValueError, RuntimeError):
        raise UserError(f"The {what} {text!r} is no path.") from None
    if any(resolved.is_relative_to(root.resolve()) for root in roots):
        return resolved
    places = ", ".join(str(root) for root in roots)
    raise UserError(
        f"The {what} {text!r} lies outside the folders of the board ({places}); choose one inside, or name its folder "
        "in LLAMABOARD_ROOTS when the board is started."
    )


def plain_name(text: str) -> str:
    """Turn the name of a model into the name of a folder."""
    return re.sub(r"[^\w.+@=-]+", "-", text.strip(), flags=re.UNICODE).strip("-.") or "Custom"
