"""POST /v1/images/generations: pictures from a caption, as OpenAI's clients ask for them."""

from __future__ import annotations

import base64
import time

from starlette.responses import Response

from bedplate.core.generation import Make
from bedplate.serve.errors import Refusal
from bedplate.serve.made import made, usage_json
from bedplate.serve.route import Call, Route, answer
from bedplate.serve.schemas_made import ImageBody


async def generate(call: Call) -> Response:
    """Pictures from a caption."""
    body = await call.body(ImageBody)
    if body.response_format == "url":
        raise Refusal(400, "response_format: the gateway keeps no pictures to point at; ask for b64_json", param="response_format", code="invalid_value")
    side = None
    if body.size not in (None, "auto"):
        width, height = map(int, body.size.split("x"))
        side = (height, width)
    make = Make(guidance=body.guidance, steps=body.steps or Make.steps, side=side)
    exchange, parts, usage = await made(call, body.model, "img-", "image", body.prompt, make, body.seed, body.n or 1)
    told = {
        "created": int(time.time()),
        "data": [{"b64_json": base64.b64encode(part.data).decode()} for part in parts],
        "output_format": "png",
        "usage": usage_json(usage),
    }
    return answer(told, headers=exchange.headers)


ROUTES = (Route("POST", "/v1/images/generations", generate, "generate", ImageBody),)
