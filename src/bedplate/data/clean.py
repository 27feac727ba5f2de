"""Cleaning: repairs that change a text and rules that refuse it, each a row of a table with its limit and where the limit comes from.

    look = Look(text)                       # measured once, in numpy
    refusal = refuse(look, "text", settings)   # None, or Refusal(rule, detail)

`standard` only refuses what teaches nothing (tables of numbers, repeated lines, minified code); `web` adds the strict limits that were tuned
on web pages and would refuse good short documents. Captions and labels of pairs are never measured.

Sources: Gopher (Rae et al., 2021, table A1), C4 (Raffel et al., 2020), FineWeb (Penedo et al., 2024), StarCoder (Li et al., 2023).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from bedplate.core.errors import ConfigError, did_you_mean
from bedplate.data.document import Component
from bedplate.data.words import Words, runs, split_words

Level = Literal["off", "repair", "standard", "web"]


@dataclass(frozen=True)
class CleanSettings:
    """How texts are cleaned."""

    level: Level = "standard"
    """off: nothing; repair: damage is mended, nothing is refused; standard: and what teaches nothing is refused; web: strict limits for web pages."""
    without: tuple[str, ...] = ()
    """Names of rules and repairs that are not applied."""

    def __post_init__(self) -> None:
        known = [*RULES, *REPAIRS]
        for name in self.without:
            if name not in known:
                raise ConfigError(f"clean.without: there is no rule {name!r}", did_you_mean(name, known))


class Refusal(NamedTuple):
    """Why a text is not taken: the rule's name, and the measure that broke its limit."""

    rule: str
    detail: str


class Look:
    """What the rules need to know about a text; each part is measured when first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> Words:
        """Hashes and places of its words."""
        return split_words(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """Its lines without the white space around them, empty ones left out."""
        return [line for raw in self.text.split("\n") if (line := raw.strip())]

    @cached_property
    def bytes(self) -> np.ndarray:
        """UTF-8 bytes."""
        return np.frombuffer(self.text.encode("utf-8", errors="replace"), np.uint8)

    @cached_property
    def kinds(self) -> np.ndarray:
        """Share of bytes that are white space, letters (and all beyond ASCII), digits, other signs."""
        counts = np.bincount(_KIND[self.bytes], minlength=4)
        shares: np.ndarray = counts / max(1, len(self.bytes))
        return shares


def _share_in_repeats(parts: list[str]) -> float:
    """Share of characters in parts that already occurred."""
    seen: set[str] = set()
    repeated = 0
    for part in parts:
        repeated += len(part) if part in seen else 0
        seen.add(part)
    return repeated / max(1, sum(map(len, parts)))


def _top_run(look: Look, length: int) -> float:
    """Share of words in the most frequent run of `length` words."""
    hashes = look.words.hashes
    if len(hashes) < 50:
        return 0.0
    found = runs(hashes, length)
    bits = (8 * len(found)).bit_length()
    most = int(np.bincount((found >> np.uint64(64 - bits)).astype(np.int64)).max())  # at least the truth: several runs may share a bin
    if most * length > 0.1 * len(hashes):
        most = int(np.unique(found, return_counts=True)[1].max())
    return most * length / len(hashes) if most > 2 else 0.0


def _repeated_runs(look: Look) -> float:
    """Share of runs of ten words that already occurred; of a long text, among the runs whose hash chose them (one in eight)."""
    found = runs(look.words.hashes, 10)
    if len(found) > 8_000:
        found = found[found & np.uint64(7) == 0]
    return 1 - len(np.unique(found)) / len(found) if len(found) >= 40 else 0.0


def _mean_word(look: Look) -> float:
    words = look.words
    return float((words.end - words.start).mean()) if len(words) else 0.0


def _wordless(look: Look) -> float:
    return 1 - float(look.words.lettered.mean()) if len(look.words) else 1.0


def _paragraphs(look: Look) -> float:
    return _share_in_repeats([part for raw in look.text.split("\n\n") if (part := raw.strip())])


def _has_boilerplate(text: str) -> bool:
    lower = text.lower()
    return any(phrase in lower for phrase in BOILERPLATE)


def _unpunctuated(look: Look) -> float:
    return 1 - sum(line.endswith((".", "!", "?", '"', "”", "。", "！", "？", ":", ";", ")")) for line in look.lines) / max(1, len(look.lines))


def _mean_line(look: Look) -> float:
    return len(look.text) / max(1, look.text.count("\n") + 1)


def _generated(look: Look) -> float:
    return float(bool(_GENERATED.search("\n".join(look.lines[:5])[:2000])))


def _data_like(look: Look) -> float:
    """Share of the text in its longest stretch of numbers, brackets and hex, or of base64."""
    longest = max(_longest_stretch(table[look.bytes]) for table in _LITERALS)
    return longest / max(1, len(look.bytes)) if longest >= 400 else 0.0


def _longest_stretch(inside: np.ndarray) -> int:
    """Length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))


