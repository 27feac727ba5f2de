"""Receipts: what was answered to whom by which weights under which policy, signed, so that it can be shown and checked later.

    receipt = issue(signer, Facts(...))
    holds(receipt, public_key)                                       # the signature
    tells_of(receipt, prompt, answer)                                # the digests: is it about these words?
    look_up(folder, receipt_id, public_key)                          # from the audit
"""

from __future__ import annotations

import dataclasses
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.core.config import from_mapping
from bedplate.core.errors import ConfigError, DataError, IntegrityError
from bedplate.serve.audit_files import find
from bedplate.serve.redact import text_digest
from bedplate.serve.signing import PublicKey, Signer, as_read, canonical

PURPOSE = "receipt 1"


@dataclass(frozen=True)
class Facts:
    """What a receipt says."""

    id: str
    """Of the answer, as the client has it."""
    at: str
    """When it was complete; ISO 8601, UTC."""
    tenant: str
    caller: str
    """Id of the key or subject."""
    model: str
    """The name that was asked for."""
    digests: Mapping[str, str]
    """model, adapter -> digest of its manifest, as the worker's card says."""
    policies: Mapping[str, str]
    """guards, routes, redact, limits -> digest of the settings in force."""
    salt: str
    """Hex; goes before the texts into their digests."""
    prompt_sha256: str
    answer_sha256: str
    prompt_tokens: int
    completion_tokens: int
    finish: str
    route: str = ""
    """Where it was answered and why."""
    guard: str = ""
    """The rule that ended it."""


@dataclass(frozen=True)
class Receipt:
    """Facts that the gateway stands for."""

    facts: Facts
    key: str
    """Id of the key that signed."""
    signature: str

    def as_json(self) -> dict[str, Any]:
        """For the client and for the audit."""
        return {**_plain(self.facts), "key": self.key, "signature": self.signature}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Receipt:
        """From what `as_json` gave.

        Raises:
            DataError: it is no receipt.
        """
        facts = dict(raw)
        try:
            key, signature = facts.pop("key"), facts.pop("signature")
            if not isinstance(key, str) or not isinstance(signature, str):
                raise DataError("key and signature are text", "give the receipt as it was handed out")
            return cls(from_mapping(Facts, facts), key, signature)
        except (KeyError, ConfigError, TypeError) as error:
            said = error.message if isinstance(error, ConfigError) else str(error)
            raise DataError(f"that is no receipt: {said}", "give the JSON as it was handed out") from error


def new_salt() -> bytes:
    """For the digests of one answer."""
    return secrets.token_bytes(16)


def issue(signer: Signer, facts: Facts) -> Receipt:
    """A signed receipt."""
    said = as_read(_plain(facts))
    return Receipt(Facts(**said), signer.public.id, signer.sign(PURPOSE, canonical(said)))


def holds(receipt: Receipt, key: PublicKey) -> bool:
    """Whether this key signed exactly this."""
    return receipt.key == key.id and key.holds(PURPOSE, canonical(_plain(receipt.facts)), receipt.signature)


def tells_of(receipt: Receipt, prompt: str | None = None, answer: str | None = None) -> bool:
    """Whether the receipt is about these words; None: not asked."""
    facts = receipt.facts
    try:
        salt = bytes.fromhex(facts.salt)
    except ValueError:
        return False
    pairs = ((prompt, facts.prompt_sha256), (answer, facts.answer_sha256))
    return all(hmac.compare_digest(text_digest(text, salt), digest) for text, digest in pairs if text is not None)


def look_up(folder: Path, identity: str, key: PublicKey) -> Receipt | None:
    """The receipt of an answer from the audit; None: it is not there. Reads files: not for an event loop.

    Raises:
        IntegrityError: it is there, but was not signed by this key.
    """
    record = find(folder, identity)
    if record is None or "receipt" not in record.body:
        return None
    receipt = Receipt.from_json(record.body["receipt"])
    if not holds(receipt, key):
        raise IntegrityError(f"the receipt of {identity} was not signed by the key {key.id}", "see `bedplate serve audit verify`")
    return receipt


def policy_digest(settings: Any) -> str:
    """Digest of settings, for `Facts.policies`: equal settings have equal digests."""
    from bedplate.core.config import to_mapping
    from bedplate.core.files import sha256_bytes

    return sha256_bytes(canonical({"settings": to_mapping(settings)}))


def _plain(facts: Facts) -> dict[str, Any]:
    values = {field.name: getattr(facts, field.name) for field in dataclasses.fields(Facts)}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
