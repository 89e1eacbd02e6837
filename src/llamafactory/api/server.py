"""The command `api`: loads a model and serves it until it is told to stop; running answers are finished first."""

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..extras.env import read_env
from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..extras.packages import require
from .settings import Settings, read_settings


if TYPE_CHECKING:
    from uvicorn import Server

    from ..chat.base_engine import BaseEngine

logger = get_logger(__name__)
BACKLOG = 1024


def run_api(args: Sequence[str] | dict[str, Any] | None = None) -> None:
    """Serve the model that the arguments name; what would keep the server from starting is said before loading it."""
    settings = read_settings(read_env())
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, "api", "`llamafactory-cli api`")
    listener = open_socket(settings)

    from ..chat import ChatModel

    model = ChatModel(args)
    server = make_server(model.engine, settings)
    logger.info("Serving %s at %s", settings.model_name, describe(listener, settings))
    server.run(sockets=[listener])


def make_server(engine: "BaseEngine", settings: Settings) -> "Server":
    """Return a server that is ready to run."""
    import uvicorn

    from .app import create_app
    from .connections import Connections

    config = uvicorn.Config(
        create_app(engine, settings),
        http=Connections(settings).protocol_class(),
        ws="none",
        access_log=settings.is_verbose,
        log_level="info" if settings.is_verbose else "warning",
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        h11_max_incomplete_event_size=2**16,
    )
    return uvicorn.Server(config)


def open_socket(settings: Settings) -> socket.socket:
    """Take the address, so that one in use is told at once; nobody can connect before the model is there."""
    host = settings.host.strip("[]")
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise UserError(
            f"The API cannot listen on {host}, port {settings.port} ({error.strerror or error}); set API_HOST and "
            "API_PORT to a free address of this machine."
        ) from None
    return listener


def describe(listener: socket.socket, settings: Settings) -> str:
    """Return the base URL for clients."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}{settings.root_path}/v1"
