"""POST /v1/embeddings."""

from __future__ import annotations

import base64
import struct

from starlette.responses import Response

from bedplate.core.generation import Ask, Piece, Sampling
from bedplate.core.prediction import Vector
from bedplate.serve import asks
from bedplate.serve.errors import Refusal
from bedplate.serve.questions import read
from bedplate.serve.route import Call, Route, answer
from bedplate.serve.schemas import EmbeddingBody
from bedplate.serve.stream import collected


async def embed(call: Call) -> Response:
    """A vector for each text."""
    body = await call.body(EmbeddingBody)
    inputs = asks.prompts(body.input, call.gateway.settings.inputs, "input")
    exchange = await read(call, body.model, "emb-", [Ask(prompt=one, want="vector", sampling=Sampling(max_tokens=0)) for one in inputs])
    vectors: list[tuple[float, ...]] = [()] * len(inputs)

    def take(number: int, piece: Piece) -> None:
        if isinstance(piece.prediction, Vector):
            vectors[number] = piece.prediction.vector

    await collected(call, exchange, take)
    assert exchange.answer is not None
    width = len(vectors[0])
    if body.dimensions not in (None, width):
        raise Refusal(400, f"dimensions: {exchange.target.name} makes {width}, and they are not cut", param="dimensions", code="invalid_value")
    tokens = exchange.answer.usage.prompt_tokens
    told = {
        "object": "list",
        "data": [{"object": "embedding", "index": number, "embedding": _written(one, body.encoding_format)} for number, one in enumerate(vectors)],
        "model": exchange.target.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return answer(told, headers=exchange.headers)


def _written(vector: tuple[float, ...], how: str) -> list[float] | str:
    """As numbers, or as base64 of little-endian floats of four bytes."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if how == "base64" else list(vector)


ROUTES = (Route("POST", "/v1/embeddings", embed, "embed", EmbeddingBody),)
