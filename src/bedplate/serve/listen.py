"""Listening: uvicorn with patience that ends. A client that sends its head too slowly, or takes nothing of what is sent, is let go.

SIGTERM drains: no new requests, those under way end. SIGHUP reloads.

    run(gateway, on_ready=print)        # blocks until told to stop
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from asyncio import TimerHandle
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bedplate.core.errors import BedplateError, ResourceError
from bedplate.serve.door import HEADERS
from bedplate.serve.errors import Refusal
from bedplate.serve.gateway import Gateway
from bedplate.serve.settings import ListenSettings

SEND_BUFFER_BYTES = 65_536
"""Of the kernel, for each connection: left alone it grows to megabytes for a client that does not read."""
LARGEST_HEAD_BYTES = 65_536
"""Of a request's head, and of what may follow its body: the parser keeps it all, and no key has been seen yet."""
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
LOG = logging.getLogger("bedplate.serve")


def run(gateway: Gateway, app: ASGIApp, on_ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve until SIGTERM or SIGINT; a second one cuts what is under way.

    Args:
        gateway: what runs.
        app: its application.
        on_ready: called with the address once clients are taken.
    Raises:
        ResourceError: the address is taken.
    """
    listener = bind(gateway.settings.listen)
    server = Server(gateway, app, on_ready)
    gc.collect()
    gc.freeze()  # models and modules stay; a collection that walks through them holds every stream
    server.run(sockets=[listener])


def bind(settings: ListenSettings) -> socket.socket:
    """A listening socket. Its connections are dropped when what was sent is not taken for `stalled_s`, or the other side is gone.

    Raises:
        ResourceError: the address is taken, or is none of this machine.
    """
    host = settings.host.strip("[]")
    try:
        listener = socket.create_server((host, settings.port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)
    except OSError as error:
        what = f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}"
        raise ResourceError(what, "set another listen.port, or 0 for a free one") from error
    stalled_s = max(1, round(settings.stalled_s))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    for name, value in (("TCP_USER_TIMEOUT", stalled_s * 1000), ("TCP_KEEPIDLE", stalled_s), ("TCP_KEEPINTVL", 5), ("TCP_NODELAY", 1)):
        if hasattr(socket, name):  # Linux has them all, and accepted connections inherit them
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return listener


class Server(uvicorn.Server):
    """Drains before it stops."""

    def __init__(self, gateway: Gateway, app: ASGIApp, on_ready: Callable[[str], None]) -> None:
        settings = gateway.settings.listen
        config = uvicorn.Config(
            app,
            http=_patient(settings),
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="error",  # a line for every malformed request would let anybody fill the disk
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=max(1, round(settings.idle_s)),
            timeout_graceful_shutdown=5,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.private_key,
        )
        super().__init__(config)
        self._gateway, self._on_ready = gateway, on_ready
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP"):
            with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread: no signal comes here
                self._loop.add_signal_handler(signal.SIGHUP, lambda: asyncio.ensure_future(self._reload()))
        settings = self._gateway.settings.listen
        port = sockets[0].getsockname()[1] if sockets else settings.port
        host = f"[{settings.host}]" if ":" in settings.host and not settings.host.startswith("[") else settings.host
        self._on_ready(f"{'https' if settings.certificate else 'http'}://{host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; a second signal stops at once."""
        if self._loop is None or self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Take no new requests, wait for those under way, stop. From within the event loop."""
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        if not await self._gateway.drained(self._gateway.settings.listen.drain_s):
            LOG.warning("some answers did not end in time and were broken off")
            await asyncio.sleep(0.5)  # their last pieces
        self.should_exit = True

    async def _reload(self) -> None:
        try:
            changed = await self._gateway.reload()
        except BedplateError as error:
            LOG.error("nothing was reloaded: %s", error)
        else:
            LOG.warning("reloaded: %s", "; ".join(changed) or "nothing has changed")


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in place of the application where there are too many connections."""
    refused = Refusal(503, "there are as many connections as this gateway takes", code="busy", retry_after_s=1.0, headers={**HEADERS, "connection": "close"})
    await Response(refused.body(), refused.status, refused.headers, "application/json")(scope, receive, send)


def _patient(settings: ListenSettings) -> type[HttpToolsProtocol]:
    """A protocol that waits so long for a request's head, and for the rest of a body that nobody reads any more; that takes heads of a bounded size,
    and so many connections; and that lets the application cut one."""

    class Patient(HttpToolsProtocol):
        _head: TimerHandle | None = None
        _rest: TimerHandle | None = None
        _open = False
        """Whether a request has begun and not come to its end."""
        _went_on = False
        _kept_bytes = 0
        """Since something of it was complete."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            self._went_on = False
            super().data_received(data)
            self._kept_bytes = 0 if self._went_on else self._kept_bytes + len(data)
            if self._kept_bytes > LARGEST_HEAD_BYTES and not self.transport.is_closing():
                if self.cycle is None or self.cycle.response_complete:
                    self.transport.write(TOO_LARGE)
                    self.transport.close()
                else:
                    self.transport.abort()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope["extensions"] = {"bedplate.abort": self.transport.abort}  # type: ignore[dict-item]
            self._open = True
            if self._head is None:
                self._wait()

        def on_headers_complete(self) -> None:
            self._went_on = True
            self._come()
            self.app = _full if max(len(self.connections), len(self.tasks)) >= settings.connections else self.config.loaded_app
            super().on_headers_complete()

        def on_chunk_header(self) -> None:
            self._went_on = True

        def on_body(self, body: bytes) -> None:
            self._went_on = True
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._went_on, self._open = True, False
            self._come()
            super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._open and self._rest is None:  # answered without its body: the door does not look at the clock any more
                self._rest = self.loop.call_later(settings.body_s, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._come()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._head = self.loop.call_later(settings.headers_s, self.transport.abort)

        def _come(self) -> None:
            for timer in (self._head, self._rest):
                if timer is not None:
                    timer.cancel()
            self._head = self._rest = None

    return Patient
