"""From a body that asks for a thing to the bytes of it: who makes it, an exchange as of any answer, and what it cost."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from bedplate.core.generation import Ask, Make, Part, Piece, Sampling, Usage, Want
from bedplate.serve.errors import Refusal
from bedplate.serve.exchange import Exchange
from bedplate.serve.questions import read
from bedplate.serve.route import Call
from bedplate.serve.stream import collected


async def made(
    call: Call, model: str, prefix: str, want: Want, caption: str, make: Make, seed: int | None, n: int = 1
) -> tuple[Exchange, Sequence[Part], Usage]:
    """Things, once they are whole and written down.

    Args:
        call: the request.
        model: who is asked.
        prefix: of the answer's id.
        want: the sense.
        caption: what it is made from; the guards read it.
        make: how.
        seed: None draws one.
        n: how many.
    Raises:
        Refusal: the model makes no such things, they took too long, or the limits do not admit it.
        BedplateError: it cannot be made.
    """
    target, most = call.gateway.models.find(model), call.gateway.settings.choices
    if want not in target.card.makes:
        makers = [one.name for one in call.gateway.models.all() if want in one.card.makes]
        hint = f"ask {', '.join(makers[:5])}" if makers else "no model here does"
        raise Refusal(400, f"{target.name} makes no {want}; {hint}", param="model", code="unsupported_sense")
    if n > most:
        raise Refusal(400, f"n: at most {most}", param="n", code="invalid_value")
    sampling = Sampling(max_tokens=0, seed=secrets.randbits(31) if seed is None else seed % 2**63, n=n)
    exchange = await read(call, model, prefix, [Ask(prompt=caption, want=want, make=make, sampling=sampling)])
    parts: dict[int, Part] = {}

    def take(number: int, piece: Piece) -> None:
        if piece.part is not None:
            parts[number] = piece.part

    await collected(call, exchange, take)
    if len(parts) < n:
        raise Refusal(503, f"it took longer than the {call.gateway.settings.answer_s:g} s that an answer may take", code="timeout", retry_after_s=5.0)
    assert exchange.answer is not None
    return exchange, [parts[number] for number in range(n)], exchange.answer.usage


def usage_json(usage: Usage) -> dict[str, object]:
    """What things cost, as OpenAI tells it of pictures: units count as tokens."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"text_tokens": usage.prompt_tokens, "image_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
