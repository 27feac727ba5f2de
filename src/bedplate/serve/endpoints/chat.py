"""POST /v1/chat/completions."""

from __future__ import annotations

import json
import time
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from starlette.responses import Response

from bedplate.core.generation import Piece, TokenLogprob, ToolCall, Usage
from bedplate.serve.asks import chat_ask
from bedplate.serve.exchange import Exchange
from bedplate.serve.questions import begin
from bedplate.serve.route import Call, Route, answer
from bedplate.serve.schemas import ChatBody
from bedplate.serve.stream import collected, streamed
from bedplate.serve.wording import FINISH, number, usage_json


async def chat(call: Call) -> Response:
    """The next turn of a conversation."""
    body = await call.body(ChatBody)
    exchange = await begin(call, body, "chatcmpl-", lambda target, most: [chat_ask(body, target.card.senses, most)])
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return await streamed(call, exchange, ChatWords(exchange, body.n or 1, include_usage))
    choices = [_Choice() for _ in range(body.n or 1)]
    await collected(call, exchange, lambda number, piece: choices[number].take(piece))
    assert exchange.answer is not None
    told = {
        "id": exchange.id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": exchange.target.name,
        "choices": [choice.as_json(number, body.logprobs is True) for number, choice in enumerate(choices)],
        "usage": usage_json(exchange.answer.usage),
        "system_fingerprint": exchange.target.fingerprint,
    }
    return answer(told, headers=exchange.headers)


class _Choice:
    """One answer, put together."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.calls: list[ToolCall] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish = "stop"

    def take(self, piece: Piece) -> None:
        """One more piece."""
        self.text.append(piece.text)
        self.calls += piece.tool_calls
        self.logprobs += piece.logprobs
        self.finish = FINISH.get(piece.finish, self.finish) if piece.finish else self.finish

    def as_json(self, number: int, logprobs: bool) -> dict[str, Any]:
        text = "".join(self.text)
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not self.calls else None, "refusal": None}
        if self.calls:
            message["tool_calls"] = [{"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in self.calls]
        told = {"content": [logprob_json(one) for one in self.logprobs], "refusal": None} if logprobs else None
        return {"index": number, "message": message, "logprobs": told, "finish_reason": self.finish}


class ChatWords:
    """A conversation's answer as events."""

    def __init__(self, exchange: Exchange, choices: int, include_usage: bool) -> None:
        about = {"id": exchange.id, "object": "chat.completion.chunk", "created": int(time.time()), "model": exchange.target.name}
        self._about = json.dumps({**about, "system_fingerprint": exchange.target.fingerprint})[:-1]
        self._usage = ',"usage":null' if include_usage else ""
        self._include_usage = include_usage
        self._before = [f'data: {self._about},"choices":[{{"index":{n},"delta":' for n in range(choices)]
        self._plain = [before + '{"content":' for before in self._before]
        self._plain_end = '},"logprobs":null,"finish_reason":null}]' + self._usage + "}\n\n"
        self._calls = [0] * choices

    def head(self) -> bytes:
        """Who speaks."""
        delta = '{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}]' + self._usage + "}\n\n"
        return "".join(before + delta for before in self._before).encode()

    def piece(self, number: int, piece: Piece) -> bytes:
        """One piece; what is only text, as nearly all are, takes the short way."""
        if piece.text and not piece.logprobs and not piece.tool_calls and piece.finish is None:
            return (self._plain[number] + quoted(piece.text) + self._plain_end).encode()
        events = ""
        if piece.text or piece.logprobs or piece.tool_calls:
            delta = []
            if piece.text or piece.logprobs:
                delta.append('"content":' + quoted(piece.text))
            if piece.tool_calls:
                delta.append('"tool_calls":' + json.dumps([self._call(number, call) for call in piece.tool_calls]))
            logprobs = json.dumps({"content": [logprob_json(one) for one in piece.logprobs], "refusal": None}) if piece.logprobs else "null"
            events = f'{self._before[number]}{{{",".join(delta)}}},"logprobs":{logprobs},"finish_reason":null}}]{self._usage}}}\n\n'
        if piece.finish is not None:
            events += f'{self._before[number]}{{}},"logprobs":null,"finish_reason":"{FINISH.get(piece.finish, "stop")}"}}]{self._usage}}}\n\n'
        return events.encode()

    def tail(self, usage: Usage) -> bytes:
        """What it cost, where that was asked."""
        return f'data: {self._about},"choices":[],"usage":{json.dumps(usage_json(usage))}}}\n\n'.encode() if self._include_usage else b""

    def _call(self, number: int, call: ToolCall) -> dict[str, Any]:
        index = self._calls[number]
        self._calls[number] += 1
        return {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def logprob_json(one: TokenLogprob) -> dict[str, Any]:
    """A token and what else was likely, as conversations tell it."""
    tops = [{"token": top.text, "logprob": number(top.logprob), "bytes": list(top.text.encode("utf-8", "replace"))} for top in one.top]
    said = one.said
    return {"token": said.text, "logprob": number(said.logprob), "bytes": list(said.text.encode("utf-8", "replace")), "top_logprobs": tops}


ROUTES = (Route("POST", "/v1/chat/completions", chat, "generate", ChatBody),)
