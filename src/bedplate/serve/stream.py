"""Answers piece by piece as server-sent events, made by hand: a token is some twenty microseconds of work, not a model of a message.

A client that leaves is noticed at once, and its answer is cancelled. A client that reads slowly holds up nobody: what it does not take is kept up to a
bound, then its answer is cancelled and the connection cut.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bedplate.core.errors import BedplateError, ResourceError
from bedplate.core.generation import Piece, Usage
from bedplate.serve.bridge import Numbered
from bedplate.serve.errors import Refusal, refusal
from bedplate.serve.exchange import Exchange
from bedplate.serve.route import Call

DONE = b"data: [DONE]\n\n"
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
"""The second tells a reverse proxy to pass every event on as it comes."""


class Words(Protocol):
    """How one kind of answer is written as events."""

    def head(self) -> bytes:
        """What comes before the first piece."""
        ...

    def piece(self, number: int, piece: Piece) -> bytes:
        """One piece of a choice."""
        ...

    def tail(self, usage: Usage) -> bytes:
        """What comes after the last piece."""
        ...


class EventStream(Response):
    """An answer under way as an HTTP answer. Its first pieces are there already, so that what fails early fails with a status."""

    def __init__(self, call: Call, exchange: Exchange, words: Words, first: list[Numbered]) -> None:
        super().__init__()
        self._call, self._exchange, self._words, self._first = call, exchange, words, first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange, words, metrics = self._exchange, self._words, self._call.gateway.metrics
        answer = exchange.answer
        assert answer is not None
        task = asyncio.current_task()
        assert task is not None
        answer.on_overflow = scope.get("extensions", {}).get("bedplate.abort", task.cancel)
        leaving = asyncio.create_task(_cancel_when_left(receive, exchange))
        try:
            headers = [*HEADERS, *((name.encode(), value.encode()) for name, value in exchange.headers.items())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            body = words.head()
            pieces = self._first
            while pieces:
                body += b"".join([words.piece(number, piece) for number, piece in pieces])
                await send({"type": "http.response.body", "body": body, "more_body": True})
                body = b""
                pieces = await exchange.pieces()
            await exchange.finish()
            exchange.close()  # before the last byte: who then asks again at once finds the place free
            await send({"type": "http.response.body", "body": words.tail(answer.usage) + DONE, "more_body": False})
        except (BedplateError, Refusal) as error:
            if answer.overflowed:
                metrics.left.labels("too_slow").inc()
                return
            refused = refusal(error, self._call.id)
            if isinstance(error, ResourceError):  # the engine's, midway; nobody asked too much
                refused.status = 503
            if refused.status >= 500:
                self._call.gateway.log(self._call.id, error)
            exchange.close()
            event = b"data: " + json.dumps({"error": refused.shape()}).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": event + DONE, "more_body": False})
        finally:
            leaving.cancel()
            exchange.close()


async def collected(call: Call, exchange: Exchange, take: Callable[[int, Piece], None]) -> None:
    """Hand every piece of an answer to `take`, to its end, and write it down; given up when the client leaves.

    Raises:
        BedplateError: the answer failed.
    """
    leaving = asyncio.create_task(_cancel_when_left(call.request.receive, exchange))
    try:
        while pieces := await exchange.pieces():
            for number, piece in pieces:
                take(number, piece)
        await exchange.finish()
    except ResourceError as error:
        raise Refusal(503, error.message, code="busy", retry_after_s=1.0) from error
    finally:
        leaving.cancel()
        exchange.close()


async def streamed(call: Call, exchange: Exchange, words: Words) -> EventStream:
    """A stream, once the first pieces are there.

    Raises:
        BedplateError: the answer failed before it began.
    """
    leaving = asyncio.create_task(_cancel_when_left(call.request.receive, exchange))
    try:
        first = await exchange.pieces()
    except BaseException:
        exchange.close()
        raise
    finally:
        leaving.cancel()
    return EventStream(call, exchange, words, first)


async def _cancel_when_left(receive: Callable[[], Awaitable[Mapping[str, object]]], exchange: Exchange) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    exchange.left()
