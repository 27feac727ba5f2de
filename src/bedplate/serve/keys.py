"""Keys: who may use the gateway, kept in one private file that holds no key, only what recognises one.

    made = add(file, name="triage desk", tenant="soc", scopes=("generate",))    # made.secret is shown once: bp_...
    ring = KeyRing(file)
    caller = ring.find("bp_...")                                                # None: unknown, expired or revoked

A key is 256 random bits, so its digest needs no slow hash: scrypt and its kin make a guess expensive, and nobody can guess among 2^256.
A slow hash would only hand everybody who can send a request a way to burn a core. The digest is keyed (HMAC-SHA-256) with a random value of
the file, so two files never show that they hold the same key. See docs/formats/keys.md.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import fcntl
import hmac
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from bedplate.core.config import from_mapping
from bedplate.core.errors import ConfigError, DataError, IntegrityError, did_you_mean
from bedplate.core.files import read_json, write_json
from bedplate.serve.caller import SCOPES, Caller

PREFIX = "bp_"
FORMAT = 1
LOOK_EVERY_S = 1.0
"""How often a ring looks whether its file has changed."""
USED_EVERY_S = 3600
"""How coarse "last used" is: no diary of a person's day lies beside the keys."""


@dataclass(frozen=True)
class Key:
    """What the file says of one key. The key itself is nowhere."""

    id: str
    """Short and public; names it in the audit, in `list` and in `revoke`."""
    name: str
    tenant: str
    scopes: tuple[str, ...]
    digest: str
    """Hex HMAC-SHA-256 of the key."""
    created: str
    """ISO 8601, UTC, as all times here."""
    expires: str | None = None
    revoked: str | None = None
    labels: tuple[str, ...] = ()
    """Data classes of everything sent with it."""

    def __post_init__(self) -> None:
        for scope in self.scopes:
            if scope not in SCOPES:
                raise ConfigError(f"there is no scope {scope!r}", did_you_mean(scope, SCOPES))
        for moment in (self.created, self.expires, self.revoked):
            if moment is not None:
                _seconds(moment)

    def state(self, now_s: float) -> str:
        """valid, expired or revoked, at a time in seconds since 1970."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now_s >= _seconds(self.expires) else "valid"

    @property
    def caller(self) -> Caller:
        """Who asks with it."""
        return Caller(self.id, self.tenant, frozenset(self.scopes), self.name, self.labels)


class Made(NamedTuple):
    """A new key."""

    key: Key
    secret: str
    """Shown once and kept nowhere."""


def add(
    file: Path,
    *,
    name: str,
    tenant: str,
    scopes: Sequence[str],
    expires_in_s: float | None = None,
    labels: Sequence[str] = (),
    now_s: float | None = None,
) -> Made:
    """Make a key and note it in the file, which is made when missing.

    Args:
        file: the keys file; written whole, readable by its owner alone.
        name: what a person calls it.
        tenant: whose it is.
        scopes: names in SCOPES, at least one.
        expires_in_s: seconds from now; None: never.
        labels: data classes of everything sent with it.
        now_s: seconds since 1970.
    Raises:
        ConfigError: an unknown scope, none, or no tenant.
    """
    if not scopes or not tenant.strip() or not name.strip():
        raise ConfigError("a key needs a name, a tenant and at least one scope", f"scopes: {', '.join(SCOPES)}")
    if expires_in_s is not None and not 0 < expires_in_s < 100 * 366 * 86400:
        raise ConfigError(f"a key cannot expire in {expires_in_s:g} s", "give a time between a second and a hundred years")
    now_s = time.time() if now_s is None else now_s
    secret = PREFIX + secrets.token_urlsafe(32)
    with _changing(file) as kept:
        key = Key(
            id=secrets.token_hex(6),
            name=name,
            tenant=tenant,
            scopes=tuple(dict.fromkeys(scopes)),
            digest=_digest(kept.pepper, secret),
            created=_moment(now_s),
            expires=None if expires_in_s is None else _moment(now_s + expires_in_s),
            labels=tuple(labels),
        )
        kept.keys.append(key)
    return Made(key, secret)


def revoke(file: Path, identity: str, now_s: float | None = None) -> Key:
    """Make a key useless from now on; a running gateway sees it within seconds.

    Raises:
        ConfigError: there is no key of that id or (unambiguous) name.
    """
    if not file.exists():
        raise DataError(f"there is no keys file {file}", "give --file, or make a key with `bedplate serve key add`")
    with _changing(file) as kept:
        places = [n for n, key in enumerate(kept.keys) if key.id == identity] or [n for n, key in enumerate(kept.keys) if key.name == identity]
        if len(places) != 1:
            known = [key.id for key in kept.keys]
            hint = did_you_mean(identity, known) if not places else "several keys have that name; give the id: " + ", ".join(kept.keys[n].id for n in places)
            raise ConfigError(f"there is no one key {identity!r}", hint)
        key = kept.keys[places[0]]
        if key.revoked is None:
            key = dataclasses.replace(key, revoked=_moment(time.time() if now_s is None else now_s))
            kept.keys[places[0]] = key
    return key


def read(file: Path) -> list[Key]:
    """Every key of the file, in the order in which they were made."""
    return list(_read(file).keys)


def last_used(file: Path) -> dict[str, str]:
    """Key id -> the hour in which it was last used, as far as a gateway has written it down."""
    beside = _used_file(file)
    if not beside.is_file():
        return {}
    try:
        found = read_json(beside)
    except (ValueError, RecursionError, OSError):
        return {}
    return {str(k): v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


class KeyRing:
    """The keys of a running gateway. Safe from any thread; a changed file is taken over within a second, what runs goes on."""

    def __init__(self, file: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Read the file.

        Raises:
            DataError: it is missing.
            IntegrityError: it is damaged, of a newer format, or others can read or change it.
        """
        self.file = file
        self.trouble = ""
        """Why a changed file was not taken over; "" where all is well. The keys before it stay in force."""
        self.unrecorded = ""
        """Why last use is not written down, such as a folder that cannot be written; "" where it is."""
        self._clock = clock
        _read(file)  # a file that is missing is told of here
        self._mark = _mark(file)  # before what is kept is read: a change in between is seen
        self._kept = _read(file)
        self._looked_s = clock()
        self._used: dict[str, int] = {}
        self._written: dict[str, int] = {}

    def find(self, secret: str) -> Caller | None:
        """Who asks with this key; None where it is unknown, expired or revoked. Takes as long for a wrong key as for a right one."""
        now_s = self._clock()
        if now_s - self._looked_s >= LOOK_EVERY_S or now_s < self._looked_s:
            self._looked_s = now_s
            self.refresh()
        kept = self._kept  # taken once: pepper and digests belong together
        digest = _digest(kept.pepper, secret)
        key = kept.by_digest.get(digest)  # a keyed digest: nobody outside can choose one near another
        same = hmac.compare_digest(digest, key.digest if key is not None else "0" * 64)
        if key is None or not same or key.state(now_s) != "valid":
            return None
        self._used[key.id] = int(now_s // USED_EVERY_S)
        return key.caller

    def still(self, caller: Caller) -> bool:
        """Whether the key behind a caller holds, unchanged."""
        now_s = self._clock()
        if now_s - self._looked_s >= LOOK_EVERY_S or now_s < self._looked_s:
            self._looked_s = now_s
            self.refresh()
        return any(key.id == caller.id and key.state(now_s) == "valid" and key.caller == caller for key in self._kept.keys)

    def refresh(self) -> bool:
        """Take the file over if it has changed. True: it has been."""
        try:
            mark = _mark(self.file)
            if mark == self._mark:
                return False
            kept = _read(self.file)
        except (DataError, IntegrityError, OSError) as error:
            self.trouble = str(error)
            return False
        self._mark, self._kept, self.trouble = mark, kept, ""
        return True

    def write_used(self) -> None:
        """Write down when keys were last used, to the hour; called now and then, off the path of requests. Nothing new: nothing is written."""
        used = dict(self._used)
        if used == self._written:
            return
        told = last_used(self.file) | {name: _moment(hour * USED_EVERY_S) for name, hour in sorted(used.items())}
        try:
            write_json(_used_file(self.file), told)
        except OSError as error:
            self.unrecorded = f"{_used_file(self.file)}: {error.strerror}"
            return
        self._written, self.unrecorded = used, ""


@dataclass
class _Kept:
    pepper: bytes
    keys: list[Key]

    @cached_property
    def by_digest(self) -> dict[str, Key]:
        return {key.digest: key for key in self.keys}


def _read(file: Path) -> _Kept:
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise DataError(f"there is no keys file {file}", f"make a key with `bedplate serve key add --file {file}`") from error
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise IntegrityError(f"others can read or change {file}", f"chmod 600 {file}")
    try:
        raw = read_json(file)
        number, pepper, listed = raw["format"], bytes.fromhex(raw["pepper"]), raw["keys"]
        if type(number) is not int or number < 1 or not isinstance(listed, list) or len(pepper) < 16:
            raise ValueError("it does not have the form of a keys file")
        if number > FORMAT:
            raise IntegrityError(f"{file} is of format {number}; this version reads up to {FORMAT}", "update Bedplate")
        keys = [from_mapping(Key, one, f"keys[{n}].") for n, one in enumerate(listed)]
        if len({key.id for key in keys}) != len(keys) or len({key.digest for key in keys}) != len(keys):
            raise ValueError("two keys are the same")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        said = error.message if isinstance(error, ConfigError) else str(error)
        raise IntegrityError(f"{file} is damaged: {said}", "restore it from a copy, or make new keys in a new file") from error
    return _Kept(pepper, keys)


@contextmanager
def _changing(file: Path) -> Iterator[_Kept]:
    """What the file holds, to be changed by one at a time; written back whole when all went well."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file.with_name(file.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        kept = _read(file) if file.exists() else _Kept(secrets.token_bytes(32), [])
        yield kept
        write_json(file, {"format": FORMAT, "pepper": kept.pepper.hex(), "keys": [_plain(key) for key in kept.keys]}, private=True)
    finally:
        os.close(descriptor)


def _plain(key: Key) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(key)))
    return plain


def _digest(pepper: bytes, secret: str) -> str:
    return hmac.digest(pepper, secret.encode("utf-8", "surrogatepass"), "sha256").hex()


def _mark(file: Path) -> tuple[int, int, int]:
    about = file.stat()
    return about.st_ino, about.st_mtime_ns, about.st_size


def _used_file(file: Path) -> Path:
    return file.with_name(file.name + ".used")


def _moment(seconds: float) -> str:
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _seconds(moment: str) -> float:
    try:
        read = dt.datetime.fromisoformat(moment)
    except ValueError as error:
        raise ConfigError(f"{moment!r} is no time", "write it as 2027-01-31T12:00:00Z") from error
    if read.tzinfo is None:
        raise ConfigError(f"{moment!r} does not say its time zone", "write it as 2027-01-31T12:00:00Z")
    return read.timestamp()
