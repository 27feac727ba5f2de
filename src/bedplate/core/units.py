"""Numbers for people: bytes, counts, durations; and back from words to numbers."""

from __future__ import annotations

import re

from bedplate.core.errors import ConfigError

_FACTORS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def format_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def format_count(count: float) -> str:
    """1_234_567 -> '1.23 M'."""
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.3g}" if isinstance(count, float) and not count.is_integer() else f"{int(count)}"


def format_seconds(seconds: float) -> str:
    """3723 -> '1 h 02 min'."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def parse_count(text: str) -> int:
    """'5M' -> 5_000_000."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmbgt]?)\s*", text.lower())
    if not match:
        raise ConfigError(f"{text!r} is not a count", "write a number with k, M, B or T, such as 5M")
    return round(float(match[1]) * _FACTORS[match[2]])


def parse_seconds(text: str) -> float:
    """'20m' -> 1200.0; also s, h, d."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*(s|sec|m|min|h|d)\s*", text.lower())
    if not match:
        raise ConfigError(f"{text!r} is not a duration", "write a number with s, m, h or d, such as 20m")
    return float(match[1]) * _SECONDS[match[2]]
