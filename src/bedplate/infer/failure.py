"""Failures as they are told to whoever asked."""

from __future__ import annotations

from bedplate.core.errors import BedplateError, ResourceError


def as_told(error: Exception) -> BedplateError:
    """An error that may leave: our own as it is, any other without its insides."""
    if isinstance(error, BedplateError):
        return error
    told = ResourceError(f"the engine failed: {type(error).__name__}", "ask again; if it comes back, the log of the process has the reason")
    told.__cause__ = error
    return told
