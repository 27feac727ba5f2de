"""Rendering: a page from a template, in the frame that all pages share. Everything that is shown is text and escaped; what a model or a log says
cannot draw, link, reorder or hide anything."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

import bedplate
from bedplate.core.units import format_count, format_seconds
from bedplate.serve.caller import Caller

TEMPLATES = Path(__file__).parent / "templates"

PAGES: tuple[tuple[str, str, str], ...] = (
    ("/", "Playground", "generate"),
    ("/pages/models", "Models", "models"),
    ("/pages/requests", "Requests", ""),
    ("/pages/runs", "Runs", "admin"),
    ("/docs", "API", ""),
)
"""(path, name, scope it needs) of what the frame links to."""

HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]")
"""Characters that a reader does not see but that change what is seen, or what a terminal does with a copy. text.js has the same."""


def render(template: str, path: str, caller: Caller | None, open_to_all: bool = False, **values: Any) -> str:
    """A page.

    Args:
        template: name of a file in templates/.
        path: of the request: the link to this page is marked.
        caller: who looks; None: nobody known, and there is nothing to link to.
        open_to_all: whether there are no keys, and so nobody to log out.
        values: what it shows.
    """
    caller = caller if caller is not None and caller.tenant else None
    links = [] if caller is None else [(to, name, _is_at(path, to)) for to, name, scope in PAGES if not scope or caller.may(scope)]
    frame = {"version": bedplate.__version__, "caller": caller, "links": links, "open_to_all": open_to_all}
    return _templates().get_template(template).render(**frame, **values)


def wants_page(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a browser asked for a page, rather than a program for data."""
    return any(name == b"accept" and b"text/html" in value for name, value in headers)


def shown(text: object) -> str:
    """A text with its hidden characters made visible."""
    return HIDDEN.sub(lambda found: _mark(ord(found[0])), str(text))


def _mark(code: int) -> str:
    if code < 0x20 or code == 0x7F:  # Unicode has a picture of each
        return chr(0x2400 + code) if code < 0x20 else "\u2421"
    return f"[U+{code:04X}]"


def _is_at(path: str, to: str) -> bool:
    return path == to or (to != "/" and path.startswith(to + "/")) or (to == "/pages/requests" and path.startswith("/pages/receipts"))


@cache
def _templates() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"shown": shown, "count": _count, "seconds": _seconds, "share": _share, "moment": _moment}
    return environment


def _count(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:,.0f}" if abs(value) < 100_000 else format_count(value)


def _seconds(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f} s" if value < 10 else format_seconds(value)


def _share(value: float) -> str:
    return f"{100 * value:.0f}%"


def _moment(value: float | str) -> str:
    """A time as people read it, in UTC: from seconds since 1970, or ISO 8601."""
    try:
        read = dt.datetime.fromtimestamp(value, dt.UTC) if isinstance(value, (int, float)) else dt.datetime.fromisoformat(value).astimezone(dt.UTC)
    except (ValueError, OverflowError, OSError):
        return shown(value)
    return read.strftime("%Y-%m-%d %H:%M:%S UTC")
