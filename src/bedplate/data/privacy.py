"""Personal data and secrets in texts: found, counted and, if wanted, masked.

    findings = find(text)                 # [Finding(start, end, kind)], none overlapping
    masked = mask(text, findings)         # MASK stands where they stood; the tokenizer makes <|mask|> of it

Each kind is a row of KINDS: a cheap word that must occur, a pattern that runs in linear time, and a check (Luhn, IBAN's remainder, entropy,
words around it) that keeps ordinary numbers of code and prose out. What cannot be told apart from an ordinary number without context is
only taken with context: a missed phone number is better than a program full of holes.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

MASK = "\ufdd0"
"""Stands for what was taken out until the tokenizer makes `<|mask|>` of it. A noncharacter: cleaning removes it from raw text."""

PrivacyMode = Literal["off", "report", "mask"]


class Finding(NamedTuple):
    """A place in a text and what kind of thing stands there."""

    start: int
    end: int
    kind: str


class Kind(NamedTuple):
    """How one kind is found."""

    near: tuple[str, ...]
    """Lower-case words; the pattern is only tried around them. Empty: around stretches dense with digits."""
    pattern: re.Pattern[str]
    check: Callable[[re.Match[str]], bool]
    group: int | str = 0
    """The part of the match that is masked."""
    reach: int = 300
    """Characters before and after the word that are looked at."""


def _email(match: re.Match[str]) -> bool:
    name, _, domain = match[0].lower().rpartition("@")
    reserved = domain.endswith((".example", ".invalid", ".test", ".localhost", "example.com", "example.org", "example.net"))
    return not reserved and name not in ("git", "noreply", "no-reply") and not domain.endswith((".py", ".js", ".png", ".jpg"))


def _around(match: re.Match[str], words: re.Pattern[str], before: int = 40) -> bool:
    return bool(words.search(match.string, max(0, match.start() - before), match.start()))


def _phone(match: re.Match[str]) -> bool:
    digits = sum(c.isdigit() for c in match[0])
    separated = any(c in " .-()" for c in match[0][1:])
    if not 8 <= digits <= 15 or not (separated or _around(match, _PHONE_WORDS)):
        return False
    return match[0].startswith("+") or _around(match, _PHONE_WORDS) or match[0].startswith("(")


def luhn(digits: str) -> bool:
    """Whether the check digit of a card number holds."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _card(match: re.Match[str]) -> bool:
    digits = re.sub(r"[ -]", "", match[0])
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 4 or not _CARD_PREFIX.match(digits):
        return False
    grouped = len(set(re.findall(r"[ -]", match[0]))) == 1
    return luhn(digits) and (grouped or _around(match, _CARD_WORDS, 60))


def _iban(match: re.Match[str]) -> bool:
    code = match[0].replace(" ", "")
    if IBAN_LENGTHS.get(code[:2]) != len(code):
        return False
    return int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1


def _ssn(match: re.Match[str]) -> bool:
    area, group, serial = match[0].split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000" and _around(match, _SSN_WORDS, 60)


def _ip(match: re.Match[str]) -> bool:
    try:
        return ipaddress.ip_address(match[0]).is_global and not _around(match, _VERSION_WORDS, 12)
    except ValueError:
        return False


def entropy(text: str) -> float:
    """Bits a character."""
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def _assigned_secret(match: re.Match[str]) -> bool:
    value = match["value"]
    mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    return mixed and entropy(value) >= 3.5 and not _PLACEHOLDER.search(value)


def _always(_: re.Match[str]) -> bool:
    return True


KINDS: dict[str, Kind] = {
    "private key": Kind(
        ("private key",),
        re.compile(r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----[^-]{16,20000}(?:-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----)?"),
        _always,
        reach=20_200,
    ),
    "aws key": Kind(("akia", "asia"), re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Za-z0-9])"), _always),
    "github token": Kind(
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(r"(?<![A-Za-z0-9_])(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})(?![A-Za-z0-9_])"),
        lambda m: entropy(m[0]) > 3,
    ),
    "slack token": Kind(("xox",), re.compile(r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,250}"), lambda m: any(c.isdigit() for c in m[0])),
    "google key": Kind(("aiza",), re.compile(r"(?<![A-Za-z0-9_-])AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"), _always),
    "stripe key": Kind(("_live_",), re.compile(r"(?<![A-Za-z0-9_])[rs]k_live_[A-Za-z0-9]{20,200}"), _always),
    "bedplate key": Kind(("bp_",), re.compile(r"(?<![A-Za-z0-9_-])bp_[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])"), lambda m: entropy(m[0]) > 3.5),
    "json web token": Kind(
        ("eyj",),
        re.compile(r"(?<![A-Za-z0-9_.-])eyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,1000}"),
        _always,
        reach=7_100,
    ),
    "assigned secret": Kind(
        ("key", "secret", "token", "passw"),
        re.compile(
            r"(?i)(?:api[_-]?key|secret(?:[_-]?(?:access)?[_-]?key)?|access[_-]?(?:key|token)|auth[_-]?token|token|passw(?:or)?d)"
            r"""["']?[ \t]{0,4}(?:=|:|=>|:=)[ \t]{0,4}["'](?P<value>[A-Za-z0-9+/_=.~-]{16,200})["']"""
        ),
        _assigned_secret,
        "value",
    ),
    "e-mail": Kind(
        ("@",),
        re.compile(r"(?<![A-Za-z0-9._%+/-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,6}[A-Za-z]{2,24}(?![A-Za-z0-9(])"),
        _email,
    ),
    "iban": Kind(
        (),
        re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"),
        _iban,
    ),
    "card number": Kind((), re.compile(r"(?<![0-9A-Za-z.,_-])[3-6][0-9]{3}(?:[ -]?[0-9]{2,6}){2,4}(?![0-9A-Za-z_.-])"), _card),
    "social security number": Kind(("ssn", "social security"), re.compile(r"(?<![0-9-])[0-9]{3}-[0-9]{2}-[0-9]{4}(?![0-9-])"), _ssn),
    "phone number": Kind(
        (),
        re.compile(
            r"(?<![0-9A-Za-z+*/=.,_-])(?:\+[1-9][0-9]{0,2}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?[0-9]{1,4}(?:[ .-]?[0-9]{2,4}){1,4}"
            r"|\([0-9]{3}\) ?[0-9]{3}-[0-9]{4}|[0-9]{3}[-.][0-9]{3}[-.][0-9]{4})(?![0-9A-Za-z_])"
        ),
        _phone,
    ),
    "ip address": Kind(
        (".", ":"),
        re.compile(
            r"(?<![0-9A-Za-z.:_-])(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|(?:[0-9A-Fa-f]{1,4}:){3,7}[0-9A-Fa-f]{1,4}|(?:[0-9A-Fa-f]{1,4}:){2,6}(?::[0-9A-Fa-f]{1,4}){1,6})"
            r"(?![0-9A-Za-z:_]|\.[0-9])"
        ),
        _ip,
        reach=48,
    ),
}
"""Every kind, the surest first: where two overlap, the earlier one is taken."""

SECRETS = ("private key", "aws key", "github token", "slack token", "google key", "stripe key", "bedplate key", "json web token", "assigned secret")
"""The kinds that give access to something; the others tell of a person."""


def find(text: str, without: Sequence[str] = ("ip address",)) -> list[Finding]:
    """Personal data and secrets in a text, in order, none overlapping.

    Args:
        text: any text; time is linear in its length.
        without: kinds that are not looked for.
    """
    found: list[Finding] = []
    lower = text.lower()
    dense = _dense_digits(text)
    for name, kind in KINDS.items():
        if name in without:
            continue
        for start, end in _around_words(lower, len(text), kind) if kind.near else dense:
            found += [Finding(*match.span(kind.group), name) for match in _matches(kind, text, start, end)]
    if len(found) < 2:
        return found
    rank = {name: place for place, name in enumerate(KINDS)}
    taken: list[Finding] = []
    for finding in sorted(found, key=lambda f: (rank[f.kind], f.start)):
        if all(finding.end <= other.start or finding.start >= other.end for other in taken[-2000:]):
            taken.append(finding)
    return sorted(taken)


def mask(text: str, findings: Sequence[Finding]) -> str:
    """The text with MASK in place of each finding (in order, none overlapping)."""
    parts, at = [], 0
    for finding in findings:
        parts += [text[at : finding.start], MASK]
        at = finding.end
    return "".join([*parts, text[at:]])


def _matches(kind: Kind, text: str, start: int, end: int) -> Iterator[re.Match[str]]:
    """Matches that pass the kind's check. A number that stands beside another one is tried with fewer of its groups, and from its next one."""
    while match := kind.pattern.search(text, start, end):
        breaks = [at for at in range(match.start() + 1, match.end()) if text[at] in " -"] if not kind.near else []
        tries = (match, *filter(None, (kind.pattern.fullmatch(text, match.start(), at) for at in reversed(breaks))))
        good = next((one for one in tries if kind.check(one)), None)
        if good is not None:
            yield good
        start = good.end() if good is not None else breaks[0] + 1 if breaks else match.end()


def _around_words(lower: str, length: int, kind: Kind) -> list[tuple[int, int]]:
    """Stretches around the words of a kind, merged where they meet."""
    if len(lower) != length:  # a character whose lower case is longer: places would not fit
        return [(0, length)]
    marks = []
    for word in kind.near:
        at = lower.find(word)
        while at >= 0:
            marks.append(at)
            at = lower.find(word, at + len(word))
    return _merge(np.sort(np.array(marks, np.int64)), kind.reach, length)


def _dense_digits(text: str) -> list[tuple[int, int]]:
    """Stretches around places where at least 8 of 28 characters are digits: every number of a card, a phone or an account is in one."""
    characters = np.frombuffer(text.encode("utf-32-le", errors="replace"), np.uint32)
    counts = np.concatenate([[0], np.cumsum(characters - np.uint32(48) < 10, dtype=np.int32)])
    window = min(28, len(characters))
    return _merge(np.flatnonzero(counts[window:] - counts[:-window or None] >= 8), 80, len(text)) if window else []


def _merge(marks: np.ndarray, reach: int, length: int) -> list[tuple[int, int]]:
    if not len(marks):
        return []
    breaks = np.flatnonzero(np.diff(marks) > 2 * reach)
    starts = np.concatenate([[marks[0]], marks[breaks + 1]]) - reach
    ends = np.append(marks[breaks], marks[-1]) + reach
    return list(zip(np.maximum(starts, 0).tolist(), np.minimum(ends, length).tolist()))


_PHONE_WORDS = re.compile(r"(?i)\b(?:tel|phone|telephone|call|mobile|cell|fax|whatsapp|telefon|ph)\b")
_CARD_WORDS = re.compile(r"(?i)\b(?:card|visa|mastercard|amex|credit|debit|pan)\b")
_SSN_WORDS = re.compile(r"(?i)\bssn\b|social security")
_VERSION_WORDS = re.compile(r"(?i)\b(?:version|ver|v|release|section|oid)\W{0,3}$")
_PLACEHOLDER = re.compile(r"(?i)example|your[_-]?|xxxx|changeme|placeholder|dummy|sample|insert|0123456789|abcdef|12345678|\.\.\.")
_CARD_PREFIX = re.compile(r"4|5[1-5]|2[2-7]|3[47]|6(?:011|5|4[4-9])|3(?:0[0-5]|[68])|35")
IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28,
    "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18,
    "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32,
    "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24,
    "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28,
    "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip
"""Characters of an IBAN by country. Source: SWIFT IBAN registry."""
