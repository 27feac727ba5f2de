"""Signing: the gateway's Ed25519 key, with which checkpoints of the audit and receipts are signed.

    signer = Signer.open(Path("keys/gateway.pem"))      # made when missing, private to its owner
    signer.public.write(Path("gateway.pub.pem"))        # give it to whoever verifies
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bedplate.core.errors import DataError, IntegrityError
from bedplate.core.files import sha256_bytes, write_bytes


def canonical(value: Mapping[str, Any]) -> bytes:
    """The one way to write a JSON object: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


def as_read(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object as whoever reads its canonical form has it: names that are numbers are text, two halves of a surrogate pair are one character."""
    read: dict[str, Any] = json.loads(canonical(value))
    return read


class PublicKey:
    """Recognises what the gateway signed."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.id = sha256_bytes(key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))[:16]
        """Hex, the beginning of the SHA-256 of the raw key: names it in checkpoints and receipts."""

    @classmethod
    def read(cls, file: Path) -> Self:
        """From a PEM file.

        Raises:
            DataError: it is missing, or holds no Ed25519 public key.
        """
        try:
            key = serialization.load_pem_public_key(file.read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{file} holds no public key: {error}", "the gateway writes it as audit.pub.pem beside its private key") from error
        if not isinstance(key, Ed25519PublicKey):
            raise DataError(f"{file} holds a key of another kind than Ed25519", "give the gateway's public key")
        return cls(key)

    def write(self, file: Path) -> None:
        """As a PEM file, which anybody may read."""
        write_bytes(file, self.pem)

    @property
    def pem(self) -> bytes:
        """As PEM."""
        return self._key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def holds(self, purpose: str, message: bytes, signature: str) -> bool:
        """Whether a hex signature is the gateway's, made for this purpose."""
        try:
            raw = bytes.fromhex(signature)
            if raw.hex() != signature:  # upper case would be a second way to write the same
                return False
            self._key.verify(raw, _framed(purpose, message))
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer:
    """Signs; holds the private key in memory and tells it to nobody."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    @classmethod
    def open(cls, file: Path) -> Self:
        """From a PEM file, made when missing.

        Raises:
            IntegrityError: others can read it.
            DataError: it holds no Ed25519 private key.
        """
        if not file.exists():
            made = Ed25519PrivateKey.generate()
            raw = made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            write_bytes(file, raw, private=True)
        if file.stat().st_mode & (stat.S_IRWXO | stat.S_IRWXG) and os.name == "posix":
            raise IntegrityError(f"others can read or change {file}", f"chmod 600 {file}; if it was open for long, make a new one")
        try:
            key = serialization.load_pem_private_key(file.read_bytes(), None)
        except (ValueError, TypeError) as error:
            raise DataError(f"{file} holds no private key without a password: {type(error).__name__}", "move it away; a new one is made") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise DataError(f"{file} holds a key of another kind than Ed25519", "move it away; a new one is made")
        return cls(key)

    def sign(self, purpose: str, message: bytes) -> str:
        """Hex signature. The purpose goes in, so that a signed receipt is never taken for a checkpoint."""
        return self._key.sign(_framed(purpose, message)).hex()


def _framed(purpose: str, message: bytes) -> bytes:
    return f"bedplate {purpose}\n".encode() + message
