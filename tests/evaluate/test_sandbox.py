"""Attacks on the sandbox: each is stopped, and nothing of it stays."""

import os
import re
import time
from pathlib import Path

import pytest

from bedplate.core.errors import PolicyError
from bedplate.evaluate.sandbox import Limits, check_confinement, confine, run, run_program

QUICK = Limits(seconds=1.0, memory_bytes=1 << 29)


def refused(source, error="PermissionError"):
    """The program ends in an error of that kind."""
    found = run_program(source, QUICK)
    assert not found.passed and found.reason == "error" and error in found.detail, found


def test_a_program_that_holds_passes_and_one_that_does_not_says_why():
    check_confinement()
    assert run_program("import collections, re, math, itertools, json\nassert math.sqrt(4) == 2").passed
    assert run_program("import threading\nt = threading.Thread(target=print, args=('x',))\nt.start()\nt.join()").passed
    assert run_program("import numpy as np\nassert np.allclose(np.ones(3) @ np.ones((3, 3)), 3)").passed
    assert run_program("assert 1 == 2, 'no'")[:2] == (False, "failed")
    assert "NameError" in run_program("nothing()").detail
    assert run_program("print('\\ud800'").reason == "error"


@pytest.mark.parametrize("leave", ["raise SystemExit(0)", "import os; os._exit(0)", "exit()", "raise SystemExit(70)"])
def test_leaving_early_is_no_way_to_pass(leave):
    assert run_program(leave)[:2] == (False, "left early")


def test_a_machine_that_cannot_confine_runs_nothing(monkeypatch, tmp_path):
    check_confinement.cache_clear()
    (tmp_path / "confine.py").write_text(run.CONFINE.read_text().replace('"x86_64": (', '"z": (').replace('"aarch64": (', '"y": ('))
    monkeypatch.setattr(run, "CONFINE", tmp_path / "confine.py")
    with pytest.raises(PolicyError, match="cannot confine"):
        run_program("open('/dev/null')")
    check_confinement.cache_clear()


def test_an_endless_loop_and_a_long_sleep_are_ended():
    began = time.monotonic()
    for source in ("while True: pass", "import time\ntime.sleep(600)", "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except Exception: pass\nwhile True: pass"):
        assert run_program(source, QUICK)[:2] == (False, "time") or run_program(source, QUICK).reason == "killed"
    assert time.monotonic() - began < 15


def test_no_other_process():
    refused("import os\nwhile True: os.fork()")
    refused("import subprocess\nsubprocess.run(['true'])")
    refused("import os\nos.execv('/bin/sh', ['sh', '-c', 'true'])")
    refused("import os\nos.posix_spawn('/bin/true', ['true'], {})")
    refused("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    refused("import fcntl, os\nfcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())")  # would have the kernel send it SIGIO
    refused("import fcntl\nfcntl.ioctl(1, 0x8901, b'0000')")
    assert not run_program("import os\nassert os.system('true') == 0", QUICK).passed
    assert not run_program("import multiprocessing as m\nif __name__ == '__main__':\n    p = m.get_context('fork').Process(target=print)\n    p.start()", QUICK).passed


def test_no_network():
    refused("import socket\nsocket.socket()")
    refused("import socket\nsocket.socket(socket.AF_UNIX)")
    refused("import socket\nsocket.socketpair()")
    refused("import ctypes, os\nc = ctypes.CDLL(None, use_errno=True)\nif c.syscall(41, 2, 1, 0) < 0: raise PermissionError(ctypes.get_errno())", "PermissionError")
    refused("import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nif c.syscall(425, 8, 0) < 0: raise PermissionError(ctypes.get_errno())", "PermissionError: 1")
    assert not run_program("import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9', timeout=1)", QUICK).passed


def test_no_file_is_written_moved_or_removed(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("mine")
    name = repr(str(kept))
    for attack in (
        f"open({name}, 'w')", f"open({name}, 'a')", f"open({name}, 'r+')", f"import os\nos.remove({name})", f"import os\nos.rename({name}, {name} + '2')",
        f"import os\nos.truncate({name}, 0)", f"import os\nos.chmod({name}, 0)", f"import os\nos.link({name}, {name} + '2')", f"import os\nos.symlink({name}, {name} + '2')",
        f"import os\nos.mkdir({name} + '2')", "open('here', 'wb').write(bytes(1 << 30))", f"import os\nos.utime({name})", "import os\nos.memfd_create('x')",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})",
    ):  # fmt: skip
        refused(attack, "Error")
    assert kept.read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert run_program(f"assert open({name}).read() == 'mine'").passed, "reading is allowed"


