"""GET /health: whether it is worth asking. Public, and so says nothing else."""

from __future__ import annotations

from starlette.responses import Response

from bedplate.serve.route import PUBLIC, Call, Route, answer


async def health(call: Call) -> Response:
    """Whether the gateway takes requests."""
    if call.gateway.draining:
        return answer({"status": "draining"}, 503, {"retry-after": str(max(1, round(call.gateway.settings.listen.drain_s)))})
    return answer({"status": "ok"})


ROUTES = (Route("GET", "/health", health, PUBLIC),)
