"""Server-sent events: one event for each piece of an answer.

Written here, as sse-starlette replaces a method of uvicorn's server class when it is imported and ends running streams
at SIGTERM, where ours have to be finished.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

Events = AsyncGenerator[Mapping[str, Any], None]


class EventResponse(Response):
    """Sends events as they come; stops them when the client has gone.

    `sources` are the streams that the events are made of: closed with them, also where no event was asked for yet.
    """

    def __init__(self, events: Events, sources: Sequence[AsyncGenerator[Any, None]], *, ping_seconds: float) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(media_type="text/event-stream", headers=headers)
        del self.headers["content-length"]
        self.events = events
        self.sources = sources
        self.ping_seconds = ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; whichever ends first, the events or the client, ends both."""
        work = asyncio.create_task(self._send_all(send))
        watch = asyncio.create_task(wait_for_disconnect(receive))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        finally:
            watch.cancel()
            if not work.done():
                work.cancel()
            with suppress(asyncio.CancelledError):
                await work
            for generator in (self.events, *self.sources):
                await generator.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._with_pings()) as pieces:
            async for data in pieces:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": DONE})

    async def _with_pings(self) -> AsyncGenerator[bytes, None]:
        """Give the events as bytes, and a comment where none comes for a while."""
        while True:
            step = asyncio.ensure_future(anext(self.events, None))
            try:
                while not (await asyncio.wait((step,), timeout=self.ping_seconds))[0]:
                    yield PING
            finally:
                if not step.done():
                    step.cancel()
                    await asyncio.wait((step,))
            if (event := step.result()) is None:
                return
            yield as_event(event)


def as_event(data: Mapping[str, Any]) -> bytes:
    """Write one event."""
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has gone; only once the whole body of its request was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