def test_memory_and_output_are_bounded():
    assert run_program("x = bytearray(1 << 40)").reason == "memory"
    assert run_program("x = []\nwhile True: x.append(bytearray(1 << 24))", Limits(5, 1 << 29)).reason in ("memory", "killed")
    found = run_program("while True: print('x' * 10000)", QUICK)
    assert not found.passed and len(found.detail) < 500
    assert not run_program("import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()", QUICK).passed


def test_limits_cannot_be_raised_and_the_filter_cannot_be_taken_off():
    refused("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (100, 100))", "Error")
    refused("import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nif c.prctl(22, 0, 0, 0, 0) < 0: raise PermissionError(ctypes.get_errno())", "PermissionError: 1")
    refused("import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nif c.ptrace(0, 0, 0, 0) < 0: raise PermissionError(ctypes.get_errno())", "PermissionError: 1")


def test_nothing_stays():
    before = {path.name for path in Path(run.tempfile.gettempdir()).glob("bedplate-program-*")}
    run_program("while True: pass", QUICK)
    assert {path.name for path in Path(run.tempfile.gettempdir()).glob("bedplate-program-*")} <= before
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != str(os.getpid()) and path.is_file()]
    assert not [words for words in running if str(run.CONFINE).encode() in words]


def test_environment_is_not_handed_on(monkeypatch):
    monkeypatch.setenv("SECRET_OF_MINE", "x")
    assert run_program("import os\nassert 'SECRET_OF_MINE' not in os.environ").passed


@pytest.mark.parametrize("machine", confine.MACHINES)
def test_the_filter_allows_what_it_names_and_nothing_else(machine):
    """The filter's steps, run by hand."""
    column, audit = confine.MACHINES[machine]
    steps = confine.filter_steps(machine)
    assert len(steps) < 256

    def verdict(number, *arguments, arch=audit):
        data = {0: number, 4: arch} | {16 + 8 * n: value for n, value in enumerate(arguments)}
        held = at = 0
        while True:
            code, yes, no, value = steps[at]
            if code == confine.RETURN:
                return value
            if code == confine.LOAD:
                held, at = data[value], at + 1
            else:
                holds = held == value if code == confine.EQUAL else bool(held & value)
                at += 1 + (yes if holds else no)

    allowed = {numbers[column] for numbers in confine.ALLOWED.values()} - {confine.NONE}
    special = {numbers[column] for numbers in (confine.OPEN, confine.OPENAT, confine.CLONE, confine.CLONE3, confine.FCNTL, confine.IOCTL)}
    for number in range(600):
        if number not in special:
            assert verdict(number, 0, 0, 0) == (confine.ALLOW if number in allowed else confine.DENY)
    openat, clone = confine.OPENAT[column], confine.CLONE[column]
    assert verdict(openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC) == confine.ALLOW
    assert all(verdict(openat, 0, 0, flag) == confine.DENY for flag in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC | os.O_RDONLY))
    fcntl, ioctl = confine.FCNTL[column], confine.IOCTL[column]
    assert [verdict(fcntl, 1, command) == confine.ALLOW for command in (0, 1, 4, 1030, 8, 10, 15, 1024)] == [True] * 4 + [False] * 4
    assert verdict(ioctl, 1, 0x5401) == confine.ALLOW and verdict(ioctl, 1, 0x5412) == confine.DENY
    assert verdict(clone, confine.THREAD | 0x100) == confine.ALLOW and verdict(clone, 17) == confine.DENY
    assert verdict(0, arch=0x40000003) == confine.KILL and verdict(0x40000000, 0, 0, 0) == confine.DENY


def test_numbers_of_calls_are_this_machines():
    """Against the C library's own header, where there is one."""
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    text = header.read_text() if header.is_file() and os.uname().machine == "x86_64" else ""
    known = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", text)}
    assert all(known.get(name, numbers[0]) == numbers[0] for name, numbers in confine.ALLOWED.items())
