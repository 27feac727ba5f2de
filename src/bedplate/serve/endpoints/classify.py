"""POST /v1/classify: what a classifying worker says of texts, or of one example of any sense."""

from __future__ import annotations

from starlette.responses import Response

from bedplate.core.prediction import Label
from bedplate.serve.predicting import predict, questions, usage
from bedplate.serve.route import Call, Route, answer
from bedplate.serve.schemas import ClassifyBody

NONE = Label(None, (), 0.0, {})


async def classify(call: Call) -> Response:
    """A label for each text."""
    body = await call.body(ClassifyBody)
    exchange, found = await predict(call, body.model, "cls-", ("classify",), questions(call, body))
    labels = [one.prediction if isinstance(one.prediction, Label) else NONE for one in found]
    told = {
        "id": exchange.id,
        "object": "list",
        "data": [
            {"object": "classification", "index": number, "label": one.label, "abstained": one.label is None, "probabilities": dict(one.probabilities)}
            for number, one in enumerate(labels)
        ],
        "model": exchange.target.name,
        "usage": usage(exchange),
    }
    return answer(told, headers=exchange.headers)


ROUTES = (Route("POST", "/v1/classify", classify, "classify", ClassifyBody),)
