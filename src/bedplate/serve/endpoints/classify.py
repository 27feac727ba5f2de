"""POST /v1/classify: what a classifying worker says of texts, or of one example of any sense."""

from __future__ import annotations

from starlette.responses import Response

from bedplate.core.generation import Ask, Label, Piece, Sampling
from bedplate.serve import asks
from bedplate.serve.errors import Refusal
from bedplate.serve.questions import read
from bedplate.serve.route import Call, Route, answer
from bedplate.serve.schemas import ClassifyBody
from bedplate.serve.stream import collected


async def classify(call: Call) -> Response:
    """A label for each text."""
    body = await call.body(ClassifyBody)
    if (body.input is None) == (body.messages is None):
        raise Refusal(400, "give input or messages, one of them", param="input", code="invalid_value")
    nothing = Sampling(max_tokens=0)
    if body.messages is not None:
        senses = call.gateway.models.find(body.model).card.senses
        questions = [Ask(turns=asks.turns(body.messages, senses), want="label", sampling=nothing)]
    else:
        inputs = asks.prompts(body.input or [], call.gateway.settings.inputs, "input")
        questions = [Ask(prompt=one, want="label", sampling=nothing) for one in inputs]
    exchange = await read(call, body.model, "cls-", questions)
    labels = [Label("", {})] * len(questions)

    def take(number: int, piece: Piece) -> None:
        if piece.label is not None:
            labels[number] = piece.label

    await collected(call, exchange, take)
    assert exchange.answer is not None
    tokens = exchange.answer.usage.prompt_tokens
    told = {
        "id": exchange.id,
        "object": "list",
        "data": [
            {"object": "classification", "index": number, "label": one.label or None, "abstained": not one.label, "probabilities": dict(one.probabilities)}
            for number, one in enumerate(labels)
        ],
        "model": exchange.target.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return answer(told, headers=exchange.headers)


ROUTES = (Route("POST", "/v1/classify", classify, "classify", ClassifyBody),)
