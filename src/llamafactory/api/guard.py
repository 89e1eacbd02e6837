"""The door: who may come in, and how much they may bring. Nothing behind it sees a request that was refused here."""

import asyncio
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .settings import Settings, is_loopback


OPEN_PATHS = ("/health",)  # says only whether the server is up, to whoever watches it
PATIENCE = 4  # times the limit that is read, and thrown away, so that the client gets to see why it was refused
JSON_TYPE = "application/json"


class Guard:
    """Checks address, key, type, size and pace of every request before anything reads it."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_key(scope, headers)
            body = await self._read_body(scope, headers, receive)
        except ApiError as error:
            extra = {"connection": "close"} if error.status in (408, 413) else {}
            extra |= {"www-authenticate": "Bearer"} if error.status == 401 else {}
            await error.response(extra)(scope, receive, send)
            return
        if body is not None:
            await self.app(scope, replay(body, receive), send)

    def _check_host(self, headers: Headers) -> None:
        """Without a key, only pages and programs that call this machine by its own name get an answer.

        A web page could otherwise point a name of its own at 127.0.0.1 and read what the model says.
        """
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
        if self.settings.key is None and host and not is_loopback(name):
            raise ApiError(403, "Set API_KEY to let this server be called by another name than localhost.")

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if self.settings.key is None or scope["path"].removeprefix(self.settings.root_path) in OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), self.settings.key.encode())
        if scheme.lower() != "bearer" or not is_right:
            message = "Incorrect API key provided." if given else "No API key: send `Authorization: Bearer KEY`."
            raise ApiError(401, message, code="invalid_api_key")

    async def _read_body(self, scope: Scope, headers: Headers, receive: Receive) -> bytes | None:
        """Return the whole body; None when the client left before it was sent."""
        limit = self.settings.max_body
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > limit * PATIENCE:
            raise too_large(limit)
        if (
            scope["method"] == "POST"
            and headers.get("content-type", "").partition(";")[0].strip().lower() != JSON_TYPE
        ):
            raise ApiError(415, f"The content type has to be {JSON_TYPE}.")
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                return await collect(receive, limit)
        except TimeoutError:
            seconds = self.settings.body_seconds
            raise ApiError(408, f"The body did not arrive within {seconds:g} seconds.", code="timeout") from None


async def collect(receive: Receive, limit: int) -> bytes | None:
    """Put the pieces of a body together; one beyond the limit is refused."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size <= limit:
            pieces.append(piece)
        is_whole = not message.get("more_body", False)
        if size > limit * PATIENCE or (is_whole and size > limit):
            raise too_large(limit)
        if is_whole:
            return b"".join(pieces)


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once more and then what really comes."""
    messages: Iterable[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive_again() -> Message:
        return next(iter(messages), None) or await receive()

    return receive_again


def too_large(limit: int) -> ApiError:
    """Make the error for a body beyond the limit."""
    return ApiError(413, f"The body is larger than {limit} bytes; API_MAX_BODY (in MiB) sets how large it may be.")
