"""POST /admin/reload: read the settings again, as SIGHUP does; and what is under way, for whoever runs the gateway."""

from __future__ import annotations

from starlette.responses import Response

from bedplate.serve.route import Call, Route, answer


async def reload(call: Call) -> Response:
    """Take over changed settings, keys, guards, routes and adapters; what is under way goes on."""
    return answer({"changed": await call.gateway.reload()})


async def under_way(call: Call) -> Response:
    """The answers under way."""
    return answer({"draining": call.gateway.draining, "exchanges": [exchange.told() for exchange in call.gateway.exchanges]})


ROUTES = (Route("POST", "/admin/reload", reload, "admin"), Route("GET", "/admin/exchanges", under_way, "admin"))
