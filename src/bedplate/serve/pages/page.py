"""A page as an answer, for the one who asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.responses import HTMLResponse, Response

from bedplate.serve.pages.render import render
from bedplate.serve.route import Call

T = TypeVar("T")


def page(call: Call, template: str, status: int = 200, **values: Any) -> Response:
    """A template filled in, as an answer."""
    return HTMLResponse(render(template, call.request.url.path, call.caller, call.gateway.reception.open, **values), status)


async def off_the_loop(work: Callable[[], T]) -> T:
    """What reads files, done where no stream waits for it."""
    return await asyncio.get_running_loop().run_in_executor(None, work)
