"""The environment variables that matter here: declared once, read only here.

`llamafactory-cli env --vars` and the reference page print this table.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from .errors import UserError


TRUTHY = frozenset({"true", "yes", "on", "y", "t", "1"})
OPTIM_TORCH_DEFAULTS = {
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "TORCH_NCCL_AVOID_RECORD_STREAMS": "1",
}


class Variable(NamedTuple):
    """One row of `env --vars`."""

    name: str
    value: str
    default: str
    help: str
    is_set: bool


def _variable(name: str, default: Any, text: str, *, is_secret: bool = False) -> Any:
    return field(default=default, repr=not is_secret, metadata={"name": name, "help": text, "secret": is_secret})


@dataclass(frozen=True, kw_only=True)
class Env:
    """What the environment says, with types; defaults where it says nothing."""

    force_torchrun: bool = _variable("FORCE_TORCHRUN", False, "Starts training through torchrun even on one device.")
    nnodes: int = _variable("NNODES", 1, "Number of machines in the run.")
    node_rank: int = _variable("NODE_RANK", 0, "Which of the machines this one is, from 0.")
    nproc_per_node: int | None = _variable("NPROC_PER_NODE", None, "Processes on this machine; unset: one per device.")
    master_addr: str | None = _variable("MASTER_ADDR", None, "Address of machine 0; unset: this machine.")
    master_port: int | None = _variable("MASTER_PORT", None, "Port on machine 0; unset: a free one.")
    rdzv_id: str | None = _variable("RDZV_ID", None, "Job name of an elastic run; setting it makes the run elastic.")
    min_nnodes: int | None = _variable("MIN_NNODES", None, "Elastic run: fewest machines it goes on with.")
    max_nnodes: int | None = _variable("MAX_NNODES", None, "Elastic run: most machines that may join.")
    max_restarts: int = _variable("MAX_RESTARTS", 0, "Elastic run: how often failed workers are started again.")
    optim_torch: bool = _variable(
        "OPTIM_TORCH",
        True,
        "Sets the CUDA allocator and NCCL defaults that save memory, unless you set them yourself.",
    )
    local_rank: int | None = _variable("LOCAL_RANK", None, "Set by torchrun: this process's device on this machine.")
    rank: int = _variable("RANK", 0, "Set by torchrun: this process's number in the whole run.")
    world_size: int = _variable("WORLD_SIZE", 1, "Set by torchrun: number of processes in the whole run.")
    verbosity: str = _variable("LLAMAFACTORY_VERBOSITY", "INFO", "Log level: DEBUG, INFO, WARNING or ERROR.")
    cache: str = _variable(
        "LLAMAFACTORY_CACHE", "~/.cache/llamafactory", "Folder for converted models and unpacked wheels."
    )
    allow_extra_args: bool = _variable("ALLOW_EXTRA_ARGS", False, "Ignores unknown keys with a notice.")
    max_concurrent: int = _variable("MAX_CONCURRENT", 16, "Answers that the huggingface engine writes at once.")
    max_queue: int = _variable("MAX_QUEUE", 256, "Answers that may wait for that; one more is refused.")
    record_vram: bool = _variable("RECORD_VRAM", False, "Adds the device memory in use to trainer_log.jsonl.")
    use_modelscope_hub: bool = _variable("USE_MODELSCOPE_HUB", False, "Hub ids are looked up on ModelScope.")
    use_openmind_hub: bool = _variable("USE_OPENMIND_HUB", False, "Hub ids are looked up on Modelers (openMind).")
    hf_hub_offline: bool = _variable("HF_HUB_OFFLINE", False, "Never asks a hub; only what is on disk is used.")
    transformers_offline: bool = _variable("TRANSFORMERS_OFFLINE", False, "The same, older name.")
    wandb_project: str = _variable(
        "WANDB_PROJECT", "llamafactory", "Project that Weights & Biases runs are filed under."
    )

    api_host: str = _variable(
        "API_HOST", "127.0.0.1", "Address that the API listens on; any but this machine's own needs API_KEY."
    )
    api_port: int = _variable("API_PORT", 8000, "Port of the API; 0 takes a free one and says which.")
    api_key: str | None = _variable(
        "API_KEY", None, "What clients of the API have to send as bearer token.", is_secret=True
    )
    api_model_name: str = _variable("API_MODEL_NAME", "gpt-3.5-turbo", "Name of the model in the API.")
    api_verbose: bool = _variable("API_VERBOSE", True, "Logs one line for each request of the API.")
    api_cors_origins: str = _variable(
        "API_CORS_ORIGINS", "", "Web pages that may use the API, with commas between them; unset: none."
    )
    api_max_body: int = _variable("API_MAX_BODY", 16, "Largest request body of the API in MiB.")
    safe_media_path: str | None = _variable(
        "SAFE_MEDIA_PATH", None, "Folder of images, audio and video that requests to the API may name; unset: none."
    )
    allow_local_files: bool = _variable("ALLOW_LOCAL_FILES", True, "Off closes the folder of SAFE_MEDIA_PATH too.")
    allow_remote_media: bool = _variable(
        "ALLOW_REMOTE_MEDIA", False, "Lets the API fetch images, audio and video from public addresses."
    )
    root_path: str = _variable("FASTAPI_ROOT_PATH", "", "Path under which a proxy serves the API.")

    gradio_server_name: str = _variable(
        "GRADIO_SERVER_NAME",
        "127.0.0.1",
        "Address that the board listens on; any but this machine's own needs GRADIO_AUTH.",
    )
    gradio_server_port: int | None = _variable(
        "GRADIO_SERVER_PORT", None, "Port of the board; unset: the first free one from 7860."
    )
    gradio_auth: str | None = _variable("GRADIO_AUTH", None, "Who may enter the board: user:password.", is_secret=True)
    gradio_share: bool = _variable(
        "GRADIO_SHARE", False, "Asks gradio for a public link to the board; needs GRADIO_AUTH."
    )
    gradio_root_path: str = _variable("GRADIO_ROOT_PATH", "", "Path under which a proxy serves the board.")
    llamaboard_enabled: bool = _variable(
        "LLAMABOARD_ENABLED", False, "Set by the board for the runs that it starts: they write running_log.txt."
    )
    llamaboard_workdir: str = _variable(
        "LLAMABOARD_WORKDIR", "", "Set by the board: folder of the run, which receives running_log.txt."
    )
    demo_model: str | None = _variable(
        "DEMO_MODEL", None, "Model that the board loads when it is only a demonstration."
    )
    demo_template: str | None = _variable("DEMO_TEMPLATE", None, "Chat template of DEMO_MODEL; unset: its own.")
    demo_backend: str = _variable("DEMO_BACKEND", "huggingface", "Engine that answers for DEMO_MODEL.")
    board_roots: str = _variable(
        "LLAMABOARD_ROOTS", "", "Folders beside the current one that the board may read, written like PATH."
    )

    @property
    def cache_dir(self) -> Path:
        """The folder of `cache`, with ~ resolved."""
        return Path(self.cache).expanduser()

    @property
    def is_distributed(self) -> bool:
        """Whether this process is one of several that torchrun (or its like) started."""
        return self.local_rank is not None and self.world_size > 1

    @property
    def is_worker(self) -> bool:
        """Whether a launcher started this process, so that it must not launch again."""
        return self.local_rank is not None

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, the one that writes files and talks."""
        return self.rank == 0


