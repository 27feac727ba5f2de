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
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

import bedplate
from bedplate.core.contracts import Generator
from bedplate.core.errors import BedplateError
from bedplate.serve.audit import AuditLog
from bedplate.serve.bridge import Bridge
from bedplate.serve.budget import Budget
from bedplate.serve.door import Door
from bedplate.serve.endpoints import (
    admin,
    chat,
    classify,
    completions,
    embeddings,
    forecasts,
    health,
    images,
    login,
    metrics,
    models,
    openapi,
    predict,
    receipts,
    rerank,
    speech,
    transcriptions,
)  # fmt: skip
from bedplate.serve.errors import Refusal
from bedplate.serve.exchange import Exchange
from bedplate.serve.limits import Limiter
from bedplate.serve.metrics import Metrics
from bedplate.serve.models import Models
from bedplate.serve.pages import table as pages
from bedplate.serve.pages.render import shown
from bedplate.serve.policy import Policy
from bedplate.serve.reception import Reception
from bedplate.serve.redact import Redactor
from bedplate.serve.reload import reload
from bedplate.serve.route import Route, endpoint, told
from bedplate.serve.settings import ServeSettings
from bedplate.serve.signing import Signer

LOG = logging.getLogger("bedplate.serve")
KEEP_EVERY_S = 60.0

ROUTES: tuple[Route, ...] = (
    *models.ROUTES, *chat.ROUTES, *completions.ROUTES, *embeddings.ROUTES, *classify.ROUTES, *predict.ROUTES, *rerank.ROUTES,
    *transcriptions.ROUTES, *images.ROUTES, *speech.ROUTES, *forecasts.ROUTES, *receipts.ROUTES, *health.ROUTES,
    *metrics.ROUTES, *admin.ROUTES, *login.ROUTES, *openapi.ROUTES, *pages.ROUTES,
)  # fmt: skip
"""All of them. Routes of your own are added to these and given to `create_app`."""


class Gateway:
    """What runs: generators by name, who may ask, how much, and what is written down."""

    bridge: Bridge
    """Made when the event loop begins."""
    _keeping: asyncio.Task[None]

    def __init__(self, settings: ServeSettings, generators: Mapping[str, Generator], remotes: Mapping[str, Generator] | None = None) -> None:
        """
        Args:
            settings: of the gateway.
            generators: name of a base -> who answers for it and its adapters.
            remotes: name of a remote place in the routes -> who answers there.
        Raises:
            ConfigError: guards or routes cannot be kept; two models share a name.
            DataError: the keys file is missing.
            IntegrityError: keys or audit are damaged, or open to others.
        """
        self.settings = settings
        self.bases, self.remotes = dict(generators), dict(remotes or {})
        self.policy = Policy.read(settings)
        self.places = self.policy.addresses
        """Remote place -> what its generator was opened for."""
        self.budget = None if self.policy.routes is None else Budget(self.policy.routes.budget, settings.spent)
        self.models = Models(self.policy.around(self.bases, self.remotes, self.budget))
        self.reception = Reception(settings)
        self.limiter = Limiter(settings.limits)
        self.redactor = Redactor(settings.redact)
        self.signer = None if settings.signer_file is None else Signer.open(settings.signer_file)
        self.audit = None if settings.audit is None or self.signer is None else AuditLog.open(settings.audit, self.signer, settings.auditing)
        self.metrics = Metrics()
        self.exchanges: set[Exchange] = set()
        """Under way."""
        self.routes: tuple[Route, ...] = ROUTES
        """What can be asked for."""
        self.reread: Callable[[], ServeSettings] = lambda: settings
        """Gives the settings as they are now, for `reload`."""
        self.looking_up = asyncio.Semaphore(1)
        """Held while the audit is searched: whoever asks for many receipts waits for itself, and no answer does."""
        self.draining = False
        """Whether no new requests are taken."""
        self._reloading = asyncio.Lock()
        self._later: set[asyncio.Future[object]] = set()

    def log(self, request_id: str, error: BaseException) -> None:
        """Tell the log what the client is not told."""
        told = f"{error.message} ({error.hint})" if isinstance(error, BedplateError) else f"{type(error).__name__}: {error}"
        # A remote's words may be a client's, and a log is read in terminals.
        LOG.error("request %s: %s", request_id, shown(told).replace("\n", "\u240a"), exc_info=None if isinstance(error, (BedplateError, Refusal)) else error)

    def later(self, work: Callable[[], object]) -> None:
        """Do something off the loop, without anybody waiting for it; `close` waits."""
        future = asyncio.get_running_loop().run_in_executor(None, work)
        self._later.add(future)
        future.add_done_callback(self._done)

    def _done(self, future: asyncio.Future[object]) -> None:
        self._later.discard(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            LOG.error("%s", error)

    async def reload(self) -> list[str]:
        """Take over changed settings, keys, guards, routes and adapters; what changed, in words. Answers under way go on.

        Raises:
            BedplateError: they cannot be kept; the old ones stay.
        """
        async with self._reloading:
            return await asyncio.get_running_loop().run_in_executor(None, lambda: reload(self, self.reread()))

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

    def write_used(self) -> None:
        """Keep when keys were last used and what was spent; now and then, and at the end."""
        if self.reception.ring is not None:
            self.reception.ring.write_used()
        if self.budget is not None:
            self.budget.write()

    async def start(self) -> None:
        """In the event loop that serves."""
        self.bridge = Bridge(asyncio.get_running_loop(), self.settings.listen.kept_pieces)
        self.metrics.watch(self)
        self._keeping = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        """Write down now and then what would be missed after a crash."""
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            self.later(self.write_used)

    async def stop(self) -> None:
        """Let go of everything but the generators, which are whoever's that made them."""
        self.draining = True
        self._keeping.cancel()
        for exchange in list(self.exchanges):
            exchange.close()
        if self._later:
            await asyncio.wait(self._later, timeout=10)
        await asyncio.get_running_loop().run_in_executor(None, self.write_used)
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

    gateway.routes = tuple(routes)
    app = FastAPI(title="Bedplate", version=bedplate.__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return told(Refusal(error.status_code, "there is nothing at this path" if error.status_code == 404 else error.detail.lower()), request.scope)

    for route in routes:
        app.add_api_route(route.path, endpoint(route, gateway), methods=[route.method], response_model=None, include_in_schema=False)
    return Door(app, gateway, list(routes))
