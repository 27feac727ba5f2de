"""Runs a program inside this process after giving up everything that could do harm. Knows the standard library only: it is run as a file.

    python -I confine.py PROGRAM SECONDS BYTES

Before the program's first line: limits on processor time, memory, open files and written bytes; no new privileges; and a filter in the kernel
(seccomp) that allows the few calls a computation needs and refuses every other with "operation not permitted". So there is no socket, no
process beside this one, no signal to another, no program started, and no file opened for writing: nothing outlives the run. Files can be
read; nothing that was read can leave. A machine whose kernel has no such filter refuses (exit code 70).

Source: seccomp(2), prctl(2); numbers of calls from the kernel's tables for x86_64 and aarch64.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import runpy
import sys

REFUSED = 70
"""Exit code where this machine cannot confine a program."""

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> (column of ALLOWED, its number in the kernel's audit headers)."""

NONE = -1
ALLOWED: dict[str, tuple[int, int]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, NONE), "fstat": (5, 80), "lstat": (6, NONE), "poll": (7, NONE), "lseek": (8, 62),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "pread64": (17, 67), "readv": (19, 65), "writev": (20, 66), "access": (21, NONE), "pipe": (22, NONE),
    "select": (23, NONE), "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, NONE), "nanosleep": (35, 101),
    "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160), "getcwd": (79, 17), "readlink": (89, NONE), "gettimeofday": (96, 169),
    "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "sigaltstack": (131, 132), "arch_prctl": (158, NONE), "gettid": (186, 178),
    "time": (201, NONE), "futex": (202, 98), "sched_getaffinity": (204, 123), "getdents64": (217, 61), "set_tid_address": (218, 96),
    "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "newfstatat": (262, 79), "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99),
    "dup3": (292, 24), "pipe2": (293, 59), "getrandom": (318, 278), "membarrier": (324, 283), "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439),
}  # fmt: skip
OPEN, OPENAT, CLONE, CLONE3, FCNTL, IOCTL = (2, NONE), (257, 56), (56, 220), (435, 435), (72, 25), (16, 29)
COMMANDS = {FCNTL: (0, 1, 2, 3, 4, 1030), IOCTL: (0x5401, 0x5450, 0x5451)}
"""What may be asked of an open file: copies and flags of its descriptor, and whether it is a terminal. Others could send signals to other processes."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
THREAD = 0x00010000
"""Of clone: a thread of this process, not a new one."""

LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, DENY, ABSENT, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
"""Verdicts of the filter: go on; EPERM; ENOSYS, on which the C library tries the older call; end the process."""


class Step(ctypes.Structure):
    """One instruction of the filter."""

    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32)]


class Filter(ctypes.Structure):
    """The filter as the kernel takes it."""

    _fields_ = [("length", ctypes.c_uint16), ("steps", ctypes.POINTER(Step))]


def filter_steps(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter as (code, skip if so, skip if not, value).

    Args:
        machine: one of MACHINES.
    """
    column, audit = MACHINES[machine]
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, audit), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]

    def when(number: int, *then: tuple[int, int, int, int]) -> None:
        if number != NONE:
            steps.extend([(EQUAL, 0, len(then), number), *then])

    def unless(argument: int, bits: int) -> list[tuple[int, int, int, int]]:
        return [(LOAD, 0, 0, 16 + 8 * argument), (ANY_BIT, 0, 1, bits), (RETURN, 0, 0, DENY), (RETURN, 0, 0, ALLOW)]

    for numbers in ALLOWED.values():
        when(numbers[column], (RETURN, 0, 0, ALLOW))
    when(OPEN[column], *unless(1, WRITES))
    when(OPENAT[column], *unless(2, WRITES))
    when(CLONE[column], (LOAD, 0, 0, 16), (ANY_BIT, 0, 1, THREAD), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, DENY))
    for numbers, commands in COMMANDS.items():
        chosen = [step for command in commands for step in ((EQUAL, 0, 1, command), (RETURN, 0, 0, ALLOW))]
        when(numbers[column], (LOAD, 0, 0, 24), *chosen, (RETURN, 0, 0, DENY))
    when(CLONE3[column], (RETURN, 0, 0, ABSENT))
    return [*steps, (RETURN, 0, 0, DENY)]


def confine(seconds: int, most_bytes: int) -> None:
    """Give up what could do harm, for ever.

    Args:
        seconds: of processor time.
        most_bytes: of memory.
    Raises:
        OSError: the kernel refuses.
    """
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, most_bytes),
        (resource.RLIMIT_DATA, most_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    written = filter_steps(platform.machine())
    steps = (Step * len(written))(*(Step(*one) for one in written))
    library = ctypes.CDLL(None, use_errno=True)
    asked = Filter(len(written), steps)
    no_new_privileges, filter_calls, by_program = 38, 22, 2
    if library.prctl(no_new_privileges, 1, 0, 0, 0) or library.prctl(filter_calls, by_program, ctypes.byref(asked), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel takes no filter")


def main() -> None:
    """Confine this process and run the program in it."""
    program, seconds, most_bytes = sys.argv[1:]
    try:
        confine(int(seconds), int(most_bytes))
    except (OSError, KeyError, ValueError, AttributeError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}")
        sys.exit(REFUSED)
    sys.argv = [program]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
