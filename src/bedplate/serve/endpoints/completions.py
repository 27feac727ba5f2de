"""POST /v1/completions: a text, or several, continued as they are; with echo and logprobs, what lm-eval's local-completions needs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from starlette.responses import Response

from bedplate.core.generation import Alternative, Ask, Piece, TokenLogprob, Usage
from bedplate.serve import asks
from bedplate.serve.exchange import Exchange
from bedplate.serve.models import Target
from bedplate.serve.questions import begin
from bedplate.serve.route import Call, Route, answer
from bedplate.serve.schemas import CompletionBody
from bedplate.serve.stream import collected, streamed
from bedplate.serve.wording import FINISH, number, usage_json

USUAL_TOKENS = 16
"""Longest answer where the body sets none, as OpenAI has it."""


async def complete(call: Call) -> Response:
    """What follows a text."""
    body = await call.body(CompletionBody)
    prompts = asks.prompts(body.prompt, call.gateway.settings.inputs, "prompt")
    form = asks.form(body.response_format)

    def make(_: Target, most: int) -> Sequence[Ask]:
        sampling = asks.sampling(body, max_tokens=most, logprobs=body.logprobs)
        return [Ask(prompt=prompt, sampling=sampling, form=form, echo=body.echo is True) for prompt in prompts]

    exchange = await begin(call, body, "cmpl-", make, USUAL_TOKENS)
    choices = [_Choice() for _ in range(len(prompts) * (body.n or 1))]
    if body.stream:
        return await streamed(call, exchange, CompletionWords(exchange, choices, body.stream_options is not None and body.stream_options.include_usage))
    await collected(call, exchange, lambda number, piece: choices[number].take(piece))
    assert exchange.answer is not None
    told = {
        "id": exchange.id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": exchange.target.name,
        "choices": [choice.as_json(number, body.logprobs is not None) for number, choice in enumerate(choices)],
        "usage": usage_json(exchange.answer.usage),
        "system_fingerprint": exchange.target.fingerprint,
    }
    return answer(told, headers=exchange.headers)


class _Choice:
    """One continuation, put together."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish = "stop"
        self.offset = 0
        """Characters that were told with their logprobs."""

    def take(self, piece: Piece) -> None:
        """One more piece."""
        self.text.append(piece.text)
        self.logprobs += piece.logprobs
        self.finish = FINISH.get(piece.finish, self.finish) if piece.finish else self.finish

    def as_json(self, number: int, logprobs: bool) -> dict[str, Any]:
        return {"index": number, "text": "".join(self.text), "logprobs": self.told(self.logprobs) if logprobs else None, "finish_reason": self.finish}

    def told(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Logprobs as continuations tell them: columns, and where each token begins."""
        offsets = []
        for one in logprobs:
            offsets.append(self.offset)
            self.offset += len(one.said.text)
        return {
            "tokens": [one.said.text for one in logprobs],
            "token_logprobs": [number(one.said.logprob) for one in logprobs],
            "top_logprobs": [_top(one.top) for one in logprobs],
            "text_offset": offsets,
        }


def _top(alternatives: Sequence[Alternative]) -> dict[str, float | None] | None:
    """Token -> logprob; the likelier of two that look alike. Null where nothing is known, as of the first token of an echo."""
    told: dict[str, float | None] = {}
    for one in alternatives:
        told.setdefault(one.text, number(one.logprob))
    return told or None


class CompletionWords:
    """Continuations as events."""

    def __init__(self, exchange: Exchange, choices: Sequence[_Choice], include_usage: bool) -> None:
        about = {"id": exchange.id, "object": "text_completion", "created": int(time.time()), "model": exchange.target.name}
        self._about = json.dumps({**about, "system_fingerprint": exchange.target.fingerprint})[:-1]
        self._usage = ',"usage":null' if include_usage else ""
        self._include_usage = include_usage
        self._choices = choices
        self._before = [f'data: {self._about},"choices":[{{"index":{n},"text":' for n in range(len(choices))]

    def head(self) -> bytes:
        """Nothing comes before the text."""
        return b""

    def piece(self, number: int, piece: Piece) -> bytes:
        """One piece."""
        if not (piece.text or piece.logprobs or piece.finish):
            return b""
        logprobs = json.dumps(self._choices[number].told(piece.logprobs)) if piece.logprobs else "null"
        finish = f'"{FINISH.get(piece.finish, "stop")}"' if piece.finish else "null"
        return f'{self._before[number]}{quoted(piece.text)},"logprobs":{logprobs},"finish_reason":{finish}}}]{self._usage}}}\n\n'.encode()

    def tail(self, usage: Usage) -> bytes:
        """What it cost, where that was asked."""
        return f'data: {self._about},"choices":[],"usage":{json.dumps(usage_json(usage))}}}\n\n'.encode() if self._include_usage else b""


ROUTES = (Route("POST", "/v1/completions", complete, "generate", CompletionBody),)
