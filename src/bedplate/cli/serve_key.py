"""`bedplate serve key`: who may use the gateway."""

from __future__ import annotations

import time
from pathlib import Path

from bedplate.cli.app import Here

KEYS = Path("keys.json")


def add(
    *,
    tenant: str,
    name: str,
    scopes: tuple[str, ...] = ("generate",),
    labels: tuple[str, ...] = (),
    expires: str = "",
    file: Path = KEYS,
    console: Here,
) -> None:
    """Make a key and show it, this once. A running gateway takes it within a second.

    Args:
        tenant: whose it is; limits, caches and budgets are kept apart by it.
        name: what you call it, such as the program that will use it.
        scopes: what it allows; may be repeated. generate, embed, classify, predict, rerank, transcribe, models, metrics, receipts, admin.
        labels: classes of data, as routes.toml names them, that everything sent with it belongs to at least; may be repeated.
        expires: time from now, such as 90d; by default never.
        file: the keys file, made when missing.
    """
    from bedplate.core.units import parse_seconds
    from bedplate.serve import keys

    made = keys.add(file, name=name, tenant=tenant, scopes=scopes, labels=labels, expires_in_s=parse_seconds(expires) if expires else None)
    console.say(f"key {made.key.id} of {tenant} for {', '.join(made.key.scopes)}; it is shown this once, {file} keeps only its digest")
    console.print(made.secret)
    console.data({"id": made.key.id, "key": made.secret, "tenant": tenant, "scopes": list(made.key.scopes), "expires": made.key.expires, "file": str(file)})


def list_keys(*, file: Path = KEYS, console: Here) -> None:
    """List the keys: whose, what for, until when, last used. The keys themselves are nowhere.

    Args:
        file: the keys file.
    """
    from bedplate.serve import keys

    now_s, used = time.time(), keys.last_used(file)
    listed = [(key, key.state(now_s), used.get(key.id)) for key in keys.read(file)]
    rows = [(key.id, key.name, key.tenant, " ".join(key.scopes), " ".join(key.labels), state, key.expires or "never", at or "") for key, state, at in listed]
    console.table(("id", "name", "tenant", "scopes", "labels", "state", "expires", "last used"), rows, title=str(file))
    console.data(
        [
            {"id": key.id, "name": key.name, "tenant": key.tenant, "scopes": list(key.scopes), "labels": list(key.labels), "state": state}
            | {"created": key.created, "expires": key.expires, "revoked": key.revoked, "last_used": at}
            for key, state, at in listed
        ]
    )


def revoke(key: str, *, file: Path = KEYS, console: Here) -> None:
    """Make a key useless, from now on and for good. A running gateway refuses it within a second.

    Args:
        key: its id, or its name where no other has it; `bedplate serve key list` shows them.
        file: the keys file.
    """
    from bedplate.serve import keys

    gone = keys.revoke(file, key)
    console.say(f"key {gone.id} ({gone.name} of {gone.tenant}) is revoked since {gone.revoked}")
    console.data({"id": gone.id, "name": gone.name, "tenant": gone.tenant, "revoked": gone.revoked})
