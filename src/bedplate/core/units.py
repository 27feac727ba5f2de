"""Numbers for people: bytes, counts, durations; and back from words to numbers."""

from __future__ import annotations

import math
import re

from bedplate.core.errors import ConfigError

_FACTORS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def format_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    if not math.isfinite(count):
        return f"{count} B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def format_count(count: float) -> str:
    """1_234_567 -> '1.23 M'."""
    if not math.isfinite(count):
        return str(count)
    count = float(f"{count:.3g}") if abs(count) >= 999.5 else count  # rounded first, so that 999,999 is 1 M and not 1e+03 k
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.3g}" if not float(count).is_integer() else f"{int(count)}"


def format_seconds(seconds: float) -> str:
    """3723 -> '1 h 02 min'."""
    if not math.isfinite(seconds):
        return f"{seconds} s"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if round(seconds) < 600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def parse_count(text: str) -> int:
    """'5M' -> 5_000_000."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmbgt]?)\s*", text.lower())
    if not match:
        raise ConfigError(f"{text!r} is not a count", "write a number with k, M, B or T, such as 5M")
    return round(_number(match[1], text) * _FACTORS[match[2]])


def parse_seconds(text: str) -> float:
    """'20m' -> 1200.0; also s, h, d."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*(s|sec|m|min|h|d)\s*", text.lower())
    if not match:
        raise ConfigError(f"{text!r} is not a duration", "write a number with s, m, h or d, such as 20m")
    return _number(match[1], text) * _SECONDS[match[2]]


def _number(digits: str, text: str) -> float:
    try:
        value = float(digits)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise ConfigError(f"{text!r} holds no number", "write one such as 5 or 1.5")
    return value
