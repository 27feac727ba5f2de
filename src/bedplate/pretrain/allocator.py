"""Keeps freed memory inside the process on Linux CPUs.

A training step frees and takes the same large buffers again and again. glibc hands such blocks back to the system at once, and every new
one is then paged in 4 KiB at a time: on two cores that was a quarter of a 5M-parameter step (docs/journal.md). Telling malloc to keep what
is freed removes it, at the price of a resident size that stays at the step's peak.
"""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h: names of mallopt's parameters.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4


def keep_freed_memory(top_pad_bytes: int = 64 << 20) -> bool:
    """Ask malloc to serve large blocks from its heap and never to trim it.

    Args:
        top_pad_bytes: how much the heap grows at a time.
    Returns:
        Whether it was possible (glibc only); elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    answers = [mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, top_pad_bytes)]
    return all(answer == 1 for answer in answers)
