"""OpenAI's API from the asking side: a question as a request's body, and what comes back as pieces. Knows words, no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any

from bedplate.core.errors import ConfigError, RemoteError
from bedplate.core.generation import THINGS, Alternative, Ask, Finish, Form, Part, Piece, TokenLogprob, ToolCall, Turn, Usage
from bedplate.core.prediction import Vector
from bedplate.infer.backends.answering import Answering

ENDS: Mapping[str, Finish] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls", "content_filter": "guard"}


def written(body: Mapping[str, Any]) -> bytes:
    """A body as it is sent.

    Raises:
        ConfigError: it holds what is no JSON.
    """
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"the question cannot be written as JSON: {error}", "a schema in it may hold NaN or an infinite number") from error


def body(ask: Ask, model: str) -> tuple[str, dict[str, Any]]:
    """(path behind the address, body of the request).

    Raises:
        ConfigError: the API has no words for it.
    """
    if ask.want == "prediction":
        raise ConfigError("OpenAI's API has no predictions", "ask a worker of the native engine")
    if ask.want in THINGS:
        raise ConfigError(f"no {ask.want} is asked of other servers", "ask a local model whose card says that it makes such")
    if ask.want == "vector":
        if ask.prompt is None and any(part.sense != "text" for turn in ask.turns for part in turn.parts):
            raise ConfigError("OpenAI's API embeds text only", "ask the native engine")
        asked = list(ask.prompt) if isinstance(ask.prompt, tuple) else ask.turns[-1].text if ask.prompt is None else ask.prompt
        return "embeddings", {"model": model, "input": asked}
    if ask.prompt is not None:
        return "completions", {"model": model, "prompt": ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt), **_drawing(ask), **_told(ask)}
    return "chat/completions", {"model": model, "messages": [_turn(turn) for turn in ask.turns], **_drawing(ask), **_chat(ask)}


def _drawing(ask: Ask) -> dict[str, Any]:
    """How tokens are drawn; what OpenAI's own API does not know only where it differs from the usual."""
    sampling = ask.sampling
    fields: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "n": sampling.n,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    usual = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    fields |= {name: getattr(sampling, name) for name, plain in usual.items() if getattr(sampling, name) != plain}
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.ignore_end:
        fields["ignore_eos"] = True
    if ask.form is not None:
        fields["response_format"] = _form(ask.form)
    return fields


def _told(ask: Ask) -> dict[str, Any]:
    """What only /completions takes."""
    fields: dict[str, Any] = {"echo": True} if ask.echo else {}
    return fields if ask.sampling.logprobs is None else {**fields, "logprobs": ask.sampling.logprobs}


def _chat(ask: Ask) -> dict[str, Any]:
    """What only /chat/completions takes."""
    fields: dict[str, Any] = {}
    if ask.sampling.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": ask.sampling.logprobs}
    if ask.tools:
        fields["tools"] = [tool.as_openai() for tool in ask.tools]
        named = ask.tool_choice not in ("auto", "none", "required")
        fields["tool_choice"] = {"type": "function", "function": {"name": ask.tool_choice}} if named else ask.tool_choice
    return fields


def _form(form: Form) -> dict[str, Any]:
    if form.json:
        return {"type": "json_object"}
    if form.schema is not None:
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(form.schema), "strict": True}}
    raise ConfigError("OpenAI's API has no words for a regular expression or a choice", "ask for a JSON schema with an enum or a pattern")


