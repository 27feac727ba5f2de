"""Plain: a text as it is read rather than as it is written, so that a word is found in other letters and with what nobody sees between them.

    view = plain("Ｐroj\\u200bect")      # view.text == "Project"
    view.span(1, 4)                     # where those letters stand in what was written

Wide, bold and other styled letters, digits of other scripts, spaces and dashes of all kinds, and the Cyrillic and Greek letters that look like Latin ones
become ASCII; characters that are not seen are left out. What is written in other scripts stays, but for those letters: so whoever looks for a word looks in
both, the text as it is and this.
Source: NFKC (Unicode Annex 15), default ignorable characters (Annex 44), single letters of the confusables (Technical Standard 39).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from bedplate.data import privacy
from bedplate.data.privacy import Finding

UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]"
)
"""What a reader does not see between two letters."""
_WRITTEN = "асԁеһіјӏорԛѕуѵԝхАВСЕНІЈКМОРЅТУХαικνορυΑΒΕΖΗΙΚΜΝΟΡΤΥΧıɑɡ"
_READ = "acdehijlopqsyvwxABCEHIJKMOPSTYXaiknopuABEZHIKMNOPTYXiag"
_STYLED = ((0x80, 0x10000), (0x1D400, 0x1D800), (0x1F100, 0x1F190), (0x1FBF0, 0x1FBFA))
"""Where letters stand that are others in another style."""


class Plain(NamedTuple):
    """A text as it is read."""

    text: str
    places: Sequence[int] | None
    """Of its characters in what was written; None: the same."""
    characters: int
    """Of what was written."""

    def place(self, at: int) -> int:
        """Where a character stands in what was written; behind the last one, its end."""
        if self.places is None:
            return at
        return self.places[at] if at < len(self.places) else self.characters

    def span(self, start: int, end: int) -> tuple[int, int]:
        """A stretch of at least one character in what was written."""
        return self.place(start), self.place(end - 1) + 1


def plain(text: str) -> Plain:
    """A text as it is read; linear in its length."""
    if text.isascii():
        return Plain(text, None, len(text))
    read = text.translate(_table())
    if UNSEEN.search(read) is None:
        return Plain(read, None, len(text))
    places = [at for at, letter in enumerate(read) if UNSEEN.match(letter) is None]
    return Plain("".join([read[at] for at in places]), places, len(text))


def personal(text: str, without: Sequence[str] = ()) -> list[Finding]:
    """Personal data and secrets in a text, as data/privacy.py finds them in what is written; where nothing is found so, in what is read."""
    found = privacy.find(text, without)
    if found or text.isascii():
        return found
    view = plain(text)
    return [Finding(*view.span(one.start, one.end), one.kind) for one in privacy.find(view.text, without)] if view.text != text else []


@cache
def _table() -> dict[int, str]:
    """Code point -> the ASCII character as which it is read."""
    table = dict(zip(map(ord, _WRITTEN), _READ, strict=True))
    for begin, end in _STYLED:
        for code in range(begin, end):
            letter = chr(code)
            kind = unicodedata.category(letter)
            read = "-" if kind == "Pd" or code == 0x2212 else str(unicodedata.digit(letter)) if kind == "Nd" else unicodedata.normalize("NFKC", letter)
            if len(read) == 1 and read.isascii():
                table.setdefault(code, read)
    return table
