"""POST /v1/forecasts: what may follow a series of numbers."""

from __future__ import annotations

from starlette.responses import Response

from bedplate.core.generation import Make
from bedplate.infer import forecast
from bedplate.serve.made import made
from bedplate.serve.route import Call, Route, answer
from bedplate.serve.schemas_made import ForecastBody


async def foresee(call: Call) -> Response:
    """The median of what may follow, and between what nine tenths and one tenth of the drawn paths lie."""
    body = await call.body(ForecastBody)
    table = "value\n" + "".join(f"{value!r}\n" for value in body.values)
    make = Make(steps=body.steps or Make.steps, known=table.encode(), points=body.points, paths=body.paths or Make.paths)
    exchange, parts, usage = await made(call, body.model, "fct-", "series", body.name, make, body.seed)
    found = forecast.decode(parts[0].data)
    told = {
        "id": exchange.id,
        "object": "forecast",
        "model": exchange.target.name,
        **{column: values.tolist() for column, values in found._asdict().items()},
        "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens, "total_tokens": sum(usage) - usage.cached_tokens},
    }
    return answer(told, headers=exchange.headers)


ROUTES = (Route("POST", "/v1/forecasts", foresee, "generate", ForecastBody),)
