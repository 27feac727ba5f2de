"""Errors that name the next action.

    BedplateError            exit code 1
      ConfigError            2   a setting is unknown, malformed or impossible
      DataError              3   input cannot be read or used
      IntegrityError         4   a digest, signature or format number does not hold
      ResourceError          5   not enough memory, disk, time or device
      StateError             6   the folder or run is in another state than asked for
      PolicyError            7   a policy forbids it
      RemoteError            8   another machine failed or refused

Every error carries a computed hint: what to change, with the number that would work. `assert` is kept for our own invariants.
"""

from __future__ import annotations

import difflib
import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path


class BedplateError(Exception):
    """An error for a person: what went wrong, and what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class ConfigError(BedplateError):
    """A setting is unknown, malformed or impossible."""

    exit_code = 2


class DataError(BedplateError):
    """Input cannot be read or used."""

    exit_code = 3


class IntegrityError(BedplateError):
    """A digest, a signature or a format number does not hold."""

    exit_code = 4


class ResourceError(BedplateError):
    """Not enough memory, disk, time or device."""

    exit_code = 5


class StateError(BedplateError):
    """A folder or a run is in another state than the one asked for."""

    exit_code = 6


class PolicyError(BedplateError):
    """A policy forbids it."""

    exit_code = 7
    rule = ""
    """Name of what decided, for an audit; set by who knows it."""


class RemoteError(BedplateError):
    """Another machine failed or refused."""

    exit_code = 8
    status: int | None = None
    """Of HTTP, where it answered at all; set by who knows it."""

    @property
    def asker_is_at_fault(self) -> bool:
        """Whether the question was refused for what it is (400, 404, 413, 422, ...): asking something else may work, and the machine is not ill."""
        return self.status is not None and 400 <= self.status < 500 and self.status not in (401, 403, 407, 408, 425, 429)


def from_system(error: BaseException) -> BedplateError | None:
    """What the system refused to read or write, said for a person; None where the error is of another kind."""
    number, name = getattr(error, "errno", None), getattr(error, "filename", None)
    if number is None and f"(os error {errno.ENOSPC})" in str(error):  # safetensors tells it in words alone
        number = errno.ENOSPC
    path = Path(os.fsdecode(name)) if isinstance(name, (str, bytes, os.PathLike)) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        where = next((folder for folder in path.absolute().parents if folder.is_dir()), None) if path else None
        free = f"{shutil.disk_usage(where).free / 2**20:,.1f} MiB are free in {where}; " if where else ""
        return ResourceError(f"the disk is full{f': {path} could not be written' if path else ''}", f"{free}make room and give the same command again")
    if path is None or number is None:
        return None
    reason = os.strerror(number).lower()
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StateError(f"{path}: {reason}", "give a folder that you may write to, or a file that you may read")
    if number in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
        return DataError(f"{path}: {reason}", "check the path")
    return None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The hint for an unknown name: the closest known one, else the list of all.

    Args:
        word: what was written.
        known: the names that would have worked.
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + (", ".join(names) if names else "none")