def read_env(environ: Mapping[str, str] | None = None) -> Env:
    """Read all variables of the table; a value of the wrong type is a UserError that names the variable."""
    source = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for item in fields(Env):
        raw = source.get(item.metadata["name"])
        if raw is not None and raw.strip():
            values[item.name] = _convert(item.metadata["name"], raw.strip(), str(item.type))
    return Env(**values)


def list_variables(environ: Mapping[str, str] | None = None) -> list[Variable]:
    """Return every variable with its value now, its default and its help; secrets are masked."""
    source = os.environ if environ is None else environ
    env = read_env(source)
    rows: list[Variable] = []
    for item in fields(Env):
        name = str(item.metadata["name"])
        value = "***" if item.metadata["secret"] else _show(getattr(env, item.name))
        rows.append(Variable(name, value, _show(item.default), item.metadata["help"], bool(source.get(name))))
    return rows


def child_environment(**updates: str) -> dict[str, str]:
    """Return a copy of the environment for a child process, with updates put over it."""
    return {**os.environ, **updates}


def set_defaults(defaults: Mapping[str, str]) -> None:
    """Set variables for this process and its children where the user has not set them."""
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def is_enabled(name: str, default: bool = False) -> bool:
    """Read any variable as a switch: true, yes, on, y, t and 1 are on."""
    raw = os.environ.get(name)
    return default if raw is None or not raw.strip() else raw.strip().lower() in TRUTHY


def read_variable(name: str) -> str:
    """Read any variable as text; empty when it is not set."""
    return os.environ.get(name, "")


def _convert(name: str, raw: str, kind: str) -> Any:
    if "bool" in kind:
        return raw.lower() in TRUTHY
    if "int" in kind:
        try:
            return int(raw)
        except ValueError:
            raise UserError(f"The environment variable {name} is {raw!r}; it must be a whole number.") from None
    return raw


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return "" if value is None else str(value)
