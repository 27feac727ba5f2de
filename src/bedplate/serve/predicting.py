"""Predictions: what a worker with a head says of texts, or of one example of any sense. The way that classify, predict and rerank share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from bedplate.core.errors import ConfigError
from bedplate.core.generation import Ask, Finish, Piece, Sampling
from bedplate.core.prediction import Prediction
from bedplate.serve import asks
from bedplate.serve.errors import Refusal
from bedplate.serve.exchange import Exchange
from bedplate.serve.questions import read
from bedplate.serve.route import Call
from bedplate.serve.schemas import LookedAt
from bedplate.serve.stream import collected


class Predicted(NamedTuple):
    """What came of one question."""

    prediction: Prediction | None
    """None: a guard kept it back, or time was up."""
    finish: Finish


def questions(call: Call, body: LookedAt) -> list[Ask]:
    """A question for each text; or one, of a conversation's last turn.

    Raises:
        Refusal: both are given or none, or too many.
    """
    if (body.input is None) == (body.messages is None):
        raise Refusal(400, "give input or messages, one of them", param="input", code="invalid_value")
    if body.messages is not None:
        turns = asks.turns(body.messages, call.gateway.models.find(body.model).card.senses)
        return [Ask(turns=turns, want="prediction", sampling=Sampling(max_tokens=0))]
    inputs = asks.prompts(body.input or [], call.gateway.settings.inputs, "input")
    return [Ask(prompt=one, want="prediction", sampling=Sampling(max_tokens=0)) for one in inputs]


async def predict(call: Call, model: str, prefix: str, tasks: Sequence[str], asked: Sequence[Ask]) -> tuple[Exchange, list[Predicted]]:
    """The predictions of a worker, in order, written down.

    Args:
        call: the request.
        model: who is asked.
        prefix: of the answer's id.
        tasks: one of them must be the worker's.
        asked: the questions.
    Raises:
        Refusal: there is no such model, it does not fit, or the limits do not admit it.
        BedplateError: the worker does something else, or cannot read a question.
    """
    target = call.gateway.models.find(model)
    if target.card.task not in tasks:
        able = [one.name for one in call.gateway.models.all() if one.card.task in tasks]
        hint = f"those that do: {', '.join(able)}" if able else f"adapt the base first: {', '.join(tasks)}"
        raise ConfigError(f"{target.name} does not {' or '.join(tasks)}: its task is {target.card.task}", hint)
    exchange = await read(call, model, prefix, asked)
    found = [Predicted(None, "error")] * len(asked)

    def take(number: int, piece: Piece) -> None:
        if piece.finish is not None:
            found[number] = Predicted(piece.prediction, piece.finish)

    await collected(call, exchange, take)
    return exchange, found


def usage(exchange: Exchange) -> dict[str, Any]:
    """What it cost, where nothing is said."""
    assert exchange.answer is not None
    tokens = exchange.answer.usage.prompt_tokens
    return {"prompt_tokens": tokens, "total_tokens": tokens}
