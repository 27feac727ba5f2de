"""OIDC: bearer tokens of an identity provider, beside keys or in their place.

    oidc = Oidc(OidcSettings(issuer="https://id.example", audience="bedplate", keys_file=Path("jwks.json")))
    caller = oidc.identify(token)        # may fetch keys: call it in a thread
    caller = oidc.known(token)           # the same from memory, for tokens seen before; None: not known

The algorithm is what the key is made for, never what the token asks for: `none`, HMAC with a public key as its secret, and any algorithm
that is not in the settings are refused. A token of an unknown key makes the keys be fetched again, at most every ten seconds.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jwt

from bedplate.core.errors import ConfigError, DataError, PolicyError, RemoteError, did_you_mean
from bedplate.serve.caller import SCOPES, Caller
from bedplate.serve.jwks import ProviderKey, fetch_keys, read_keys, safe

Algorithm = Literal["RS256", "ES256", "EdDSA"]
LARGEST_TOKEN_BYTES = 16_384
MOST_KNOWN = 10_000
UNKNOWN_S = 10.0
"""Tokens of unknown keys make the keys be fetched at most so often: a provider that changed its keys is understood soon, and nobody can have it flooded."""


@dataclass(frozen=True)
class OidcSettings:
    """Whose tokens are taken, and what they allow."""

    issuer: str = ""
    """The provider, exactly as its tokens name it. "": no tokens are taken."""
    audience: str = "bedplate"
    """The name under which the provider knows this gateway; a token for anybody else is refused."""
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256", "EdDSA")
    """How tokens may be signed."""
    keys_file: Path | None = None
    """The provider's keys (a JWKS) in a file, read again when it changes ..."""
    keys_url: str = ""
    """... or where to fetch them, with https."""
    refetch_s: float = 300.0
    """Keys are fetched anew after so long; for a token of an unknown key at once, at most every ten seconds."""
    leeway_s: float = 30.0
    """How far the two clocks may be apart."""
    longest_s: float = 86_400.0
    """Tokens that are valid for longer are refused."""
    tenant_claim: str = "tenant"
    """The claim that names the tenant; it must be there."""
    scope_claim: str = "scope"
    """The claim with what the token allows: words in a text, or a list."""
    scopes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """A word of that claim -> our scopes. Empty: words that are our scopes count as themselves, except admin, which must be named here."""
    labels_claim: str = ""
    """The claim with classes of the caller's data; "": none."""

    def __post_init__(self) -> None:
        if not self.issuer:
            return
        if not self.audience or not self.algorithms:
            raise ConfigError("oidc.audience and oidc.algorithms cannot be empty", 'audience = "bedplate"')
        if (self.keys_file is None) == (not self.keys_url):
            raise ConfigError("give the provider's keys as a file or as an address, one of them", "oidc.keys_file or oidc.keys_url")
        if self.keys_url and not safe(self.keys_url):
            raise ConfigError(f"{self.keys_url} is not https", "whoever can change the keys on the way can be anybody")
        if not (self.leeway_s >= 0 and self.refetch_s > 0 and self.longest_s > 0):
            raise ConfigError("oidc.leeway_s is 0 or more, oidc.refetch_s and oidc.longest_s are above 0", "30, 300, 86400")
        for scope in (scope for scopes in self.scopes.values() for scope in scopes):
            if scope not in SCOPES:
                raise ConfigError(f"there is no scope {scope!r}", did_you_mean(scope, SCOPES))


class _Known(NamedTuple):
    caller: Caller
    until_s: float
    """When it is to be looked at again."""
    expires_s: float


Fetch = Callable[[str], bytes]
"""Address -> what lies there; raises OSError."""


