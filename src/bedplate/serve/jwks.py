"""A provider's keys: read from a JWKS, or fetched with care. A key says itself how it signs."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jwt

from bedplate.core.errors import DataError

LARGEST_KEYS_BYTES = 1_048_576


class ProviderKey(NamedTuple):
    """A public key, and the one algorithm that it is for."""

    key: Any
    algorithm: str


def read_keys(data: bytes, algorithms: tuple[str, ...]) -> dict[str, ProviderKey]:
    """Name -> key, of a JWKS; keys of other kinds or uses are passed over. A private or symmetric key in it is refused.

    Raises:
        DataError: it is no JWKS, or has no key that could be used.
    """
    try:
        raw = json.loads(data)
        listed = raw["keys"]
        if not isinstance(listed, list):
            raise TypeError("keys is no list")
        found: dict[str, ProviderKey] = {}
        for one in listed:
            kinds = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
            algorithm = kinds.get((one.get("kty"), one.get("crv")))
            if one.get("kty") == "oct" or "d" in one:
                raise DataError("the keys hold a secret one", "a JWKS for others holds public keys alone")
            if algorithm is None or algorithm not in algorithms or one.get("use", "sig") != "sig" or one.get("alg", algorithm) != algorithm:
                continue
            name = one.get("kid", "")
            if not isinstance(name, str) or name in found:
                raise DataError("two keys have the same name", "each needs a kid of its own")
            key = jwt.PyJWK(one, algorithm).key
            if algorithm == "RS256" and key.key_size < 2048:
                continue
            found[name] = ProviderKey(key, algorithm)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, jwt.PyJWTError) as error:
        raise DataError(f"that is no JWKS: {type(error).__name__}", "a provider lists its keys at the jwks_uri of its openid-configuration") from error
    if not found:
        raise DataError("no key in it can be used", f"usable: {', '.join(algorithms)}; RSA from 2048 bits")
    return found


def fetch_keys(address: str) -> bytes:
    """What lies at an address: https, certificates checked, no redirects, at most a MiB, within 10 s. Raises OSError."""
    if not safe(address):
        raise OSError(f"{address} is not https")
    opener = urllib.request.build_opener(_NoRedirects(), urllib.request.HTTPSHandler(context=ssl.create_default_context()))
    with opener.open(urllib.request.Request(address, headers={"Accept": "application/json"}), timeout=10) as answer:
        data: bytes = answer.read(LARGEST_KEYS_BYTES + 1)
    if len(data) > LARGEST_KEYS_BYTES:
        raise OSError("more than a MiB of keys")
    return data


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


def safe(address: str) -> bool:
    """Whether nobody on the way can change what comes: https, or this machine."""
    parts = urlsplit(address)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1"))
