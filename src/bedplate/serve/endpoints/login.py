"""Logging in with a browser: a form that takes a key once, and the cookie that stands for it from then on."""

from __future__ import annotations

from html import escape
from urllib.parse import parse_qs, quote

from starlette.responses import HTMLResponse, RedirectResponse, Response

from bedplate.serve.door import READ
from bedplate.serve.errors import Refusal
from bedplate.serve.reception import same_origin
from bedplate.serve.route import ANY, PUBLIC, Call, Route
from bedplate.serve.sessions import cookie

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Bedplate: log in</title></head>
<body><main><h1>Log in</h1>{trouble}
<form method="post" action="/login"><input type="hidden" name="next" value="{next}">
<p><label>Key <input name="key" type="password" autocomplete="current-password" required autofocus></label> <button>Log in</button></p></form>
</main></body></html>
"""


async def form(call: Call) -> Response:
    """The form."""
    return HTMLResponse(page(call.request.query_params.get("next", "/")))


async def log_in(call: Call) -> Response:
    """Take a key, give a cookie."""
    headers = {name: value for name, value in call.request.scope["headers"] if name in READ}
    same_origin(headers, "POST")
    if len(raw := await call.request.body()) > 20_000:
        raise Refusal(413, "that is no key", code="body_too_large")
    fields = parse_qs(raw.decode("utf-8", "replace"), max_num_fields=10)
    onwards = local_path(fields.get("next", ["/"])[0])
    caller = await call.gateway.reception.known(fields.get("key", [""])[0].strip())
    if caller is None:
        return HTMLResponse(page(onwards, "This key is unknown, expired or revoked."), 401)
    sessions = call.gateway.reception.sessions
    return RedirectResponse(onwards, 303, {"set-cookie": cookie(sessions.open(caller), sessions.length_s, _secure(call))})


async def log_out(call: Call) -> Response:
    """Forget the session."""
    call.gateway.reception.sessions.close(call.request.headers.get("cookie", "").encode("latin-1"))
    return RedirectResponse("/login", 303, {"set-cookie": cookie("", 0, _secure(call))})


def page(onwards: str, trouble: str = "") -> str:
    """The form as a page that needs no other file."""
    return PAGE.format(next=escape(local_path(onwards)), trouble=f'<p role="alert">{escape(trouble)}</p>' if trouble else "")


def local_path(path: str) -> str:
    """Where to go on, on this gateway alone."""
    if not path.startswith("/") or path.startswith("//") or "\\" in path or not path.isprintable():
        return "/"
    return quote(path, safe="/?=&%-_.~")


def _secure(call: Call) -> bool:
    return call.request.scope["scheme"] == "https" or call.gateway.settings.listen.behind_tls


ROUTES = (Route("GET", "/login", form, PUBLIC), Route("POST", "/login", log_in, PUBLIC), Route("POST", "/logout", log_out, ANY))
