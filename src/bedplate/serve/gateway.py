"""The gateway: what runs behind the routes, and the application that serves it.

    gateway = Gateway(settings, {"smollm2": generator})
    app = create_app(gateway)            # any ASGI server; listen.py runs it under uvicorn
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp, Scope

import bedplate
from bedplate.core.contracts import Generator
from bedplate.core.errors import BedplateError
from bedplate.serve.audit import AuditLog
from bedplate.serve.bridge import Bridge
from bedplate.serve.caller import Caller
from bedplate.serve.door import LOCAL, LOCAL_HOST, Door
from bedplate.serve.endpoints import chat, health
from bedplate.serve.exchange import Exchange
from bedplate.serve.keys import KeyRing
from bedplate.serve.limits import Limiter
from bedplate.serve.metrics import Metrics
from bedplate.serve.models import Models
from bedplate.serve.receipts import policy_digest
from bedplate.serve.redact import Redactor
from bedplate.serve.route import Route, endpoint
from bedplate.serve.settings import ServeSettings
from bedplate.serve.signing import Signer

LOG = logging.getLogger("bedplate.serve")

ROUTES: tuple[Route, ...] = (*chat.ROUTES, *health.ROUTES)
"""All of them."""


class Gateway:
    """What runs: generators by name, who may ask, how much, and what is written down."""

    bridge: Bridge
    """Made when the event loop begins."""

    def __init__(self, settings: ServeSettings, generators: Mapping[str, Generator]) -> None:
        """
        Args:
            settings: of the gateway.
            generators: name of a base -> who answers for it and its adapters.
        Raises:
            DataError: the keys file is missing.
            IntegrityError: keys or audit are damaged, or open to others.
        """
        self.settings = settings
        self.models = Models(generators)
        self.ring = None if settings.keys is None else KeyRing(settings.keys)
        self.limiter = Limiter(settings.limits)
        self.redactor = Redactor(settings.redact)
        self.signer = None if settings.audit is None else Signer.open(settings.audit / "gateway.pem")
        self.audit = None if settings.audit is None or self.signer is None else AuditLog.open(settings.audit, self.signer, settings.auditing)
        self.metrics = Metrics()
        self.exchanges: set[Exchange] = set()
        """Under way."""
        self.draining = False
        """Whether no new requests are taken."""
        self._later: set[asyncio.Future[None]] = set()

    @property
    def policies(self) -> Mapping[str, str]:
        """Name -> digest of the settings in force, for receipts."""
        return {"redact": policy_digest(self.settings.redact), "limits": policy_digest(self.settings.limits)}

    def who(self, headers: Mapping[bytes, bytes], scope: Scope) -> Caller | None:
        """Who asks; None: nobody known."""
        if self.ring is None:
            return LOCAL if LOCAL_HOST.fullmatch(headers.get(b"host", b"").decode("latin-1")) else None
        kind, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        return self.ring.find(secret.strip()) if kind.lower() == "bearer" else None

    def log(self, request_id: str, error: BaseException) -> None:
        """Tell the log what the client is not told."""
        LOG.error("request %s: %s", request_id, error, exc_info=None if isinstance(error, BedplateError) else error)

    def later(self, work: Callable[[], None]) -> None:
        """Do something off the loop, without anybody waiting for it; `close` waits."""
        future = asyncio.get_running_loop().run_in_executor(None, work)
        self._later.add(future)
        future.add_done_callback(self._done)

    def _done(self, future: asyncio.Future[None]) -> None:
        self._later.discard(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            LOG.error("%s", error)

    async def drained(self, within_s: float) -> bool:
        """Take no new requests, and wait until the answers under way have ended; those that do not in time are cancelled, and it is False."""
        self.draining = True
        until_s = asyncio.get_running_loop().time() + within_s
        while self.exchanges and asyncio.get_running_loop().time() < until_s:
            await asyncio.sleep(0.05)
        left = list(self.exchanges)
        for exchange in left:
            exchange.left()
        return not left

    async def start(self) -> None:
        """In the event loop that serves."""
        self.bridge = Bridge(asyncio.get_running_loop(), self.settings.listen.kept_pieces)
        self.metrics.watch(self)

    async def stop(self) -> None:
        """Let go of everything but the generators, which are whoever's that made them."""
        self.draining = True
        for exchange in list(self.exchanges):
            exchange.close()
        if self._later:
            await asyncio.wait(self._later, timeout=10)
        if self.ring is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.ring.write_used)
        if self.audit is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.audit.close)


def create_app(gateway: Gateway, routes: Sequence[Route] = ROUTES) -> ASGIApp:
    """The application, behind its door.

    Args:
        gateway: what runs.
        routes: what can be asked for.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        yield
        await gateway.stop()

    app = FastAPI(title="Bedplate", version=bedplate.__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    for route in routes:
        app.add_api_route(route.path, endpoint(route, gateway), methods=[route.method], response_model=None, include_in_schema=False)
    return Door(app, gateway, list(routes))
