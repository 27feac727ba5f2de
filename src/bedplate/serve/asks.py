"""From a body to what a generator is asked."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Sequence

from bedplate.core.generation import Ask, Form, Part, Sampling, Tool, ToolCall, Turn
from bedplate.serve import schemas
from bedplate.serve.errors import Refusal

DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)


def sampling(body: schemas.Drawn, *, max_tokens: int, logprobs: int | None) -> Sampling:
    """How tokens are drawn.

    Args:
        body: what was asked.
        max_tokens: longest answer.
        logprobs: likeliest tokens to tell at each place; None tells none.
    """
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stop) > 16 or any(not text or len(text) > 1000 for text in stop):
        raise Refusal(400, "stop: at most 16 texts of 1 to 1000 characters", param="stop", code="invalid_value")
    temperature = 1.0 if body.temperature is None else body.temperature
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_bias(body.logit_bias or {}),
        seed=body.seed % 2**63 if body.seed is not None else secrets.randbits(31) if temperature else 0,
        n=body.n or 1,
        logprobs=logprobs,
        stop=stop,
        ignore_end=body.ignore_eos,
    )


def _bias(given: dict[str, float]) -> dict[int, float]:
    if len(given) > 1024 or not all(name.isascii() and name.isdigit() and len(name) < 9 and -100 <= value <= 100 for name, value in given.items()):
        raise Refusal(400, "logit_bias: token ids, at most 1024, each with a number between -100 and 100", param="logit_bias", code="invalid_value")
    return {int(name): value for name, value in given.items()}


def turns(messages: Sequence[schemas.Message], senses: Sequence[str]) -> tuple[Turn, ...]:
    """A conversation.

    Args:
        messages: as they came.
        senses: what the worker can take in.
    Raises:
        Refusal: a part is of another sense, or cannot be read.
    """
    made = []
    for number, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        calls: tuple[ToolCall, ...] = ()
        if isinstance(message, schemas.AssistantMessage):
            calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ())
        answers = message.tool_call_id if isinstance(message, schemas.ToolMessage) else ""
        content: str | Sequence[schemas.ContentPart] = message.content or ""
        parts = (Part("text", content),) if isinstance(content, str) else tuple(_part(part, f"messages[{number}]") for part in content)
        for part in parts:
            if part.sense not in senses:
                raise Refusal(400, f"messages[{number}]: this model takes {', '.join(senses)}, not {part.sense}", param="messages", code="unsupported_sense")
        made.append(Turn(role, parts, calls, answers))
    return tuple(made)


def _part(part: schemas.ContentPart, place: str) -> Part:
    if isinstance(part, schemas.TextPart):
        return Part("text", part.text)
    if isinstance(part, schemas.SeriesPart):
        return Part("series", data=part.input_series.data.encode())
    if isinstance(part, schemas.AudioPart):
        return Part("audio", data=_bytes(part.input_audio.data, f"{place}.input_audio.data"))
    opening = DATA_URL.match(part.image_url.url)
    if opening is None:
        hint = "write data:image/png;base64,...; nothing is fetched from the net"
        raise Refusal(400, f"{place}: the picture's url is no data: URL of an image ({hint})", param="messages", code="invalid_image_url")
    return Part("image", data=_bytes(part.image_url.url[opening.end() :], f"{place}.image_url.url"))


def _bytes(text: str, place: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, f"{place}: not base64", param="messages", code="invalid_base64") from None


def tools(body: schemas.ChatBody) -> tuple[tuple[Tool, ...], str]:
    """What may be called, and what must be.

    Raises:
        Refusal: two tools share a name, or the chosen one is not among them.
    """
    given = tuple(Tool(one.function.name, one.function.description, one.function.parameters) for one in body.tools or ())
    names = [tool.name for tool in given]
    if len(set(names)) != len(names):
        raise Refusal(400, "tools: two share a name", param="tools", code="invalid_value")
    choice = body.tool_choice.function.name if isinstance(body.tool_choice, schemas.ToolChoice) else body.tool_choice or ("auto" if given else "none")
    if isinstance(body.tool_choice, schemas.ToolChoice):
        if choice not in names or choice in ("auto", "none", "required"):
            raise Refusal(400, f"tool_choice: there is no tool {choice!r}", param="tool_choice", code="invalid_value")
    elif choice == "required" and not given:
        raise Refusal(400, "tool_choice: a tool is required, and none is given", param="tool_choice", code="invalid_value")
    return given, choice


def form(given: schemas.ResponseFormat | None) -> Form | None:
    """What the answer must look like."""
    if given is None or isinstance(given, schemas.TextForm):
        return None
    if isinstance(given, schemas.JsonForm):
        return Form(json=True)
    if isinstance(given, schemas.SchemaForm):
        return Form(schema=given.json_schema.schema_)
    return Form(regex=given.regex) if isinstance(given, schemas.RegexForm) else Form(choice=tuple(given.choice))


def prompts(given: str | list[str] | list[int] | list[list[int]], most: int, param: str) -> list[str | tuple[int, ...]]:
    """What stands in `prompt` or `input`: one or many, text or token ids.

    Raises:
        Refusal: there is nothing, or too much.
    """
    many: list[str | tuple[int, ...]]
    if isinstance(given, str):
        many = [given]
    elif given and all(isinstance(one, int) for one in given):
        many = [tuple(one for one in given if isinstance(one, int))]
    else:
        many = [one if isinstance(one, str) else tuple(one) for one in given if not isinstance(one, int)]
    if not 1 <= len(many) <= most:
        raise Refusal(400, f"{param}: {len(many)} of them; 1 to {most} can be asked at once", param=param, code="invalid_value")
    if any(isinstance(one, tuple) and not all(0 <= token < 2**31 for token in one) for one in many):
        raise Refusal(400, f"{param}: a token id is out of range", param=param, code="invalid_value")
    return many


def chat_ask(body: schemas.ChatBody, senses: Sequence[str], max_tokens: int) -> Ask:
    """The question behind POST /v1/chat/completions; who asks and whom is filled in later."""
    if body.top_logprobs is not None and not body.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    given, choice = tools(body)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    drawn = sampling(body, max_tokens=max_tokens, logprobs=logprobs)
    return Ask(turns=turns(body.messages, senses), tools=given, tool_choice=choice, form=form(body.response_format), sampling=drawn)
