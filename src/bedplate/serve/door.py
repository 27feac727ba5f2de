"""The door: what happens to every request before any route sees it, and to every answer after. Plain ASGI, so that streams pass untouched.

It numbers the request, finds out who asks, refuses whoever may not come in, limits the body while it is being read, and adds the headers that
every answer carries. A path that no route has is refused as any other: without a key nobody learns what there is.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.responses import RedirectResponse
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bedplate.serve.caller import Caller
from bedplate.serve.errors import Refusal
from bedplate.serve.pages.render import wants_page
from bedplate.serve.route import PUBLIC, Route, told

if TYPE_CHECKING:
    from bedplate.serve.gateway import Gateway

HEADERS: dict[str, str] = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' data: blob:; connect-src 'self'; font-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
}
"""On every answer that does not set them itself."""

READ = (b"authorization", b"host", b"origin", b"cookie", b"content-length", b"sec-fetch-site", b"accept")
"""Headers of a request that are looked at."""
PUBLIC_BODY_BYTES = 16_384
"""Largest body of somebody who has shown no key: a form with one in it."""
ANYBODY = Caller("-", "", frozenset())
"""Who asks for a public page."""


class Door:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, gateway: Gateway, routes: list[Route]) -> None:
        self.app, self.gateway = app, gateway
        self._public = [(route.method, compile_path(route.path)[0]) for route in routes if route.scope is PUBLIC]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        began = time.monotonic()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = "req_" + secrets.token_hex(10)
        seen: dict[str, Any] = {"status": 0}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                _add_headers(message, request_id)
            await send(message)

        try:
            caller = await self._enter(scope)
            state["caller"] = caller or ANYBODY
            body = _Body(receive, self._most_bytes(caller), self.gateway.settings.listen.body_s)
        except Refusal as refused:
            self.gateway.metrics.refused.labels(refused.code or "other").inc()
            refused.headers.setdefault("connection", "close")  # what else it sends is of no interest
            if refused.status == 401 and scope["method"] == "GET" and wants_page(scope["headers"]):
                await RedirectResponse("/login?next=" + quote(scope["path"], safe="/"), 303)(scope, receive, sending)
                return
            await told(refused, scope)(scope, receive, sending)
        else:
            try:
                await self.app(scope, body.receive, sending)
            except Refusal as refused:  # the body, where nothing else catches it
                await told(refused, scope)(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.gateway.metrics.requests.labels(route, str(seen["status"])).inc()
            self.gateway.metrics.seconds.labels(route).observe(time.monotonic() - began)

    async def _enter(self, scope: Scope) -> Caller | None:
        headers = {name: value for name, value in scope["headers"] if name in READ}
        public = any(method == scope["method"] and regex.match(scope["path"]) for method, regex in self._public)
        if public:  # a probe with an old token learns of this gateway's health, not of the identity provider's
            headers.pop(b"authorization", None)
        caller = await self.gateway.reception.who(headers, scope["method"])
        if caller is None and not public:
            what = "a key is needed: authorization: Bearer bp_..." if b"authorization" not in headers else "this key is unknown, expired or revoked"
            raise Refusal(401, what, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        if self.gateway.draining and not public:
            later_s = self.gateway.settings.listen.drain_s
            raise Refusal(503, "this gateway is about to stop; ask another, or again later", code="draining", retry_after_s=later_s)
        length = headers.get(b"content-length", b"0")
        most = self._most_bytes(caller)
        if not length.isdigit() or int(length[:20]) > most:
            raise _too_large(most)
        return caller

    def _most_bytes(self, caller: Caller | None) -> int:
        most = self.gateway.settings.limits.body_bytes
        return most if caller is not None else min(most, PUBLIC_BODY_BYTES)


class _Body:
    """A body that is refused as soon as it is too large or too slow."""

    def __init__(self, receive: Receive, most_bytes: int, most_s: float) -> None:
        self._receive, self._most, self._deadline_s = receive, most_bytes, time.monotonic() + most_s
        self._read = 0
        self._complete = False
        self._limit_s = most_s

    async def receive(self) -> Message:
        if self._complete:  # what comes now is the end of the connection
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._deadline_s - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            refused = Refusal(408, f"the body did not come within {self._limit_s:g} s", code="body_timeout", headers={"connection": "close"})
            raise refused from None
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            if self._read > self._most:
                raise _too_large(self._most)
            self._complete = not message.get("more_body", False)
        return message


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the body is larger than the {most} bytes that are taken", code="body_too_large", headers={"connection": "close"})


def _add_headers(message: Message, request_id: str) -> None:
    present = {name for name, _ in message["headers"]}
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in present]
    message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *added]
