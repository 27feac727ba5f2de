"""The folder where Bedplate keeps what it fetched for a user: models, downloads, the user's own catalogue."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """$BEDPLATE_HOME, else bedplate/ in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache). It may not exist yet."""
    if said := os.environ.get("BEDPLATE_HOME"):
        return Path(said).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "bedplate"
