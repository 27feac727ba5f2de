"""Logging in with a browser: a form that takes a key once, and the cookie that stands for it from then on."""

from __future__ import annotations

from urllib.parse import parse_qs, quote

from starlette.responses import HTMLResponse, RedirectResponse, Response

from bedplate.serve.door import READ
from bedplate.serve.pages.render import render
from bedplate.serve.reception import same_origin
from bedplate.serve.route import ANY, PUBLIC, Call, Route
from bedplate.serve.sessions import cookie


async def form(call: Call) -> Response:
    """The form."""
    if call.gateway.reception.open:
        return RedirectResponse("/", 303)  # without keys there is nothing to log in with
    return HTMLResponse(page(call.request.query_params.get("next", "/")))


async def log_in(call: Call) -> Response:
    """Take a key, give a cookie."""
    headers = {name: value for name, value in call.request.scope["headers"] if name in READ}
    same_origin(headers, "POST")
    raw = await call.request.body()
    fields = parse_qs(raw.decode("utf-8", "replace"), max_num_fields=10)
    onwards = local_path(fields.get("next", ["/"])[0])
    reception, secret = call.gateway.reception, fields.get("key", [""])[0].strip()
    caller = await reception.known(secret)
    if caller is None:
        return HTMLResponse(page(onwards, "This key is unknown, expired or revoked."), 401)
    length_s = reception.session_s(secret)
    return RedirectResponse(onwards, 303, {"set-cookie": cookie(reception.sessions.open(caller, length_s), length_s, _secure(call))})


async def log_out(call: Call) -> Response:
    """Forget the session."""
    call.gateway.reception.sessions.close(call.request.headers.get("cookie", "").encode("latin-1"))
    return RedirectResponse("/login", 303, {"set-cookie": cookie("", 0, _secure(call))})


def page(onwards: str, trouble: str = "") -> str:
    """The form."""
    return render("login.html", "/login", None, onwards=local_path(onwards), trouble=trouble)


def local_path(path: str) -> str:
    """Where to go on, on this gateway alone."""
    if not path.startswith("/") or path.startswith("//") or "\\" in path or not path.isprintable():
        return "/"
    return quote(path, safe="/?=&%-_.~")


def _secure(call: Call) -> bool:
    return call.request.scope["scheme"] == "https" or call.gateway.settings.listen.behind_tls


ROUTES = (Route("GET", "/login", form, PUBLIC), Route("POST", "/login", log_in, PUBLIC), Route("POST", "/logout", log_out, ANY))
