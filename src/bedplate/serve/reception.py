"""Reception: from the headers of a request to who asks. A key, a token of an identity provider, or the session of a browser; without keys, this machine."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from bedplate.core.errors import PolicyError, RemoteError
from bedplate.serve.caller import SCOPES, Caller
from bedplate.serve.errors import Refusal
from bedplate.serve.keys import PREFIX, KeyRing
from bedplate.serve.oidc import Oidc
from bedplate.serve.sessions import Sessions
from bedplate.serve.settings import ServeSettings

LOCAL = Caller("local", "local", frozenset(SCOPES), "anybody on this machine")
"""Who asks where there are no keys."""
LOCAL_HOST = re.compile(rb"(localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[::1\])(:\d{1,5})?")
WAITING = 4
"""Threads that may wait for an identity provider: a slow one holds up nobody who has a key."""
SAFE = ("GET", "HEAD", "OPTIONS")


class Reception:
    """Knows callers.

    Args:
        settings: of the gateway.
    Raises:
        DataError: the keys file, or the provider's, is missing.
        IntegrityError: the keys file is damaged, or open to others.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.ring = None if settings.keys is None else KeyRing(settings.keys)
        self.oidc = Oidc(settings.oidc) if settings.oidc.issuer else None
        self._waiting = ThreadPoolExecutor(WAITING, "oidc")  # started as it is needed
        self.sessions = Sessions(settings.session_s, self._still)

    @property
    def open(self) -> bool:
        """Whether there are no keys, and anybody on this machine may ask."""
        return self.ring is None and self.oidc is None

    async def who(self, headers: Mapping[bytes, bytes], method: str) -> Caller | None:
        """Who asks; None: nobody known.

        Args:
            headers: of the request, names in lower case.
            method: of the request.
        Raises:
            Refusal: a browser was sent here by somebody else's page; or the identity provider cannot be asked.
        """
        if self.open:
            if LOCAL_HOST.fullmatch(headers.get(b"host", b"")) is None:  # a name that somebody else's DNS points at this machine
                raise Refusal(403, "without keys only requests to localhost are answered", code="wrong_host")
            same_origin(headers, method)
            return LOCAL
        if b"authorization" in headers:
            kind, _, secret = headers[b"authorization"].decode("latin-1").partition(" ")
            return await self.known(secret.strip()) if kind.lower() == "bearer" else None
        caller = self.sessions.find(headers[b"cookie"]) if b"cookie" in headers else None
        if caller is not None:
            same_origin(headers, method)
        return caller

    async def known(self, secret: str) -> Caller | None:
        """Whose key or token it is."""
        if self.ring is not None and (caller := self.ring.find(secret)) is not None:
            return caller
        if self.oidc is None or secret.startswith(PREFIX):
            return None
        if (caller := self.oidc.known(secret)) is not None:
            return caller
        try:
            return await asyncio.get_running_loop().run_in_executor(self._waiting, self.oidc.identify, secret)
        except PolicyError:
            return None
        except RemoteError as error:
            raise Refusal(503, error.message, code="identity_provider", retry_after_s=5.0) from error

    def session_s(self, secret: str) -> float:
        """Seconds that a session may last which this key or token opens: no longer than the token. That of a key ends with it, whenever that is."""
        if self.oidc is None or secret.startswith(PREFIX):
            return self.sessions.length_s
        return min(self.sessions.length_s, self.oidc.left_s(secret))

    def _still(self, caller: Caller) -> bool:
        return caller.id.startswith("oidc-") or (self.ring is not None and self.ring.still(caller))


def same_origin(headers: Mapping[bytes, bytes], method: str) -> None:
    """What a browser's cookie (or, without keys, its mere place) allows must come from our own pages."""
    if method in SAFE:
        return
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        ours = site in (b"same-origin", b"none")
    elif origin is not None:  # an older browser
        ours = origin.split(b"://")[-1] == headers.get(b"host")
    else:
        ours = b"cookie" not in headers  # no browser
    if not ours:
        raise Refusal(403, "this request comes from another site's page", code="cross_site")
