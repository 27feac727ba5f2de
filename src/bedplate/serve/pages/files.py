"""The files that pages need: a style sheet and scripts. Public, as the form for logging in needs them; they say nothing of this gateway."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

from starlette.responses import Response

from bedplate.core.files import sha256_bytes
from bedplate.serve.errors import Refusal
from bedplate.serve.route import PUBLIC, Call, Route

FOLDER = Path(__file__).parent / "static"
TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


class File(NamedTuple):
    """One of them."""

    content: bytes
    type: str
    tag: str
    """Changes with the content."""


@cache
def files() -> dict[str, File]:
    """All of them by name; nothing else is given out, whatever a path says."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        content = path.read_bytes()
        found[path.name] = File(content, TYPES[path.suffix], f'"{sha256_bytes(content)[:16]}"')
    return found


async def static(call: Call) -> Response:
    """A style sheet or script of the pages."""
    file = files().get(call.path["name"])
    if file is None:
        raise Refusal(404, "there is no such file", code="not_found")
    headers = {"cache-control": "no-cache", "etag": file.tag}  # kept by the browser, and asked for again by its tag
    if call.request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.type)


ROUTES = (Route("GET", "/pages/static/{name}", static, PUBLIC),)