class Rule(NamedTuple):
    """A measure with its limits; a text is refused when it is above (or, for `least`, below) the limit. None: not applied at that level."""

    measure: Callable[[Look], float]
    standard: float | None
    web: float | None
    source: str
    least: bool = False


RULES: dict[str, Rule] = {
    "too short": Rule(lambda k: float(len(k.words)), 3, 50, "ours; web: Gopher, 50 words", least=True),
    "words too short": Rule(_mean_word, 1.5, 3, "ours; web: Gopher, mean word length 3..10", least=True),
    "words too long": Rule(_mean_word, 20, 10, "ours; web: Gopher"),
    "few words with letters": Rule(_wordless, 0.7, 0.2, "ours; web: Gopher, 80% of words hold a letter"),
    "many signs": Rule(lambda k: float(k.kinds[3]), 0.5, 0.25, "ours, after Gopher's symbol-to-word ratio"),
    "damaged characters": Rule(lambda k: k.text.count("�") / max(1, len(k.text)), 0.05, 0.01, "ours"),
    "repeated lines": Rule(lambda k: _share_in_repeats(k.lines), 0.5, 0.2, "web: Gopher, characters in duplicate lines"),
    "repeated paragraphs": Rule(_paragraphs, 0.5, 0.2, "web: Gopher, characters in duplicate paragraphs"),
    "one phrase (2 words)": Rule(lambda k: _top_run(k, 2), 0.5, 0.2, "web: Gopher, top 2-gram"),
    "one phrase (3 words)": Rule(lambda k: _top_run(k, 3), 0.5, 0.18, "web: Gopher, top 3-gram"),
    "one phrase (4 words)": Rule(lambda k: _top_run(k, 4), 0.5, 0.16, "web: Gopher, top 4-gram"),
    "repeated phrases": Rule(_repeated_runs, 0.6, 0.1, "web: Gopher, duplicate 10-grams"),
    "lines without an end": Rule(_unpunctuated, None, 0.88, "FineWeb, lines that end with punctuation >= 12%"),
}
"""Rules for prose."""

CODE_RULES: dict[str, Rule] = {
    "too short": RULES["too short"],
    "damaged characters": RULES["damaged characters"],
    "minified": Rule(_mean_line, 100, 100, "StarCoder, mean line length"),
    "long lines": Rule(lambda k: float(max(map(len, k.lines), default=0)), 5000, 1000, "StarCoder, longest line 1,000; ours 5,000"),
    "few letters": Rule(lambda k: float(k.kinds[1] + k.kinds[2]), 0.25, 0.25, "StarCoder, 25% letters and digits", least=True),
    "generated": Rule(_generated, 0.5, 0.5, "StarCoder, marks in the first five lines"),
    "data-like": Rule(_data_like, 0.5, 0.5, "ours, after StarCoder's filter for data files"),
    "repeated lines": Rule(lambda k: _share_in_repeats([line for line in k.lines if len(line) > 20]), 0.5, 0.5, "ours"),
}
"""Rules for code: its lines and signs repeat by nature."""

RULES_OF: dict[Component, dict[str, Rule]] = {"text": RULES, "code": CODE_RULES}


def refuse(look: Look, component: Component, settings: CleanSettings) -> Refusal | None:
    """The first rule that a text breaks, or None.

    Args:
        look: the text.
        component: "text" or "code"; others are not measured.
        settings: which rules hold.
    """
    if settings.level not in ("standard", "web"):
        return None
    for name, rule in RULES_OF.get(component, {}).items():
        limit = rule.web if settings.level == "web" else rule.standard
        if limit is None or name in settings.without:
            continue
        value = rule.measure(look)
        if value < limit if rule.least else value > limit:
            return Refusal(name, f"{value:.3g}, limit {limit:g}")
    return None


