"""Connections that a slow or silent client cannot hold: every stage of one has an end.

uvicorn closes idle connections itself; it waits without end for a request line that comes byte by byte, and for a
client that does not read. Both are bounded here, around its protocol, and so is the number of connections: when it is
reached, the one that has sent no request for longest makes room, so silent clients never keep others out.
"""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from ..extras.logging import get_logger
from .settings import Settings


logger = get_logger(__name__)


class Connections:
    """The open connections of one server."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.silent: dict[Connection, None] = {}
        """Those that have not sent a whole request head, the oldest first."""
        self.num_open = 0

    def protocol_class(self) -> type[asyncio.Protocol]:
        """Return what uvicorn calls for every new connection."""

        def make(**options: Any) -> asyncio.Protocol:
            return Connection(self, H11Protocol(**options))

        return cast(type[asyncio.Protocol], make)

    def make_room(self) -> bool:
        """Close the connection that has been silent for longest when there are too many; False if none is silent."""
        if self.num_open < self.settings.max_connections:
            return True
        oldest = next(iter(self.silent), None)
        if oldest is None:
            logger.warning("There are %d busy connections; a further one was refused.", self.num_open)
            return False
        oldest.abort()
        return True


class Connection(asyncio.Protocol):
    """uvicorn's protocol with deadlines around it."""

    def __init__(self, connections: Connections, inner: H11Protocol) -> None:
        self.connections = connections
        self.inner = inner
        self._transport: asyncio.Transport | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection if there is room."""
        self._transport = cast(asyncio.Transport, transport)
        has_room = self.connections.make_room()
        self.connections.num_open += 1
        self.inner.connection_made(self._transport)
        if not has_room:
            self.abort()
            return
        self._note_silence()

    def data_received(self, data: bytes) -> None:
        """Hand the data on; the time for a request's head runs until it is there."""
        self.inner.data_received(data)
        if self._is_answering:
            self._head_timer = cancel(self._head_timer)
            self.connections.silent.pop(self, None)
        else:
            self._note_silence()

    def eof_received(self) -> bool | None:
        """Hand the end of the input on."""
        return self.inner.eof_received()

    def pause_writing(self) -> None:
        """The client reads slower than we write: give it some time to catch up."""
        self.inner.pause_writing()
        self._send_timer = self._after(self.connections.settings.send_seconds)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._send_timer = cancel(self._send_timer)
        self.inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.connections.num_open -= 1
        self.connections.silent.pop(self, None)
        self._head_timer, self._send_timer = cancel(self._head_timer), cancel(self._send_timer)
        self.inner.connection_lost(exc)

    def abort(self) -> None:
        """Close at once, unsent data included."""
        self.connections.silent.pop(self, None)
        if self._transport is not None:
            self._transport.abort()

    @property
    def _is_answering(self) -> bool:
        """Whether a request is being read or answered, past its head."""
        cycle = cast("Any | None", self.inner.cycle)  # None before the first request; the stubs do not say so
        return cycle is not None and not cycle.response_complete

    def _note_silence(self) -> None:
        self.connections.silent.setdefault(self)
        if self._head_timer is None:
            self._head_timer = self._after(self.connections.settings.head_seconds)

    def _after(self, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, self.abort)


def cancel(timer: asyncio.TimerHandle | None) -> None:
    """Stop a timer; what is returned takes its place."""
    if timer is not None:
        timer.cancel()
