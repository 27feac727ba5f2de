"""Files are absent, old or complete, also when the writer is killed at any moment."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from bedplate.core.files import add_line, atomic_writer, read_json, sha256_bytes, sha256_file, write_bytes, write_json, write_text

WRITER = """
import sys
from pathlib import Path
from bedplate.core.files import atomic_writer
path = Path(sys.argv[1])
print("ready", flush=True)
for turn in range(1, 100_000):
    with atomic_writer(path) as handle:
        for _ in range(64):
            handle.write(bytes([turn % 256]) * 65536)
"""


def test_a_killed_writer_leaves_old_or_new_never_half(tmp_path):
    path = tmp_path / "weights.bin"
    write_bytes(path, b"\x00" * (64 * 65536))
    rng = random.Random(0)
    for _ in range(6):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.1))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        data = path.read_bytes()
        assert len(data) == 64 * 65536
        assert len(set(data)) == 1, "a file made of two turns"
    assert all(p.name.endswith(".tmp") for p in tmp_path.iterdir() if p != path)


def test_a_file_that_was_never_finished_is_absent(tmp_path):
    hang = (
        "import os, sys\nfrom pathlib import Path\nfrom bedplate.core.files import atomic_writer\n"
        "with atomic_writer(Path(sys.argv[1])) as h:\n    h.write(b'half'); h.flush(); print('half', flush=True); sys.stdin.read()\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", hang, str(tmp_path / "a")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"half\n"
    writer.kill()
    writer.communicate()
    assert not (tmp_path / "a").exists()


def test_an_error_while_writing_keeps_the_old_file_and_leaves_no_rest(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), atomic_writer(tmp_path / "a") as handle:
        handle.write(b"new")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_files_are_as_readable_as_any_other(tmp_path):
    write_text(tmp_path / "ours", "x")
    (tmp_path / "theirs").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_folders_are_made_and_text_is_utf8_with_plain_newlines(tmp_path):
    with atomic_writer(tmp_path / "a" / "b" / "c.txt", "w") as handle:
        handle.write("ä\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "ä\n".encode()


def test_json_refuses_what_two_readers_could_read_differently(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not (tmp_path / "a.json").exists()
    (tmp_path / "b.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(ValueError, match="duplicate"):
        read_json(tmp_path / "b.json")
    write_json(tmp_path / "c.json", {"ü": [1, None]})
    assert read_json(tmp_path / "c.json") == {"ü": [1, None]}


def test_digests(tmp_path):
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == sha256_bytes(data)
    assert sha256_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_line_is_added_and_nothing_is_lost(tmp_path):
    path = tmp_path / "new" / "talk.jsonl"
    assert [add_line(path, "ä"), add_line(path, "b")] == [1, 2] and path.read_text(encoding="utf-8") == "ä\nb\n"
    path.write_text("left open")
    assert add_line(path, "b") == 2 and path.read_text() == "left open\nb\n"