class Oidc:
    """Recognises tokens. Safe from any thread.

    Args:
        settings: whose tokens.
        fetch: gets the keys; by default with https, a limit of a MiB, and no redirects.
        clock: seconds since 1970.
    Raises:
        DataError: the file with the keys is missing or damaged.
    """

    def __init__(self, settings: OidcSettings, fetch: Fetch | None = None, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self._fetch, self._clock = fetch or fetch_keys, clock
        self._turn = threading.Lock()
        self._fetching = threading.Lock()
        self._keys: dict[str, ProviderKey] = {}
        self._fetched_s: float | None = None
        self._mark: tuple[int, int] | None = None
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        if settings.keys_file is not None:
            self._read_file(settings.keys_file)

    def known(self, token: str) -> Caller | None:
        """Whose token it is, if it was seen before and still holds. Never waits."""
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        with self._turn:
            found = self._known.get(digest)
            if found is None or self._clock() >= found.until_s:
                self._known.pop(digest, None)
                return None
            return found.caller

    def left_s(self, token: str) -> float:
        """Seconds for which a token that was recognised a moment ago still holds; 0: it is not known."""
        with self._turn:
            found = self._known.get(hashlib.sha256(token.encode("utf-8", "replace")).digest())
        return 0.0 if found is None else max(0.0, found.expires_s - self._clock())

    def identify(self, token: str) -> Caller:
        """Whose token it is.

        Raises:
            PolicyError: it is malformed, not this provider's, not for us, not valid now, or signed in a way that is not taken.
            RemoteError: the provider's keys cannot be had.
        """
        claims = self._claims(token)
        caller = self._caller(claims)
        # Checked again within a minute or so: a key that the provider withdraws stops counting.
        expires_s = float(claims["exp"]) + self.settings.leeway_s
        until_s = min(expires_s, self._clock() + min(60.0, self.settings.refetch_s))
        with self._turn:
            self._known[hashlib.sha256(token.encode()).digest()] = _Known(caller, until_s, expires_s)
            while len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
        return caller

    def _claims(self, token: str) -> Mapping[str, Any]:
        if len(token) > LARGEST_TOKEN_BYTES or token.count(".") != 2 or not token.isascii():
            raise _refused("it is no signed token")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise _refused("it is no signed token") from error
        algorithm, name = header.get("alg"), header.get("kid")
        if algorithm not in self.settings.algorithms or header.get("crit") is not None:
            raise _refused("it is signed in a way that is not taken here")
        key = self._key(name if isinstance(name, str) else "")
        if key.algorithm != algorithm:
            raise _refused("it asks for another algorithm than its key is made for")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],
                audience=self.settings.audience,
                issuer=self.settings.issuer,
                # Times are checked below, by the clock that was handed in.
                options={"require": ["exp", "iat", "iss", "aud", "sub"], "verify_exp": False, "verify_nbf": False, "verify_iat": False},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise _refused(f"it does not hold ({type(error).__name__})") from error
        self._check_times(claims)
        return claims

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now_s, leeway_s = self._clock(), self.settings.leeway_s
        begins = [claims[name] for name in ("iat", "nbf") if name in claims]
        if not all(type(moment) in (int, float) and abs(moment) < 1e12 for moment in (*begins, claims["exp"])):
            raise _refused("its times are no numbers")
        if now_s >= claims["exp"] + leeway_s:
            raise _refused("it has expired")
        if any(moment > now_s + leeway_s for moment in begins):
            raise _refused("it is not valid yet")
        if claims["exp"] - claims["iat"] > self.settings.longest_s:
            raise _refused(f"it is valid for more than {self.settings.longest_s:g} s")

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        tenant, subject = _at(claims, self.settings.tenant_claim), claims["sub"]
        if not isinstance(tenant, str) or not tenant.strip() or not isinstance(subject, str) or not subject:
            raise _refused(f"it names no tenant (claim {self.settings.tenant_claim})")
        words = _words(_at(claims, self.settings.scope_claim))
        table = self.settings.scopes or {scope: (scope,) for scope in SCOPES if scope != "admin"}
        scopes = {scope for word in words for scope in table.get(word, ())}
        labels = _words(_at(claims, self.settings.labels_claim)) if self.settings.labels_claim else []
        name = hashlib.sha256(f"{self.settings.issuer}\n{subject}".encode()).hexdigest()[:16]
        return Caller(f"oidc-{name}", tenant, frozenset(scopes), "", tuple(labels))

    def _key(self, name: str) -> ProviderKey:
        if self.settings.keys_file is not None:
            self._read_file(self.settings.keys_file)
        elif name not in self._keys or self._fetched_s is None or self._clock() - self._fetched_s >= self.settings.refetch_s:
            self._refetch(name)
        keys = self._keys
        if name in keys:
            return keys[name]
        if not name and len(keys) == 1:  # a provider with one key need not name it
            return next(iter(keys.values()))
        raise _refused("it is signed by a key that the provider does not list")

    def _refetch(self, name: str) -> None:
        if not self._fetching.acquire(blocking=not self._keys):  # before the first keys are here, all wait for them
            if name in self._keys:
                return
            raise RemoteError(f"the keys of {self.settings.issuer} are being fetched", "ask again in some seconds")
        try:
            now_s = self._clock()
            soonest_s = self.settings.refetch_s if name in self._keys else min(self.settings.refetch_s, UNKNOWN_S)
            if self._fetched_s is not None and now_s - self._fetched_s < soonest_s:
                return
            self._fetched_s = now_s  # before the attempt: a provider that is down is not asked by every request
            try:
                self._keys = read_keys(self._fetch(self.settings.keys_url), self.settings.algorithms)
                with self._turn:
                    self._known.clear()
            except (OSError, DataError) as error:
                if name not in self._keys:
                    raise RemoteError(f"the keys of {self.settings.issuer} cannot be had", f"they are tried again in {soonest_s:g} s") from error
        finally:
            self._fetching.release()

    def _read_file(self, file: Path) -> None:
        try:
            about = file.stat()
            mark = (about.st_mtime_ns, about.st_size)
            if mark != self._mark:
                keys = read_keys(file.read_bytes(), self.settings.algorithms)
                with self._turn:
                    self._keys, self._mark = keys, mark
                    self._known.clear()
        except (OSError, DataError) as error:
            if not self._keys:
                raise DataError(f"{file} holds no keys: {error}", "give the provider's JWKS") from error


def _at(claims: Mapping[str, Any], name: str) -> Any:
    """A claim; one with dots is looked for as it is, then level by level, as some providers nest roles."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.split()
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def _refused(why: str) -> PolicyError:
    return PolicyError(f"the token was refused: {why}", "get a new one from the identity provider")
