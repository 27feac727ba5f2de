"""Routes: what a path does, who may ask for it, and how its handler is called. Every way into the gateway is one of these."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Scope

from bedplate.core.errors import BedplateError
from bedplate.serve.caller import Caller
from bedplate.serve.errors import Refusal, refusal
from bedplate.serve.pages.render import render, wants_page
from bedplate.serve.schemas import B, Body, read

if TYPE_CHECKING:
    from bedplate.serve.gateway import Gateway

PUBLIC = None
"""Scope of a route that needs no key."""
ANY = ""
"""Scope of a route that every caller may use."""


@dataclass(frozen=True)
class Call:
    """One request, known and allowed."""

    gateway: Gateway
    request: Request
    caller: Caller
    id: str
    """Of the request; the client finds it in x-request-id, and so does the log."""

    async def body(self, cls: type[B]) -> B:
        """The body, read and checked.

        Raises:
            Refusal: it is too large, too slow, or does not fit.
        """
        return read(cls, await self.request.body())

    @property
    def labels(self) -> tuple[str, ...]:
        """Classes of its data, as said in x-bedplate-labels by the client and whatever stands between; they add to the key's, and the most sensitive counts."""
        words = [word.strip() for line in self.request.headers.getlist("x-bedplate-labels") for word in line.split(",")]
        return tuple(dict.fromkeys(word[:100] for word in words if word))

    @property
    def path(self) -> Mapping[str, str]:
        """What stands in the places of the path."""
        return self.request.path_params


Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True)
class Route:
    """One line of the table."""

    method: str
    path: str
    handler: Handler
    scope: str | None
    """Which scope it needs; ANY: some key; PUBLIC: none."""
    body: type[Body] | None = None
    """For the OpenAPI page."""


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False), status, headers, "application/json")


def told(refused: Refusal, scope: Scope) -> Response:
    """A refusal as an answer: a page where a browser asked for one."""
    if wants_page(scope["headers"]):
        caller, request_id = scope["state"].get("caller"), scope["state"]["request_id"]
        page = render("refusal.html", scope["path"], caller, True, refused=refused, request_id=request_id)
        return HTMLResponse(page, refused.status, refused.headers)
    return Response(refused.body(), refused.status, refused.headers, "application/json")


def endpoint(route: Route, gateway: Gateway) -> Callable[[Request], Awaitable[Response]]:
    """What FastAPI calls: the handler, behind its scope, with errors in OpenAI's shape."""

    async def called(request: Request) -> Response:
        state = request.scope["state"]
        call = Call(gateway, request, state["caller"], state["request_id"])
        try:
            if route.scope:
                call.caller.require(route.scope)
            return await route.handler(call)
        except ClientDisconnect:
            gateway.metrics.left.labels("vanished").inc()
            return Response(status_code=499)
        except (Refusal, BedplateError) as error:
            refused = refusal(error, call.id)
            if refused.status >= 500:
                gateway.log(call.id, error)
            return told(refused, request.scope)
        except Exception as error:
            gateway.log(call.id, error)
            return told(refusal(error, call.id), request.scope)

    called.__name__ = f"{route.method.lower()}{route.path.replace('/', '_').replace('{', '').replace('}', '').replace(':', '_')}"
    called.__doc__ = (route.handler.__doc__ or "").partition("\n")[0]
    return called
