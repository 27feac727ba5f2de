"""Artifact: every result is a folder whose `manifest.json` names its kind, format, files, parents and settings.

The manifest is written last, so a folder with a manifest is complete. Lineage is then free: a parent is named by its digest.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bedplate
from bedplate.core.errors import DataError, IntegrityError, did_you_mean
from bedplate.core.files import read_json, sha256_bytes, sha256_file, write_json
from bedplate.core.home import home

MANIFEST = "manifest.json"

FORMATS: dict[str, int] = {"corpus": 1, "tokenizer": 1, "model": 1, "adapter": 1, "checkpoint": 1, "report": 1}
"""The newest format number this version writes, per kind."""

MIGRATIONS: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""(kind, old format) -> function that turns that manifest into the next format's."""


@dataclass(frozen=True)
class Manifest:
    """What a folder says about itself. `digest` is the SHA-256 of the canonical manifest, and so of everything in it."""

    kind: str
    format: int
    files: Mapping[str, str]
    parents: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    made_by: str = ""
    made_at: str = ""
    sealed_as: str = ""
    """The digest it was sealed with, where reading migrated it since: children know it by that one."""

    @property
    def digest(self) -> str:
        """Hex digest over kind, format, files, parents, settings and about. No clock, no version: equal results are equal."""
        if self.sealed_as:
            return self.sealed_as
        content = {"kind": self.kind, "format": self.format, "files": dict(self.files), "parents": dict(self.parents)}
        content |= {"settings": dict(self.settings), "about": dict(self.about)}
        return sha256_bytes(json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def seal(
    folder: Path,
    kind: str,
    *,
    parents: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Manifest:
    """Digest every file below `folder` and write its manifest, last.

    Args:
        folder: a folder whose files are all complete.
        kind: one of FORMATS.
        parents: role -> digest of the artifact it was made from.
        settings: JSON-able settings it was made with.
        about: JSON-able facts about it (counts, specs).
    """
    files = {name: sha256_file(folder / name) for name in _files(folder)}
    manifest = Manifest(
        kind=kind,
        format=FORMATS[kind],
        files=files,
        parents=dict(parents or {}),
        settings=dict(settings or {}),
        about=dict(about or {}),
        made_by=f"bedplate {bedplate.__version__}",
        made_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
    written = {k: getattr(manifest, k) for k in Manifest.__dataclass_fields__ if k != "sealed_as"}
    write_json(folder / MANIFEST, {**written, "digest": manifest.digest})
    return manifest


def _instead(folder: Path, kind: str | None) -> str:
    """What to do about a folder without a manifest."""
    expected = f"expected a {kind or 'Bedplate artifact'}"
    if folder.is_dir():
        foreign = kind == "model" and (folder / "config.json").is_file()
        return f"`bedplate get {folder}` makes a model of it" if foreign else f"the folder is incomplete or not an artifact; {expected}"
    hint = f"there is no such folder; {expected}"
    if kind != "model" or len(folder.parts) > 1:
        return hint
    fetched = [path.parent.name for path in (home() / "models").glob(f"*/{MANIFEST}")]
    return f"{hint}. Of fetched models: {did_you_mean(folder.name, fetched)}" if fetched else f"{hint}; `bedplate get` lists those that can be fetched"


def read_manifest(folder: Path, kind: str | None = None) -> Manifest:
    """Read a folder's manifest, migrate an older format, refuse a newer one.

    Raises:
        DataError: there is no manifest, or it is of another kind.
        IntegrityError: it is damaged, or of a format this version does not know.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} has no {MANIFEST}", _instead(folder, kind))
    try:
        raw = read_json(path)
        claimed = raw.pop("digest")
        found, number = raw["kind"], raw["format"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{path} is damaged: {error}", "make the artifact again or restore it from a copy") from error
    if not isinstance(found, str) or found not in FORMATS or not isinstance(number, int):
        raise IntegrityError(f"{path} is of unknown kind {found!r} format {number!r}", f"known kinds: {', '.join(FORMATS)}")
    if number > FORMATS[found]:
        raise IntegrityError(
            f"{folder} is a {found} of format {number}; this version reads up to {FORMATS[found]}",
            f"it was made by {raw.get('made_by')}; update Bedplate",
        )
    try:
        if "sealed_as" in raw or Manifest(**raw).digest != claimed:
            raise IntegrityError(f"{path} does not match its own digest", "it was edited after it was made; restore it from a copy")
        while raw["format"] < FORMATS[found]:
            raw = MIGRATIONS[(found, raw["format"])](raw) | {"sealed_as": claimed}
        manifest = Manifest(**raw)
    except (TypeError, KeyError, ValueError) as error:
        raise IntegrityError(f"{path} is damaged: {error}", "make the artifact again or restore it from a copy") from error
    if kind is not None and found != kind:
        raise DataError(f"{folder} is a {found}, not a {kind}", f"give the folder of a {kind}")
    return manifest


def verify(folder: Path, kind: str | None = None) -> Manifest:
    """Read the manifest and check every file's digest.

    Raises:
        IntegrityError: a file is missing, changed, or not in the manifest.
    """
    manifest = read_manifest(folder, kind)
    present = set(_files(folder))
    for name, digest in manifest.files.items():
        path = folder / name
        if name not in present:
            raise IntegrityError(f"{folder}: {name} is missing", "restore it from a copy or make the artifact again")
        if sha256_file(path) != digest:
            raise IntegrityError(f"{folder}: {name} was changed since it was made", "restore it from a copy or make the artifact again")
    extra = sorted(present - set(manifest.files))
    if extra:
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise IntegrityError(f"{folder}: {extra[0]} is not in the manifest{more}", "move foreign files out of the folder")
    return manifest


def _files(folder: Path) -> list[str]:
    """Names of the files an artifact answers for: all but the manifest itself and what a killed writer left behind."""
    names = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():  # what it points to can change without the folder changing
            raise IntegrityError(f"{folder}: {name} is a link", "an artifact holds plain files only; put a copy there and make it again")
        if path.is_file() and name != MANIFEST and not path.name.endswith(".tmp"):
            names.append(name)
    return sorted(names)
