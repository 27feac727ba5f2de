"""Sessions of browsers: a key, typed once into a form, stands behind a cookie that only this gateway reads back.

The cookie is HttpOnly and SameSite=Strict, and what it does must come from the gateway's own pages (Origin, Sec-Fetch-Site), so that no other page
acts in somebody's name. Neither the key nor the cookie's value is kept, only what recognises them; a key that is revoked ends its sessions.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import NamedTuple

from bedplate.serve.caller import Caller

COOKIE = "bedplate_session"
MOST = 10_000


class _Session(NamedTuple):
    caller: Caller
    until_s: float


class Sessions:
    """Who has logged in. Lives in the event loop.

    Args:
        length_s: how long a session holds.
        still: caller -> whether its key still holds.
        clock: seconds; only differences count.
    """

    def __init__(self, length_s: float, still: Callable[[Caller], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self.length_s = length_s
        self._still, self._clock = still, clock
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()

    def open(self, caller: Caller, length_s: float | None = None) -> str:
        """A new session, of the usual length or a shorter one: the cookie's value."""
        token = secrets.token_urlsafe(32)
        self._sessions[_digest(token)] = _Session(caller, self._clock() + (self.length_s if length_s is None else length_s))
        while len(self._sessions) > MOST:
            self._sessions.popitem(last=False)
        return token

    def find(self, cookies: bytes) -> Caller | None:
        """Whose session a cookie header names; None: nobody's, or it is over."""
        token = _token(cookies)
        session = self._sessions.get(_digest(token)) if token else None
        if session is None:
            return None
        if self._clock() >= session.until_s or not self._still(session.caller):
            del self._sessions[_digest(token)]
            return None
        return session.caller

    def close(self, cookies: bytes) -> None:
        """End a session."""
        self._sessions.pop(_digest(_token(cookies)), None)


def cookie(token: str, length_s: float, secure: bool) -> str:
    """The header that sets it; an empty token takes it away."""
    return f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={int(length_s) if token else 0}" + ("; Secure" if secure else "")


def _token(cookies: bytes) -> str:
    try:
        found = SimpleCookie(cookies.decode("latin-1")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None and len(found.value) < 200 else ""


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
