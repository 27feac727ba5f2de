"""POST /v1/audio/transcriptions: words from a sound, where a model hears; a form with a file, as OpenAI's clients send it."""

from __future__ import annotations

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bedplate.core.errors import did_you_mean
from bedplate.core.generation import Ask, Part, Piece, Sampling, Turn
from bedplate.serve.errors import Refusal
from bedplate.serve.questions import read
from bedplate.serve.route import Call, Route, answer
from bedplate.serve.stream import collected

FIELDS = ("file", "model", "language", "prompt", "response_format", "temperature", "stream")
"""Of the form. The language is told to the model as a word; a prompt comes before the sound."""
FORMATS = ("json", "text")


async def transcribe(call: Call) -> Response:
    """The words of a sound."""
    fields, sound = await _form(call)
    target = call.gateway.models.find(fields.get("model", ""))
    if "audio" not in target.card.senses:
        raise Refusal(400, f"{target.name} takes {', '.join(target.card.senses)}, not audio", param="model", code="unsupported_sense")
    if (how := fields.get("response_format", "json")) not in FORMATS:
        raise Refusal(400, f"response_format: {how[:50]!r}; {did_you_mean(how[:50], FORMATS)}", param="response_format", code="invalid_value")
    if fields.get("stream", "false").lower() not in ("false", "0", ""):
        raise Refusal(400, "stream: transcriptions come whole", param="stream", code="invalid_value")
    language = f" in {fields['language'][:40]}" if fields.get("language") else ""
    wanted = f"Transcribe the recording{language}."
    parts = tuple(Part("text", text) for text in (fields.get("prompt", ""), wanted) if text)
    sampling = Sampling(max_tokens=min(call.gateway.settings.answer_tokens, target.card.context_tokens), temperature=_temperature(fields))
    exchange = await read(call, target.name, "trans-", [Ask(turns=(Turn("user", (*parts, Part("audio", data=sound))),), sampling=sampling)], fits=True)
    said: list[str] = []

    def take(_: int, piece: Piece) -> None:
        said.append(piece.text)

    await collected(call, exchange, take)
    text = "".join(said).strip()
    if how == "text":
        return Response(text + "\n", headers=exchange.headers, media_type="text/plain")
    return answer({"text": text}, headers=exchange.headers)


async def _form(call: Call) -> tuple[dict[str, str], bytes]:
    """The form's fields, and the file's bytes."""
    if not call.request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refusal(400, "send a form: multipart/form-data with file and model", code="invalid_form")
    fields: dict[str, str] = {}
    sound = b""
    try:
        async with call.request.form(max_files=1, max_fields=len(FIELDS) + 8, max_part_size=65_536) as form:
            for name, value in form.multi_items():
                if name not in FIELDS:
                    raise Refusal(400, f"unknown field {name[:100]!r}; {did_you_mean(name[:100], FIELDS)}", param=name[:100], code="unknown_parameter")
                if isinstance(value, UploadFile):
                    sound = await value.read()
                else:
                    fields[name] = value
    except HTTPException as error:
        raise Refusal(400, f"the form cannot be read: {error.detail}", code="invalid_form") from None
    if not sound:
        raise Refusal(400, "file: a sound file is needed", param="file", code="missing_parameter")
    return fields, sound


def _temperature(fields: dict[str, str]) -> float:
    try:
        value = float(fields.get("temperature", "0"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise Refusal(400, "temperature: between 0 and 1", param="temperature", code="invalid_value")
    return value


ROUTES = (Route("POST", "/v1/audio/transcriptions", transcribe, "transcribe"),)
