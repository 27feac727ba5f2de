"""Errors with their hints and codes; numbers for people and back."""

import errno
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core import errors
from bedplate.core.errors import BedplateError, ConfigError, DataError, ResourceError, StateError, did_you_mean, from_system
from bedplate.core.units import format_bytes, format_count, format_seconds, parse_count, parse_seconds


def classes():
    return [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, BedplateError)]


def test_exit_codes_are_the_documented_ones_and_differ():
    assert {c.__name__: c.exit_code for c in classes()} == {
        "BedplateError": 1,
        "ConfigError": 2,
        "DataError": 3,
        "IntegrityError": 4,
        "ResourceError": 5,
        "StateError": 6,
        "PolicyError": 7,
        "RemoteError": 8,
    }


@pytest.mark.parametrize("cls", classes())
def test_an_error_shows_message_and_hint(cls):
    error = cls("it broke", "mend it")
    assert str(error) == "it broke\nhint: mend it"
    assert str(cls("it broke")) == "it broke"


def test_did_you_mean():
    assert did_you_mean("lern_rate", ["learn_rate", "seed"]) == "did you mean 'learn_rate'?"
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"
    assert did_you_mean("zzz", []) == "known: none"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1536, "1.5 KiB"), (1023, "1023 B"), (2**20, "1.0 MiB"), (80 * 2**30, "80.0 GiB"), (3e15, "2728.5 TiB"), (-2048, "-2.0 KiB")],
)
def test_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1_234_567, "1.23 M"), (124.6e6, "125 M"), (2.61e9, "2.61 B"), (1e12, "1 T"), (0.5, "0.5"), (12.0, "12"), (-5000, "-5 k")]
    + [(999_999, "1 M"), (999.9, "1 k"), (999_600_000, "1 B")],
)
def test_counts(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ms"), (0.12, "120 ms"), (3.21, "3.2 s"), (42, "42 s"), (59.9, "1 min 00 s"), (65, "1 min 05 s"), (599, "9 min 59 s"), (3723, "1 h 02 min")]
    + [(1800, "30 min"), (3599, "1 h 00 min"), (119.7, "2 min 00 s"), (9.99, "10 s"), (0.9999, "1.0 s")],
)
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text


@given(st.floats(-1e18, 1e18))
def test_every_number_has_a_short_text(value):
    assert len(format_bytes(value)) < 16
    assert len(format_count(value)) < 12
    assert len(format_seconds(abs(value))) < 30


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_do_not_break_a_line(value):
    for show in (format_bytes, format_count, format_seconds):
        assert isinstance(show(value), str)


@pytest.mark.parametrize(("text", "count"), [("5M", 5_000_000), ("1.5k", 1500), ("2 B", 2_000_000_000), ("1e19", 10**19), ("7", 7), ("1T", 10**12)])
def test_parse_count(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize(("text", "seconds"), [("20m", 1200), ("2h", 7200), ("90s", 90), ("1.5 h", 5400), ("1d", 86400), ("3 min", 180)])
def test_parse_seconds(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "M", "5 apples", "1.2.3", ".", "-5", "1e", "nan", "1e999"])
def test_words_that_are_no_numbers_are_refused(text):
    with pytest.raises(ConfigError):
        parse_count(text)
    with pytest.raises(ConfigError):
        parse_seconds(text)


@given(st.text(max_size=12))
def test_any_text_parses_or_is_refused(text):
    for parse in (parse_count, parse_seconds):
        try:
            assert parse(text) >= 0
        except ConfigError:
            pass


@pytest.mark.parametrize(("error", "kind", "told"), [
    (OSError(errno.ENOSPC, "No space left on device", "/tmp/x/y"), ResourceError, "the disk is full: /tmp/x/y"),
    (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), ResourceError, "the disk is full"),
    (OSError(errno.EROFS, "Read-only file system", "/x/y"), StateError, "/x/y: read-only file system"),
    (PermissionError(errno.EACCES, "Permission denied", b"/x/y"), StateError, "/x/y: permission denied"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x/y"), DataError, "/x/y: no such file"),
])  # fmt: skip
def test_what_the_system_refuses_is_said_in_words(error, kind, told):
    found = from_system(error)
    assert type(found) is kind and found.message.startswith(told) and found.hint


@pytest.mark.parametrize("error", [ValueError("no"), OSError("no number"), OSError(errno.ECONNRESET, "reset"), OSError(errno.EPIPE, "pipe", "/x")])
def test_what_is_of_another_kind_stays_unforeseen(error):
    assert from_system(error) is None
