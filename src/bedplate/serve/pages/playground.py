"""The playground: ask a model, or two side by side. What it does it does through /v1/chat/completions, as every client; here is only the page."""

from __future__ import annotations

from starlette.responses import Response

from bedplate.serve.pages.page import page
from bedplate.serve.route import Call, Route


async def playground(call: Call) -> Response:
    """The page for people: ask a model, or two side by side."""
    gateway = call.gateway
    models = [target for target in gateway.models.all() if target.card.task == "generate"]
    return page(
        call,
        "playground.html",
        models=models,
        answer_tokens=gateway.settings.answer_tokens,
        routed=gateway.policy.routes is not None,
        receipts=gateway.audit is not None and call.caller.may("receipts"),
    )


ROUTES = (Route("GET", "/", playground, "generate"),)
