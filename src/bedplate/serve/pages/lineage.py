"""Lineage: from what an artifact was made, and that again, as far as the manifests at hand tell.

    known = gather([Path("models/base"), Path("adapters/triage")])
    ancestors("4be1...", known, {})
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bedplate.core.artifact import MANIFEST, Manifest, read_manifest
from bedplate.core.errors import BedplateError

MOST_DEEP = 12


@dataclass(frozen=True)
class Ancestor:
    """An artifact in a lineage."""

    role: str
    """What it was to the one that was made from it: base, corpus, tokenizer, ..."""
    digest: str
    name: str = ""
    """Of its folder; "" where it is not at hand."""
    manifest: Manifest | None = None
    """None: not at hand, only its digest is known."""
    served: str = ""
    """Name under which the gateway serves it; what it was made from stands there."""
    parents: tuple[Ancestor, ...] = ()


def gather(folders: Iterable[Path]) -> dict[str, tuple[str, Manifest]]:
    """Digest -> (name, manifest) of every folder that has a readable manifest. Reads manifests alone, not what they answer for."""
    known: dict[str, tuple[str, Manifest]] = {}
    for folder in folders:
        try:
            manifest = read_manifest(folder)
        except (BedplateError, OSError):
            continue
        known.setdefault(manifest.digest, (folder.resolve().name, manifest))
    return known


def artifacts_below(folders: Iterable[Path]) -> list[Path]:
    """Folders with a manifest, in these folders or up to two below."""
    found: list[Path] = []
    for folder in folders:
        for pattern in (MANIFEST, f"*/{MANIFEST}", f"*/*/{MANIFEST}"):
            found += [path.parent for path in sorted(folder.glob(pattern))[:500]]
    return found


def ancestors(digest: str, known: Mapping[str, tuple[str, Manifest]], served: Mapping[str, str], role: str = "", deep: int = 0) -> Ancestor:
    """An artifact and what it was made from.

    Args:
        digest: of its manifest.
        known: as `gather` gives it.
        served: digest -> name of the bases that the gateway serves.
        role: what it is to the one that was made from it.
        deep: how far down this is; beyond MOST_DEEP nothing more is followed.
    """
    name, manifest = known.get(digest, ("", None))
    served_as = served.get(digest, "") if deep else ""
    if manifest is None or served_as or deep >= MOST_DEEP:
        return Ancestor(role, digest, name, manifest, served_as)
    parents = tuple(ancestors(parent, known, served, as_what, deep + 1) for as_what, parent in sorted(manifest.parents.items()))
    return Ancestor(role, digest, name, manifest, "", parents)
