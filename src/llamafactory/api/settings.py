"""What the environment says about the server, checked before a model is loaded."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ..extras.env import Env
from ..extras.errors import UserError
from .media_sources import MediaPolicy


MIB = 2**20
MAX_PORT = 2**16 - 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the server listens and whom it lets in."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    """The bearer token that every request has to bring; None: whoever reaches the address may ask."""
    model_name: str = "gpt-3.5-turbo"
    cors_origins: tuple[str, ...] = ()
    root_path: str = ""
    is_verbose: bool = True
    max_body: int = 16 * MIB
    """Bytes."""
    body_seconds: float = 60.0
    """How long a client may take to send its request."""
    head_seconds: float = 10.0
    """The same for the request line and headers alone."""
    send_seconds: float = 60.0
    """How long a client may leave an answer unread before the connection is closed."""
    max_connections: int = 512
    """Beyond it, the connection that has waited longest without sending a request makes room."""
    shutdown_seconds: int = 600
    """What running answers get after SIGTERM."""
    media: MediaPolicy = field(default_factory=MediaPolicy)
    """Where the images, sounds and videos of requests may come from."""
    ping_seconds: float = 15.0
    """A stream without text for that long gets a comment, so that proxies keep it open."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def read_settings(env: Env) -> Settings:
    """Take the server's settings out of the environment; refuse an open door without a key."""
    settings = Settings(
        host=env.api_host,
        port=env.api_port,
        key=env.api_key,
        model_name=env.api_model_name,
        cors_origins=read_origins(env.api_cors_origins),
        root_path=env.root_path.rstrip("/"),
        is_verbose=env.api_verbose,
        max_body=env.api_max_body * MIB,
        media=read_policy(env),
    )
    if not settings.is_local and settings.key is None:
        raise UserError(
            f"API_HOST is {settings.host!r}, an address that other machines can reach, but API_KEY is not set: set "
            "API_KEY to a secret that clients send as bearer token, or listen on 127.0.0.1."
        )
    if not 0 <= settings.port <= MAX_PORT:
        raise UserError(f"API_PORT is {settings.port}; a port is a number from 0 to {MAX_PORT}.")
    if env.api_max_body < 1:
        raise UserError(f"API_MAX_BODY is {env.api_max_body}; give the largest request body in MiB, at least 1.")
    if settings.root_path and not settings.root_path.startswith("/"):
        raise UserError(f"FASTAPI_ROOT_PATH is {env.root_path!r}; it starts with a slash, as in /llm.")
    return settings


def read_policy(env: Env) -> MediaPolicy:
    """Take what is open for media out of the environment: nothing, unless it says so."""
    folder = None
    if env.safe_media_path and env.allow_local_files:
        folder = Path(env.safe_media_path).expanduser()
        if not folder.is_dir():
            raise UserError(f"SAFE_MEDIA_PATH is {env.safe_media_path!r}, which is no folder; name one, or unset it.")
    return MediaPolicy(folder=folder, allows_remote=env.allow_remote_media, max_bytes=env.api_max_body * MIB)


def read_origins(text: str) -> tuple[str, ...]:
    """Read origins (scheme, host and port) with commas between them; `*` stands for all pages."""
    origins = tuple(origin.strip().rstrip("/") for origin in text.split(",") if origin.strip())
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and (not parts.hostname or parts.scheme not in ("http", "https") or parts.path):
            raise UserError(f"API_CORS_ORIGINS has {origin!r}; write origins such as https://chat.example.org.")
    return origins


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this machine and nothing else."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
