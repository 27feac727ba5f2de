"""Licences: a LICENSE file or an SPDX line to an SPDX id, by a few fingerprints of the standard texts."""

from __future__ import annotations

import re

FILE_NAMES = re.compile(r"^(licen[cs]e|copying|unlicense|copyright)([-_.].*)?$", re.IGNORECASE)

_SPDX = re.compile(r"SPDX-License-Identifier:\s*([A-Za-z0-9.+\- ()]{2,80})")

_FINGERPRINTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("AGPL-3.0", ("gnu affero general public license",)),
    ("LGPL-3.0", ("gnu lesser general public license", "version 3")),
    ("LGPL-2.1", ("gnu lesser general public license",)),
    ("GPL-3.0", ("gnu general public license", "version 3")),
    ("GPL-2.0", ("gnu general public license", "version 2")),
    ("MPL-2.0", ("mozilla public license", "2.0")),
    ("Apache-2.0", ("apache license", "version 2.0")),
    ("PSF-2.0", ("python software foundation license",)),
    ("CC0-1.0", ("cc0 1.0",)),
    ("CC-BY-SA-4.0", ("attribution-sharealike 4.0",)),
    ("CC-BY-NC-4.0", ("attribution-noncommercial 4.0",)),
    ("CC-BY-4.0", ("attribution 4.0",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("BSD-3-Clause", ("redistributions of source code must retain", "neither the name")),
    ("BSD-2-Clause", ("redistributions of source code must retain",)),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software",)),
    ("MIT", ("permission is hereby granted, free of charge",)),
)


def recognise(text: str) -> str:
    """The SPDX id of a licence text, "" when it is none of those known."""
    words = " ".join(text[:30_000].lower().split())
    return next((name for name, marks in _FINGERPRINTS if all(mark in words for mark in marks)), "")


def declared(text: str) -> str:
    """The SPDX id that a source file declares in its first lines."""
    found = _SPDX.search(text[:2000])
    return found[1].strip() if found else ""