def _gutenberg(text: str) -> str:
    """The book without the licence that Project Gutenberg puts around it."""
    if "PROJECT GUTENBERG" not in text.upper():
        return text
    start, end = _BOOK_START.search(text), _BOOK_END.search(text)
    first, last = (start.end() if start else 0), (end.start() if end else len(text))
    return text[first:last].strip() + "\n" if first < last else text


def _drop_boilerplate(text: str) -> str:
    """The text without single lines that only a web page's frame has."""
    if not _has_boilerplate(text):
        return text
    return "\n".join(line for line in text.split("\n") if len(line) >= 200 or not _has_boilerplate(line))


BOILERPLATE = (
    "lorem ipsum",
    "enable javascript",
    "javascript is disabled",
    "javascript is required",
    "use of cookies",
    "accept cookies",
    "accept all cookies",
    "cookie policy",
    "subscribe to our newsletter",
    "sign up for our newsletter",
    "share this article",
    "share this page",
    "share this post",
    "skip to content",
    "skip to main content",
    "terms of use |",
    "terms of service |",
)
"""Phrases of the frame of a web page; a short line with one of them is not part of what the page says."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufdd0-\ufdef\ufeff\ufffe\uffff]")
_LINE_END_SPACE = re.compile(r"(?<![ \t])[ \t]{1,1000}\n")
_EMPTY_LINES = re.compile(r"\n{4,}")

REPAIRS: dict[str, Callable[[str], str]] = {
    "line ends": lambda text: text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text,
    "control characters": lambda text: _CONTROL.sub("", text) if _CONTROL.search(text) else text,
    "space at line ends": lambda text: _LINE_END_SPACE.sub(_cut_space, text) if " \n" in text or "\t\n" in text else text,
    "empty lines": lambda text: _EMPTY_LINES.sub("\n\n\n", text) if "\n\n\n\n" in text else text,
    "book licence": _gutenberg,
    "boilerplate lines": _drop_boilerplate,
}
"""Repairs, in order; each gives the text back, changed or not. The last two are not applied to code."""

_ONLY_PROSE = ("book licence", "boilerplate lines")


def repair(text: str, component: Component, settings: CleanSettings) -> tuple[str, tuple[str, ...]]:
    """The mended text, and the names of the repairs that changed it.

    Lone surrogates are always replaced: they cannot be written as UTF-8.
    """
    done = []
    try:
        text.encode("utf-8")
        whole = text
    except UnicodeEncodeError:
        whole = text.encode("utf-8", errors="replace").decode("utf-8")
        done.append("lone surrogates")
    if settings.level == "off":
        return whole, tuple(done)
    for name, mend in REPAIRS.items():
        if name in settings.without or (name in _ONLY_PROSE and component != "text"):
            continue
        mended = mend(whole)
        if mended != whole:
            done.append(name)
            whole = mended
    return whole, tuple(done)


def count_rules(refusals: list[Refusal]) -> dict[str, int]:
    """How many were refused by each rule."""
    return dict(Counter(refusal.rule for refusal in refusals))


def _cut_space(match: re.Match[str]) -> str:
    return match[0].lstrip(" \t")


_BOOK_START = re.compile(r"\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG[^\n]{0,200}\n")
_BOOK_END = re.compile(r"\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG")
_GENERATED = re.compile(
    r"(?i)auto[- ]?generated|generated (?:by|from|with) |do not edit|automatically generated|this file (?:was|is) generated|@generated"
)
def _kind_table() -> np.ndarray:
    table = np.full(256, 1, np.int64)
    for byte in range(128):
        sign = chr(byte)
        table[byte] = 0 if sign.isspace() else 1 if sign.isalpha() else 2 if sign.isdigit() else 3
    return table


_KIND = _kind_table()


def _bytes_in(signs: str) -> np.ndarray:
    table = np.zeros(256, bool)
    table[list(signs.encode())] = True
    return table


_LITERALS = (
    _bytes_in("-0123456789abcdefABCDEFxX.,;: \t\n'\"\\[](){}+"),
    _bytes_in("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="),
)
