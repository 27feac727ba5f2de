"""POST /v1/predict: what a worker says of texts, or of one example of any sense: a number, stretches of the text, a label."""

from __future__ import annotations

from starlette.responses import Response

from bedplate.core.prediction import as_json
from bedplate.serve.predicting import predict, questions, usage
from bedplate.serve.route import Call, Route, answer
from bedplate.serve.schemas import PredictBody
from bedplate.serve.wording import FINISH

TASKS = ("regress", "extract", "classify")


async def predicted(call: Call) -> Response:
    """A prediction for each text."""
    body = await call.body(PredictBody)
    exchange, found = await predict(call, body.model, "pred-", TASKS, questions(call, body))
    data = []
    for number, one in enumerate(found):
        said = {} if one.prediction is None else as_json(one.prediction)
        data.append({"object": "prediction", "index": number, **said, "finish_reason": FINISH.get(one.finish, "stop")})
    told = {"id": exchange.id, "object": "list", "task": exchange.target.card.task, "data": data, "model": exchange.target.name, "usage": usage(exchange)}
    return answer(told, headers=exchange.headers)


ROUTES = (Route("POST", "/v1/predict", predicted, "predict", PredictBody),)
