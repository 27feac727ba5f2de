"""Errors as clients know them: OpenAI's shape, a status, and when to come back.

What a client did wrong is told with its hint. What went wrong here is told as no more than that, with the request's number: the log has the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from bedplate.core.errors import BedplateError, ConfigError, DataError, PolicyError, RemoteError, ResourceError, StateError, did_you_mean

KINDS: dict[int, str] = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
"""Status -> OpenAI's type, where it is not the usual one."""

STATUS: tuple[tuple[type[BedplateError], int], ...] = (
    (ConfigError, 400), (DataError, 400), (StateError, 409), (PolicyError, 403), (ResourceError, 429), (RemoteError, 502),
)  # fmt: skip
"""Class of an error -> status; any other is 500."""


class Refusal(Exception):
    """An answer that is an error, complete: what the client gets."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after_s = status, message, code, param, retry_after_s
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(max(1, round(retry_after_s + 0.499)))

    def shape(self) -> dict[str, Any]:
        """The object below "error"."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    def body(self) -> bytes:
        """The whole answer."""
        return json.dumps({"error": self.shape()}, ensure_ascii=False).encode()


def refusal(error: BaseException, request_id: str = "") -> Refusal:
    """What the client is told of an error, whatever its class."""
    if isinstance(error, Refusal):
        return error
    status = next((status for cls, status in STATUS if isinstance(error, cls)), 500)
    if status >= 500 or not isinstance(error, BedplateError):
        what = "an endpoint behind this gateway failed" if status == 502 else "this gateway failed"
        return Refusal(status, f"{what}; its log knows more of request {request_id}", code="remote_error" if status == 502 else "internal_error")
    told = f"{error.message} ({error.hint})" if error.hint else error.message
    retry_after_s = getattr(error, "retry_after_s", None)
    if status == 429 and retry_after_s is None:
        retry_after_s = 1.0
    return Refusal(status, told, code="busy" if status == 429 else None, retry_after_s=retry_after_s)


def invalid(error: ValidationError, top: Iterable[str], nested: Iterable[str]) -> Refusal:
    """A body that does not fit its schema: the most telling of its faults.

    Args:
        error: what pydantic found.
        top: names that the body may hold.
        nested: names that objects within it may hold.
    """
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    fault = max(faults, key=lambda e: (e["type"] == "extra_forbidden", len(e["loc"])))
    place = [part for part in fault["loc"] if isinstance(part, int) or part.isidentifier()]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if fault["type"] == "extra_forbidden":
        word = str(fault["loc"][-1])
        hint = did_you_mean(word, top if len(fault["loc"]) == 1 else nested)
        return Refusal(400, f"unknown key {path or word!r}; {hint}", code="unknown_parameter", param=path or word[:100])
    if fault["type"] == "json_invalid":
        return Refusal(400, f"the body is no JSON: {fault['msg']}", code="invalid_json")
    return Refusal(400, f"{path or 'body'}: {fault['msg']}", code="missing_parameter" if fault["type"] == "missing" else "invalid_value", param=path or None)
