"""From a body to an exchange: who answers, how long the answer may be, and that it fits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from bedplate.core.generation import Ask
from bedplate.serve.errors import Refusal
from bedplate.serve.exchange import Exchange
from bedplate.serve.guarded import texts_of
from bedplate.serve.models import Target
from bedplate.serve.route import Call
from bedplate.serve.schemas import Drawn

MOST_CHARACTERS_A_TOKEN = 32
"""No text has more in the mean. Beyond it is refused unread: reading sixteen megabytes to say that they are too many took a core twenty seconds."""
Asker = Callable[[Target, int], Sequence[Ask]]
"""(who answers, longest answer) -> the questions."""


async def begin(call: Call, body: Drawn, prefix: str, make: Asker, default_tokens: int | None = None) -> Exchange:
    """An exchange about text.

    Args:
        call: the request.
        body: what it asks.
        prefix: of the answer's id.
        make: the questions.
        default_tokens: longest answer where the body sets none; None: as the settings say.
    Raises:
        Refusal: there is no such model, it does not fit, or the limits do not admit it.
        BedplateError: the generator refuses it.
    """
    settings = call.gateway.settings
    target = call.gateway.models.find(body.model)
    if (body.n or 1) > settings.choices:
        raise Refusal(400, f"n: at most {settings.choices}", param="n", code="invalid_value")
    if body.stream_options is not None and not body.stream:
        raise Refusal(400, "stream_options needs stream: true", param="stream_options", code="invalid_value")
    wanted = getattr(body, "max_completion_tokens", None) or body.max_tokens
    if wanted is not None and wanted > target.card.context_tokens:
        told = f"max_tokens: {wanted} are more than the {target.card.context_tokens} that {target.name} holds"
        raise Refusal(400, told, param="max_tokens", code="invalid_value")
    usual = settings.answer_tokens if default_tokens is None else default_tokens
    asks = [replace(ask, labels=call.labels) for ask in make(target, usual if wanted is None else wanted)]
    counts = await count(target, asks)
    if wanted is None:  # what the context leaves
        asks = [replace(ask, sampling=replace(ask.sampling, max_tokens=_room(target, ask, taken))) for ask, taken in zip(asks, counts)]
    return await Exchange.begin(call.gateway, call.caller, prefix, target, asks, sum(counts))


async def read(call: Call, model: str, prefix: str, asks: Sequence[Ask], fits: bool = False) -> Exchange:
    """An exchange about what is read: vectors, labels, or with `fits` an answer as long as the context leaves.

    Raises:
        Refusal: there is no such model, it does not fit, or the limits do not admit it.
        BedplateError: the generator refuses it.
    """
    target = call.gateway.models.find(model)
    asks = [replace(ask, labels=call.labels) for ask in asks]
    counts = await count(target, asks)
    if fits:
        asks = [replace(ask, sampling=replace(ask.sampling, max_tokens=_room(target, ask, taken))) for ask, taken in zip(asks, counts)]
    return await Exchange.begin(call.gateway, call.caller, prefix, target, asks, sum(counts))


async def count(target: Target, asks: Sequence[Ask]) -> list[int]:
    """Positions that each question takes; counted off the loop, as that reads them.

    Raises:
        Refusal: one alone is longer than the model's context.
        BedplateError: one cannot be read.
    """
    most = MOST_CHARACTERS_A_TOKEN * target.card.context_tokens
    if (written := max(sum(map(len, texts_of(ask))) for ask in asks)) > most:
        told = f"{written} characters are more than the {target.card.context_tokens} tokens that {target.name} holds"
        raise Refusal(400, told, code="context_length_exceeded")
    asks = [replace(ask, worker=target.card.name) for ask in asks]
    counts = await asyncio.get_running_loop().run_in_executor(None, lambda: [target.generator.count(ask) for ask in asks])
    longest = max((taken for ask, taken in zip(asks, counts) if ask.want != "prediction"), default=0)  # a prediction may read many sequences, one by one
    if longest > target.card.context_tokens:
        raise Refusal(400, f"{longest} tokens are more than the {target.card.context_tokens} that {target.name} holds", code="context_length_exceeded")
    return counts


def _room(target: Target, ask: Ask, taken: int) -> int:
    return max(1, min(ask.sampling.max_tokens, target.card.context_tokens - taken))
