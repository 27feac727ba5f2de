"""POST /v1/rerank: texts in the order in which they answer a query, in the shape that Cohere, Jina and vLLM share."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from bedplate.core.generation import Ask, Sampling, Turn
from bedplate.core.prediction import Ranking
from bedplate.serve.errors import Refusal
from bedplate.serve.predicting import predict, usage
from bedplate.serve.route import Call, Route, answer
from bedplate.serve.schemas import RerankBody


async def rerank(call: Call) -> Response:
    """The documents, the best first."""
    body = await call.body(RerankBody)
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    if len(texts) > (most := call.gateway.settings.inputs):
        raise Refusal(400, f"documents: {len(texts)} of them; 1 to {most} can be ranked at once", param="documents", code="invalid_value")
    ask = Ask(turns=tuple(Turn.of("user", text) for text in (body.query, *texts)), want="prediction", sampling=Sampling(max_tokens=0))
    exchange, ((found, _),) = await predict(call, body.model, "rank-", ("rank",), [ask])
    if not isinstance(found, Ranking):
        raise Refusal(503, "the documents were not ranked in time", code="timeout", retry_after_s=1.0)
    results = []
    for number in found.order[: body.top_n]:
        one: dict[str, Any] = {"index": number, "relevance_score": found.scores[number]}
        results.append({**one, "document": {"text": texts[number]}} if body.return_documents else one)
    told = {"id": exchange.id, "model": exchange.target.name, "results": results, "usage": usage(exchange)}
    return answer(told, headers=exchange.headers)


ROUTES = (Route("POST", "/v1/rerank", rerank, "rerank", RerankBody),)
