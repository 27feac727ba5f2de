"""GET /metrics: the numbers, for Prometheus."""

from __future__ import annotations

import asyncio

from starlette.responses import Response

from bedplate.serve.metrics import CONTENT_TYPE
from bedplate.serve.route import Call, Route


async def metrics(call: Call) -> Response:
    """All numbers."""
    text = await asyncio.get_running_loop().run_in_executor(None, call.gateway.metrics.text)
    return Response(text, headers={"content-type": CONTENT_TYPE})


ROUTES = (Route("GET", "/metrics", metrics, "metrics"),)