def _turn(turn: Turn) -> dict[str, Any]:
    plain = all(part.sense == "text" for part in turn.parts)
    told: dict[str, Any] = {"role": turn.role, "content": turn.text if plain else [_part(part) for part in turn.parts]}
    if turn.tool_calls:
        told["tool_calls"] = [{"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in turn.tool_calls]
    if turn.tool_call_id:
        told["tool_call_id"] = turn.tool_call_id
    return told


def _part(part: Part) -> dict[str, Any]:
    if part.sense == "text":
        return {"type": "text", "text": part.text}
    data = base64.b64encode(part.data).decode()
    if part.sense == "image":
        return {"type": "image_url", "image_url": {"url": f"data:{_kind(part.data)};base64,{data}"}}
    if part.sense == "audio":
        return {"type": "input_audio", "input_audio": {"data": data, "format": "mp3" if part.data[:3] in (b"ID3", b"\xff\xfb\x90") else "wav"}}
    raise ConfigError("OpenAI's API has no words for a series", "ask the native engine")


def _kind(data: bytes) -> str:
    for begin, kind in ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp")):
        if data.startswith(begin):
            return kind
    return "application/octet-stream"


def message(said: bytes) -> str:
    """What an error says, in one line."""
    try:
        tree = json.loads(said)
        told = tree["error"]["message"] if isinstance(tree["error"], dict) else tree["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        told = said.decode("utf-8", "replace")
    return " ".join(str(told).split()) or "nothing"


class Hearing:
    """What an endpoint says, piece by piece."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._calls: dict[int, dict[int, list[str]]] = {}
        """Choice -> place -> [id, name, arguments so far]."""
        self._finish: dict[int, Finish] = {}
        self._chunks = 0
        self._told: Usage | None = None
        self.began = False
        """Whether anything has come."""

    @property
    def usage(self) -> Usage:
        """As the endpoint tells it, else as many tokens as pieces came."""
        return self._told or Usage(0, 0, self._chunks)

    def event(self, data: bytes) -> bool:
        """One event of a stream; True: it was the last."""
        self.began = True
        if data == b"[DONE]":
            return True
        tree = _tree(data)
        for choice in _list(tree.get("choices")):
            self._choice(choice, choice.get("delta") if isinstance(choice.get("delta"), Mapping) else {"content": choice.get("text")})
        self._count(tree)
        return False

    def whole(self, data: bytes) -> None:
        """An answer that came at once."""
        self.began = True
        tree = _tree(data)
        self._count(tree)
        if self._answering.ask.want == "vector":
            rows = _list(tree.get("data"))
            vector = rows[0].get("embedding") if rows else None
            if not isinstance(vector, list) or not all(isinstance(x, (int, float)) for x in vector) or not vector:
                raise RemoteError("the endpoint gave no vector", "see whether its model embeds")
            norm = sum(x * x for x in vector) ** 0.5 or 1.0
            self._answering.vector(Piece(finish="stop", usage=self.usage, prediction=Vector(tuple(x / norm for x in vector))))
            return
        for choice in _list(tree.get("choices")):
            self._choice(choice, choice.get("message") if isinstance(choice.get("message"), Mapping) else {"content": choice.get("text")})

    def over(self) -> None:
        """The endpoint has said all: choices end, and what all cost is told with the last."""
        if self._answering.ended:
            return
        if missing := [number for number in range(self._answering.ask.sampling.n) if number not in self._finish]:
            raise RemoteError(f"the endpoint did not end answer {missing[0]}", "ask again; it may have been cut off")
        usage = self.usage
        for number, finish in sorted(self._finish.items()):
            self._answering.end(number, finish, usage)
            usage = usage._replace(completion_tokens=0)  # it was told of all together

    def _choice(self, choice: Mapping[str, Any], delta: Any) -> None:
        number = choice.get("index", 0)
        if not isinstance(number, int) or not 0 <= number < self._answering.ask.sampling.n or not isinstance(delta, Mapping):
            raise RemoteError("the endpoint answers something else than was asked", "see whether its address leads to OpenAI's API")
        text = delta.get("content")
        numbers = tuple(_numbers(choice.get("logprobs")))
        if isinstance(text, str) and (text or numbers):
            self._chunks += 1
            self._answering.say(number, text, numbers)
        for call in _list(delta.get("tool_calls")):
            place = call.get("index", len(self._calls.get(number, {})))
            held = self._calls.setdefault(number, {}).setdefault(place if isinstance(place, int) else 0, ["", "", ""])
            function = call.get("function") if isinstance(call.get("function"), Mapping) else {}
            for at, told in enumerate((call.get("id"), function.get("name"), function.get("arguments"))):
                held[at] += told if isinstance(told, str) else ""
        if isinstance(reason := choice.get("finish_reason"), str) and number not in self._finish:
            calls = [ToolCall(*held) for _, held in sorted(self._calls.get(number, {}).items())]
            if calls:
                self._answering.say(number, calls=calls)
            self._finish[number] = ENDS.get(reason, "stop")

    def _count(self, tree: Mapping[str, Any]) -> None:
        if isinstance(told := tree.get("error"), (Mapping, str)):
            raise RemoteError(f"the endpoint broke off: {message(json.dumps({'error': told}).encode())[:300]}", "ask again")
        if isinstance(usage := tree.get("usage"), Mapping):
            details = usage.get("prompt_tokens_details")
            cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
            self._told = Usage(*(number if isinstance(number, int) else 0 for number in (usage.get("prompt_tokens"), cached, usage.get("completion_tokens"))))


def _numbers(told: Any) -> Iterable[TokenLogprob]:
    """Log-probabilities in either of the API's two ways to write them."""
    if not isinstance(told, Mapping):
        return
    for one in _list(told.get("content")):
        yield TokenLogprob(_alternative(one), tuple(_alternative(other) for other in _list(one.get("top_logprobs"))))
    tokens, logs, tops = (told.get(name) or [] for name in ("tokens", "token_logprobs", "top_logprobs"))
    for place, (token, log) in enumerate(zip(tokens, logs)):
        top = tops[place] if place < len(tops) and isinstance(tops[place], Mapping) else {}
        others = sorted(top.items(), key=lambda item: -_float(item[1]))
        yield TokenLogprob(Alternative(str(token), _float(log)), tuple(Alternative(str(text), _float(other)) for text, other in others))


def _alternative(one: Mapping[str, Any]) -> Alternative:
    return Alternative(str(one.get("token", "")), _float(one.get("logprob")))


def _float(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _tree(data: bytes) -> Mapping[str, Any]:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RemoteError("the endpoint says what is no JSON", "see whether its address leads to OpenAI's API") from error
    if not isinstance(tree, Mapping):
        raise RemoteError("the endpoint says JSON of another kind", "see whether its address leads to OpenAI's API")
    return tree


def _list(value: Any) -> list[Any]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []
