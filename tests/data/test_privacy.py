"""Personal data and secrets: found where they are, not found where they are not, in linear time."""

import sysconfig
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.data.privacy import KINDS, MASK, Finding, find, luhn, mask

PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAx5n8Vq\nQ0pVd2l0aCBzb21lIGJ5dGVz\n-----END RSA PRIVATE KEY-----"
A = "A" * 3  # parts joined at run time, so that no scanner takes this file for a leak
FOUND = {
    "private key": [PEM],
    "aws key": ["AKI" + "AQ3EGRIZTVXWPLNHM"],
    "github token": ["ghp" + "_x7Kq2LmN9pRsT4uVwXyZ1aBcD3eFgH5iJkL0"],
    "slack token": ["xox" + "b-2401234567-abcDEF1234ghiJKL"],
    "google key": ["AIz" + "aSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY"],
    "stripe key": ["sk" + "_live_4eC39HqLyjWDarjtT1zdp7dc"],
    "bedplate key": ["bp" + "_Vq3xW8ZkT1yN5sLr0PdJ7fHgB2mCuXeA9oKiE4tQwYz"],
    "json web token": ["eyJ" + "hbGciOiJIUzI1NiJ9." + "eyJ" + "zdWIiOiIxMjM0In0.dBjftJeZ4CVPmB92K27uhbUJU1p1r"],
    "assigned secret": ['api_key = "9f8Ke2Lq7Zx1Vb4Nm6Pw3Rt5Yu"', "password: 'hG7sk2Lp9QxZ4vTn'"],
    "e-mail": ["write to anna.schmidt@firma-web.de today", "<o.o'x+tag@mail.co.uk>"],
    "iban": ["IBAN DE89 3704 0044 0532 0130 00 please", "GB82WEST12345698765432"],
    "card number": ["paid by card 4539578763621486 today", "4539 5787 6362 1486", "amex 3714-496353-98431"],
    "social security number": ["his SSN is 219-09-9999."],
    "phone number": ["call +49 30 901820 now", "(415) 555-2671", "tel: 415-555-2671", "+1 415 555 2671"],
    "ip address": ["from 93.184.216.34 port 80", "at 2606:2800:0220:0001:0248:1893:25c8:1946"],
}
NOT_FOUND = [
    "version 2.6.18.6 of the kernel",
    "git@github.com:owner/repository.git",
    "someone@example.com",
    "x = 1234567890123456",
    "3.14159265358979323846",
    "uuid 123e4567-e89b-12d3-a456-426614174000",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "timestamps 1700000000 1700003600 1700007200 1700010800",
    "range 2019-2024, pages 415-555",
    'token = "your_api_key_here_please"',
    'password = "xxxxxxxxxxxxxxxxxxxxxxxx"',
    "def decorator(@staticmethod)",
    "DE00 3704 0044 0532 0130 00",
    "219-09-9999",
    "the number 4111 1111 1111 1112",
    "0000000000000000",
    "[1, 22, 333, 4444, 55555, 666666, 7777777]",
    "a[1:9:3], b[1::3]",
    "x+1234567890",
    "bp_" + "x" * 43,
    "10.0.0.1 and 192.168.1.17 and 127.0.0.1",
]


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_kind_is_found(kind):
    assert kind in FOUND
    for text in FOUND[kind]:
        assert [f.kind for f in find(f"Before it. {text}\nAfter it.", ())] == [kind], text
        assert find(f"Before it. {text}\nAfter it.", without=tuple(KINDS)) == []


@pytest.mark.parametrize("text", NOT_FOUND)
def test_ordinary_things_are_not(text):
    assert find(text, ()) == []


def test_mask_takes_out_exactly_the_finding():
    text = "Mail anna@firma.de or bob@firma.de, not me."
    assert mask(text, find(text)) == f"Mail {MASK} or {MASK}, not me."
    secret = FOUND["assigned secret"][0]
    assert mask(secret, find(secret)) == f'api_key = "{MASK}"'


def test_luhn():
    assert luhn("4539578763621486") and not luhn("4539578763621487")


def test_findings_do_not_overlap():
    text = " ".join(text for texts in FOUND.values() for text in texts)
    findings = find(text, ())
    assert all(a.end <= b.start for a, b in zip(findings, findings[1:]))
    assert len(findings) >= len(FOUND)


def test_code_of_the_standard_library_is_left_alone():
    counts: Counter[str] = Counter()
    read = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        read += len(text)
        counts.update(f.kind for f in find(text))
    assert read > 3_000_000
    others = {kind: n for kind, n in counts.items() if kind != "e-mail"}
    assert sum(others.values()) <= 3, others  # authors' addresses stand there, the rest would be false alarms


@pytest.mark.shared
def test_prose_and_code_are_left_alone(shared_data):
    import zipfile

    for name, most in (("text/litbank.zip", 0), ("text/peps.zip", 2), ("code/thealgorithms.zip", 5)):
        counts: Counter[str] = Counter()
        with zipfile.ZipFile(shared_data / name) as archive:
            for member in archive.namelist()[:250]:
                counts.update(f.kind for f in find(archive.read(member).decode("utf-8", errors="replace")))
        others = {kind: n for kind, n in counts.items() if kind != "e-mail"}
        assert sum(others.values()) <= most, (name, others)


HARD = ["a" * 60_000, "1" * 60_000, "1-" * 30_000, "1 " * 30_000, "a@" * 30_000, "a." * 30_000, "@a.a.a.a" * 8_000, "eyJ" * 20_000,
        "eyJaaaaaaaa." * 5_000, "-----BEGIN PRIVATE KEY-----" * 2_000, "key='" * 12_000, "key=" + "'" * 60_000, "AB12 " * 12_000,
        "token" * 12_000, "1:" * 30_000, "+1 (" * 15_000, "4539 " * 12_000, "xoxb-" * 12_000, "é@" * 20_000, "İ" * 20_000]  # fmt: skip


@pytest.mark.parametrize("text", HARD, ids=lambda t: t[:12])
def test_hostile_text_takes_linear_time(text):
    """Twice the text must not take much more than twice the steps; a quadratic pattern would take four times, a worse one minutes."""

    def measure(t: str) -> float:
        best = []
        for _ in range(3):
            started = time.process_time()
            find(t, ())
            best.append(time.process_time() - started)
        return min(best)

    once, fourfold = measure(text), measure(text * 4)
    assert fourfold < max(10 * once, 1.0)  # a ratio, with a floor below which the clock is too coarse; quadratic would be 16


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("aA1 -.@:+()=_'\"/eyJAKIghpxob\nDE")), max_size=200))
def test_any_text_is_survived(text):
    findings = find(text, ())
    assert all(0 <= f.start < f.end <= len(text) for f in findings)
    assert findings == sorted(findings)
    masked = mask(text, findings)
    assert masked.count(MASK) == len(findings) + text.count(MASK)


def test_finding_is_a_place():
    assert find("x anna@firma.de")[0] == Finding(2, 15, "e-mail")


@pytest.mark.parametrize("first", ["4539 1488 0343 6467", "+49 30 1234567", "1234 5678", "4000", "DE89 3704 0044 0532 0130 00"])
@pytest.mark.parametrize("second", ["4539 1488 0343 6467", "DE89 3704 0044 0532 0130 00"])
def test_a_number_beside_another_is_found(first, second):
    text = f"pay with {first} {second} today"
    found = {text[f.start : f.end] for f in find(text)}
    assert second in found and (first in found or not first.startswith(("4539", "DE")))
