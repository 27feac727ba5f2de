"""POST /v1/audio/speech: a sound from a text, as OpenAI's clients ask for it."""

from __future__ import annotations

from starlette.responses import Response

from bedplate.core.generation import Make
from bedplate.serve.made import made
from bedplate.serve.route import Call, Route
from bedplate.serve.schemas_made import SpeechBody


async def speak(call: Call) -> Response:
    """A sound from a text, as a WAV file."""
    body = await call.body(SpeechBody)
    make = Make(guidance=body.guidance, steps=body.steps or Make.steps, most_s=Make.most_s if body.seconds is None else body.seconds)
    exchange, parts, _ = await made(call, body.model, "snd-", "audio", body.input, make, body.seed)
    return Response(parts[0].data, headers=exchange.headers, media_type="audio/wav")


ROUTES = (Route("POST", "/v1/audio/speech", speak, "generate", SpeechBody),)
