"""GET /v1/models and /v1/models/{id}: what can be asked for, with the digests it can be recognised by."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from bedplate.serve.models import Target
from bedplate.serve.route import Call, Route, answer


async def models(call: Call) -> Response:
    """All of them."""
    return answer({"object": "list", "data": [_told(target) for target in call.gateway.models.all()]})


async def model(call: Call) -> Response:
    """One of them."""
    return answer(_told(call.gateway.models.find(call.path["name"])))


def _told(target: Target) -> dict[str, Any]:
    card = target.card
    return {
        "id": target.name,
        "object": "model",
        "created": target.since,
        "owned_by": "bedplate",
        "parent": target.base if target.name != target.base else None,
        "task": card.task,
        "senses": list(card.senses),
        "makes": list(card.makes),
        "context_tokens": card.context_tokens,
        "digests": dict(card.digests),
    }


ROUTES = (Route("GET", "/v1/models", models, "models"), Route("GET", "/v1/models/{name:path}", model, "models"))
