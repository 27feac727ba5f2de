"""The audit's chain: how a record is written, and what makes each one answer for all before it. Pure; audit.py writes files, audit_verify.py reads them.

    hash(n) = SHA-256( hash(n-1) as 32 bytes + canonical JSON of {n, at, kind, body} )

A line is the canonical JSON of all that with `previous` and `hash`. A byte of a line that differs is found, as there is one way to write it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from bedplate.serve.signing import PublicKey, Signer, canonical

START = "0" * 64
"""What stands before the first record."""
CHECKPOINT = "checkpoint"
PURPOSE = "audit checkpoint 1"


class Entry(NamedTuple):
    """A place in the chain. Kept somewhere else, it proves later that the log still holds everything up to it."""

    n: int
    hash: str

    def __str__(self) -> str:
        return f"{self.n}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "n:hash". Raises ValueError where it is none."""
        number, _, digest = text.partition(":")
        if not (number.isascii() and number.isdigit() and len(digest) == 64 and set(digest) <= set("0123456789abcdef")):
            raise ValueError(f"{text!r} is not of the form n:hash")
        return cls(int(number), digest)


@dataclass(frozen=True)
class Record:
    """One line of the audit."""

    n: int
    """Counts from 1, without a gap, across files."""
    at: str
    """ISO 8601, UTC."""
    kind: str
    body: Mapping[str, Any]
    previous: str
    hash: str

    @classmethod
    def following(cls, before: Entry, at: str, kind: str, body: Mapping[str, Any]) -> Self:
        """The record after another."""
        n = before.n + 1
        return cls(n, at, kind, body, before.hash, _hash(before.hash, {"n": n, "at": at, "kind": kind, "body": body}))

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """From a line without its end. Raises ValueError where a single byte is not as it was written."""
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError("it is no JSON") from error
        if not isinstance(raw, dict) or set(raw) != {"n", "at", "kind", "body", "previous", "hash"}:
            raise ValueError("it does not have the fields of a record")
        strings = all(isinstance(raw[name], str) for name in ("at", "kind", "previous", "hash"))
        if type(raw["n"]) is not int or not strings or not isinstance(raw["body"], dict) or len(raw["previous"]) != 64:
            raise ValueError("a field is of another type")
        try:
            same = canonical(raw) == line
            proper = _hash(raw["previous"], {name: raw[name] for name in ("n", "at", "kind", "body")})
        except (ValueError, RecursionError) as error:
            raise ValueError("a value in it cannot be written as JSON") from error
        if not same:
            raise ValueError("it is not written in the canonical way")
        if proper != raw["hash"]:
            raise ValueError("its hash does not hold")
        return cls(**raw)

    @property
    def line(self) -> bytes:
        """As it is written, with the line's end."""
        everything = {"n": self.n, "at": self.at, "kind": self.kind, "body": self.body, "previous": self.previous, "hash": self.hash}
        return canonical(everything) + b"\n"

    @property
    def entry(self) -> Entry:
        """Its place in the chain."""
        return Entry(self.n, self.hash)


def checkpoint(signer: Signer, before: Entry, at: str, closed: bool) -> Record:
    """A record that signs everything before it.

    Args:
        signer: the gateway's key.
        before: the record before it.
        at: the time.
        closed: whether the log ends here on purpose.
    """
    body = {"closed": closed, "key": signer.public.id}
    signature = signer.sign(PURPOSE, _signed(before, at, body))
    return Record.following(before, at, CHECKPOINT, body | {"signature": signature})


def checkpoint_holds(record: Record, key: PublicKey) -> bool:
    """Whether a checkpoint was signed by this key, over exactly what stands before it."""
    body = dict(record.body)
    signature = body.pop("signature", None)
    if set(body) != {"closed", "key"} or not isinstance(signature, str):
        return False
    return key.holds(PURPOSE, _signed(Entry(record.n - 1, record.previous), record.at, body), signature)


def _signed(before: Entry, at: str, body: Mapping[str, Any]) -> bytes:
    return canonical({"after": before.n, "hash": before.hash, "at": at, **body})


def _hash(previous: str, content: Mapping[str, Any]) -> str:
    return hashlib.sha256(bytes.fromhex(previous) + canonical(content)).hexdigest()
