"""Audit: whatever was flipped, deleted, exchanged or cut off is found, and a crash costs nothing that was confirmed."""

import errno
import os
import shutil
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError, DataError, IntegrityError, ResourceError, StateError
from bedplate.serve import audit as audit_module
from bedplate.serve.audit import AuditLog, AuditSettings, Entry
from bedplate.serve.audit_chain import Record, canonical, checkpoint
from bedplate.serve.audit_files import files, find
from bedplate.serve.audit_verify import verify
from bedplate.serve.signing import PublicKey, Signer

SMALL = AuditSettings(rotate_bytes=500, checkpoint_records=2)


class Clock:
    at_s = 1_800_000_000.0

    def __call__(self):
        return self.at_s


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    return Signer.open(tmp_path_factory.mktemp("key") / "gateway.pem")


@pytest.fixture(scope="module")
def written(tmp_path_factory, signer):
    """A closed log of several files, as {name: bytes}."""
    folder = tmp_path_factory.mktemp("log") / "audit"
    log = AuditLog.open(folder, signer, SMALL, Clock())
    for n in range(4):
        log.append("answer", {"id": f"r{n}", "text": "café \ud800" if n == 3 else "x", "share": 0.5})
        log.flush()
    log.close()
    assert len(files(folder)) >= 3
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


@pytest.fixture
def laid(tmp_path, written):
    """That log again, to be harmed."""

    def lay():
        folder = tmp_path / "audit"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, data in written.items():
            (folder / name).write_bytes(data)
        return folder

    return lay


def logs(folder):
    return {path: path.read_bytes().splitlines(keepends=True) for path in files(folder)}


def test_a_whole_log_holds(laid, signer):
    report = verify(laid(), signer.public)
    assert report.holds and report.closed and report.records == report.signed_n and not report.unsigned and not report.torn_bytes
    assert report.checkpoints >= 3 and report.files >= 3


def flips(folder, bit_of):
    """(file, byte, bit) of one flip for each byte of everything that verification reads."""
    for path in [*files(folder), folder / "head.json"]:
        for at in range(path.stat().st_size):
            for bit in bit_of(at):
                yield path, at, bit


def flip(path, at, bit):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_a_flipped_bit_is_found_and_named(laid, signer):
    """Of every fifth byte, the bit that makes a capital of a letter (hexadecimal digits can be written in two ways) or another."""
    folder = laid()
    for path, at, bit in flips(folder, lambda at: () if at % 5 else (5, at % 8)[at % 2 : at % 2 + 1]):
        flip(path, at, bit)
        report = verify(folder, signer.public)
        assert not report.holds, f"{path.name} byte {at} bit {bit}"
        if path.name != "head.json":
            line = path.read_bytes()[:at].count(b"\n")
            first = int(path.name[6:18])
            named = [finding.n for finding in report.findings]
            assert any(first + line - 1 <= n <= first + line + 1 for n in named), report.findings
        flip(path, at, bit)
    assert verify(folder, signer.public).holds


@pytest.mark.slow
def test_every_single_bit_that_is_flipped_is_found(tmp_path, signer):
    """All of a small log."""
    folder = tmp_path / "audit"
    log = AuditLog.open(folder, signer, AuditSettings(), Clock())
    log.append("answer", {"id": "r1"})
    log.close()
    for path, at, bit in flips(folder, lambda at: range(8)):
        flip(path, at, bit)
        assert not verify(folder, signer.public).holds, f"{path.name} byte {at} bit {bit}"
        flip(path, at, bit)


def test_another_way_to_write_the_same_is_found(laid, signer):
    """Spaces, escapes, another order, another number format: JSON would not mind."""
    for old, new in ((b'"n":3', b'"n": 3'), (b'"kind":"answer"', b'"kind":"\\u0061nswer"'), (b'"share":0.5', b'"share":5e-1'), (b"caf\xc3\xa9", b"caf\\u00e9")):
        folder = laid()
        changed = [path for path in files(folder) if old in path.read_bytes()]
        assert changed
        for path in changed:
            path.write_bytes(path.read_bytes().replace(old, new))
        assert "canonical" in str(verify(folder, signer.public).findings[0]), new


def test_every_record_that_is_deleted_is_found(laid, signer):
    for path, lines in logs(laid()).items():
        for n in range(len(lines)):
            folder = laid()
            path.write_bytes(b"".join(lines[:n] + lines[n + 1 :]))
            report = verify(folder, signer.public)
            first = int(path.name[6:18])
            assert not report.holds and report.findings[0].n in (first + n, first + n + 1), (path.name, n, report)


def test_every_two_records_that_are_exchanged_are_found(laid, signer):
    for path, lines in logs(laid()).items():
        for i in range(len(lines)):
            for j in range(i + 1, len(lines)):
                folder = laid()
                swapped = lines[:]
                swapped[i], swapped[j] = swapped[j], swapped[i]
                path.write_bytes(b"".join(swapped))
                assert not verify(folder, signer.public).holds, (path.name, i, j)


def test_every_length_at_which_it_is_cut_is_found(laid, signer):
    folder = laid()
    last = files(folder)[-1]
    whole = last.read_bytes()
    for length in range(len(whole)):
        last.write_bytes(whole[:length])
        report = verify(folder, signer.public)
        assert not report.holds and not report.closed, length


def test_every_file_that_is_missing_is_found(laid, signer):
    for name in [path.name for path in files(laid())]:
        folder = laid()
        (folder / name).unlink()
        assert not verify(folder, signer.public).holds, name
    folder = laid()
    for path in files(folder)[1:]:
        path.unlink()
    assert "was cut" in str(verify(folder, signer.public).findings[-1])
    folder = laid()
    (folder / "head.json").unlink()
    assert "missing" in str(verify(folder, signer.public).findings[0])


@settings(max_examples=60)
@given(st.data())
def test_any_other_harm_is_found(data):
    folder, signer = test_any_other_harm_is_found.laid()
    path = data.draw(st.sampled_from(files(folder)))
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    put = data.draw(st.binary(max_size=40) | st.sampled_from([whole[:80], whole[start:end] * 2, b"\n", b"\r\n", b" "]))
    harmed = whole[:start] + put + whole[end:]
    path.write_bytes(harmed)
    report = verify(folder, signer.public)
    # Behind the closing record of the last file, something without an end of line is told as torn: nothing that was signed is touched by it.
    assert report.holds == (harmed == whole or (harmed.startswith(whole) and b"\n" not in harmed[len(whole) :] and path == files(folder)[-1]))
    assert report.holds is False or harmed == whole or report.torn_bytes


@pytest.fixture(autouse=True)
def for_hypothesis(laid, signer):
    test_any_other_harm_is_found.laid = lambda: (laid(), signer)


def test_who_rewrites_the_chain_cannot_sign_it(laid, signer, tmp_path):
    """All hashes are made anew after a change; only the signatures tell."""
    folder = laid()
    before = Entry(0, "0" * 64)
    for path, lines in logs(folder).items():
        anew = []
        for line in lines:
            old = Record.parse(line[:-1])
            body = {**old.body, "share": 0.9} if old.body.get("id") == "r1" else old.body
            record = Record.following(before, old.at, old.kind, body)
            anew.append(record.line)
            before = record.entry
        path.write_bytes(b"".join(anew))
    report = verify(folder, signer.public)
    assert not report.holds and all("not signed" in f.what for f in report.findings[:2])
    assert report.signed_n < 6
    # Nor does another key help, unless the one who verifies takes it.
    other = Signer.open(tmp_path / "other.pem")
    assert not verify(laid(), other.public).holds


def test_a_signed_checkpoint_of_another_place_does_not_fit(laid, signer):
    """A real checkpoint, moved: what it signs is what stood before it."""
    folder = laid()
    path, lines = next((p, ls) for p, ls in logs(folder).items() if any(b'"kind":"checkpoint"' in line for line in ls[1:]))
    at = next(n for n, line in enumerate(lines) if n and b'"kind":"checkpoint"' in line)
    taken, before = Record.parse(lines[at][:-1]), Record.parse(lines[at - 1][:-1])
    elsewhere = Record.following(Entry(before.n, "1" * 64), taken.at, taken.kind, taken.body)
    path.write_bytes(b"".join(lines[:at]) + elsewhere.line)
    findings = " ".join(str(f) for f in verify(folder, signer.public).findings)
    assert "not signed" in findings


def test_an_older_state_put_back_whole_is_found_by_an_anchor(tmp_path, signer):
    """The one thing that the folder alone cannot show."""
    folder = tmp_path / "audit"
    log = AuditLog.open(folder, signer, AuditSettings(), Clock())
    log.append("answer", {"id": "a"})
    log.close()
    shutil.copytree(folder, tmp_path / "old")
    log = AuditLog.open(folder, signer, AuditSettings(), Clock())
    anchor = log.append("answer", {"id": "b"})
    log.close()
    assert verify(folder, signer.public, anchors=(anchor,)).holds
    assert verify(tmp_path / "old", signer.public).holds
    assert not verify(tmp_path / "old", signer.public, anchors=(anchor,)).holds
    other = Entry(anchor.n, "0" * 64)
    assert "noted elsewhere" in str(verify(folder, signer.public, anchors=(other,)).findings[0])
    assert Entry.parse(str(anchor)) == anchor
    for wrong in ("", "1", "1:", "1:xyz", "-1:" + "0" * 64, "1:" + "A" * 64):
        with pytest.raises(ValueError):
            Entry.parse(wrong)


def test_archived_files_may_be_gone_when_said(laid, signer):
    folder = laid()
    second = int(files(folder)[1].name[6:18])
    files(folder)[0].unlink()
    assert not verify(folder, signer.public).holds
    assert verify(folder, signer.public, start=second).holds
    assert not verify(folder, signer.public, start=second - 1).holds


def test_half_a_line_after_a_crash_is_told_cut_and_noted(tmp_path, signer):
    folder = tmp_path / "audit"
    log = AuditLog.open(folder, signer, AuditSettings(), Clock())
    log.append("answer", {"id": "kept"})
    log.flush()
    kill(log)
    path = files(folder)[-1]
    with path.open("ab") as handle:
        handle.write(b'{"at":"2027-01-15T08:00:00.000Z","body":{"id":"to')
    report = verify(folder, signer.public)
    assert report.holds and report.torn_bytes == 49 and not report.closed and report.unsigned == 1
    again = AuditLog.open(folder, signer, AuditSettings(), Clock())
    again.append("answer", {"id": "after"})
    again.close()
    report = verify(folder, signer.public)
    assert report.holds and report.closed and not report.torn_bytes
    kinds = [Record.parse(line[:-1]).kind for lines in logs(folder).values() for line in lines]
    assert kinds == ["opened", "checkpoint", "answer", "opened", "recovered", "checkpoint", "answer", "checkpoint"]
    assert find(folder, "kept") and find(folder, "after")


def test_a_crash_at_any_byte_behind_the_newest_checkpoint_loses_only_what_was_not_confirmed(tmp_path, signer):
    folder = tmp_path / "audit"
    log = AuditLog.open(folder, signer, AuditSettings(), Clock())
    signed = files(folder)[0].stat().st_size
    for n in range(3):
        log.append("answer", {"id": f"r{n}"})
    log.flush()
    kill(log)
    path = files(folder)[0]
    whole = path.read_bytes()
    for length in range(signed, len(whole), 7):
        path.write_bytes(whole[:length])
        head = (folder / "head.json").read_bytes()
        assert verify(folder, signer.public).holds
        log = AuditLog.open(folder, signer, AuditSettings(), Clock())
        log.close()
        report = verify(folder, signer.public)
        assert report.holds and report.closed
        (folder / "head.json").write_bytes(head)


def test_a_log_that_does_not_hold_is_not_continued(laid, signer, tmp_path):
    def refuses(folder, key=signer):
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}
        with pytest.raises(IntegrityError):
            AuditLog.open(folder, key, SMALL, Clock())
        assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}

    folder = laid()
    last = files(folder)[-1]
    last.write_bytes(b"".join(last.read_bytes().splitlines(keepends=True)[:-1]))
    refuses(folder)
    folder = laid()
    flip(files(folder)[-1], 40, 1)
    refuses(folder)
    folder = laid()
    (folder / "head.json").unlink()
    refuses(folder)
    folder = laid()
    for path in files(folder):
        path.unlink()
    refuses(folder)
    refuses(laid(), Signer.open(tmp_path / "another.pem"))


def test_one_writer_at_a_time(tmp_path, signer):
    log = AuditLog.open(tmp_path / "audit", signer, AuditSettings(), Clock())
    with pytest.raises(StateError, match="another process"):
        AuditLog.open(tmp_path / "audit", signer, AuditSettings(), Clock())
    log.close()
    log.close()
    AuditLog.open(tmp_path / "audit", signer, AuditSettings(), Clock()).close()
    with pytest.raises(StateError, match="closed"):
        log.append("answer", {})


def test_many_threads_make_one_chain(tmp_path, signer):
    folder = tmp_path / "audit"
    log = AuditLog.open(folder, signer, AuditSettings(rotate_bytes=20_000, checkpoint_records=50), Clock())
    entries = []

    def work(name):
        entries.extend(log.append("answer", {"id": f"{name}-{n}"}) for n in range(100))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.flush()
    assert log.unwritten == 0
    log.close()
    report = verify(folder, signer.public, anchors=tuple(entries))
    assert report.holds and report.checkpoints >= 12 and len({entry.n for entry in entries}) == 600


def test_a_checkpoint_comes_by_the_clock_too(tmp_path, signer):
    clock = Clock()
    log = AuditLog.open(tmp_path / "audit", signer, AuditSettings(checkpoint_s=0.05), clock)
    log.append("answer", {"id": "a"})
    before = log.end.n
    clock.at_s += 1
    signed = threading.Event()
    real = log._write
    log._write = lambda batch: (real(batch), signed.set() if batch[-1].kind == "checkpoint" else None)
    assert signed.wait(20)
    log.flush()
    assert log.end.n == before + 1
    kill(log)
    assert verify(tmp_path / "audit", signer.public).unsigned == 0


def test_no_answer_without_its_record(tmp_path, signer, monkeypatch):
    """A full disk stops the gateway; what was confirmed before still holds."""
    folder = tmp_path / "audit"
    log = AuditLog.open(folder, signer, AuditSettings(), Clock())
    monkeypatch.setattr(log, "_write", lambda batch: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    log.append("answer", {"id": "lost"})
    with pytest.raises(ResourceError, match="No space"):
        log.flush()
    with pytest.raises(ResourceError, match="No space"):
        log.append("answer", {"id": "refused"})
    with pytest.raises(ResourceError):
        log.close()
    assert verify(folder, signer.public).holds


def test_a_slow_disk_holds_questions_back(tmp_path, signer, monkeypatch):
    log = AuditLog.open(tmp_path / "audit", signer, AuditSettings(most_unwritten=5), Clock())
    gate = threading.Event()
    real = os.fsync
    monkeypatch.setattr(audit_module.os, "fsync", lambda descriptor: (gate.wait(20), real(descriptor)))
    with pytest.raises(ResourceError, match="wait for the audit"):
        for _ in range(20):
            log.append("answer", {})
    assert log.flush(timeout_s=0.01) is False
    gate.set()
    assert log.flush()
    log.append("answer", {})
    log.close()


def test_what_is_not_json_is_not_taken(tmp_path, signer):
    log = AuditLog.open(tmp_path / "audit", signer, AuditSettings(), Clock())
    for wrong in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            log.append("answer", wrong)
    log.append("answer", {"x": 1})
    log.close()
    assert verify(tmp_path / "audit", signer.public).holds


@given(st.dictionaries(st.integers(0, 200) | st.text(), st.integers() | st.text(st.characters(exclude_categories=())), max_size=8))
def test_what_is_added_reads_back(body):
    """Also names that are numbers, which sort otherwise once they are text, and halves of characters that meet."""
    log = test_what_is_added_reads_back.log
    try:
        log.append("answer", body)
    except TypeError:  # names of two types have no order
        return
    log.flush()
    assert verify(log.folder, log._signer.public).holds


@pytest.fixture(autouse=True)
def a_log(tmp_path_factory, signer, request):
    if request.function is not test_what_is_added_reads_back:
        yield
        return
    log = test_what_is_added_reads_back.log = AuditLog.open(tmp_path_factory.mktemp("a") / "audit", signer, AuditSettings(), Clock())
    log.append("answer", {"bias": {10: 1, 9: 2}, "text": "\ud83d" + "\ude00"})
    yield
    log.close()
    assert verify(log.folder, signer.public).holds


def test_finding_a_record(laid, signer):
    folder = laid()
    assert find(folder, "r2").body["id"] == "r2" and find(folder, "r20") is None and find(folder, "r") is None
    for wrong in ("", 'r"', "a/b", "x" * 200, "é"):
        with pytest.raises(DataError):
            find(folder, wrong)


def test_verify_wants_a_log(tmp_path, signer):
    with pytest.raises(DataError):
        verify(tmp_path, signer.public)
    with pytest.raises(DataError):
        verify(tmp_path / "nowhere", signer.public)


def test_the_key_is_private_and_of_the_right_kind(tmp_path, signer):
    file = tmp_path / "k.pem"
    first = Signer.open(file)
    assert file.stat().st_mode & 0o777 == 0o600 and Signer.open(file).public.id == first.public.id
    first.public.write(tmp_path / "p.pem")
    assert PublicKey.read(tmp_path / "p.pem").holds("x", b"m", first.sign("x", b"m"))
    assert not first.public.holds("y", b"m", first.sign("x", b"m")), "a signature is for one purpose"
    assert not first.public.holds("x", b"m", first.sign("x", b"m").upper())
    file.chmod(0o644)
    with pytest.raises(IntegrityError, match="chmod"):
        Signer.open(file)
    for wrong in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        (tmp_path / "w.pem").write_bytes(wrong)
        (tmp_path / "w.pem").chmod(0o600)
        with pytest.raises(DataError):
            Signer.open(tmp_path / "w.pem")
        with pytest.raises(DataError):
            PublicKey.read(tmp_path / "w.pem")


@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_no_bytes_break_the_reader_of_a_line(data):
    try:
        Record.parse(data)
    except ValueError:
        return
    raise AssertionError("by chance no line is a record")


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=10))
def test_every_record_reads_back_as_it_was_written(value):
    record = Record.following(Entry(4, "ab" * 32), "2027-01-15T08:00:00.000Z", "answer", {"value": value})
    assert Record.parse(record.line[:-1]) == record and canonical({"v": value}) == canonical({"v": record.body["value"]})


def test_settings_have_their_effect(tmp_path, signer):
    """rotate_bytes, checkpoint_records, checkpoint_s and most_unwritten are each seen above; what cannot be is refused."""
    for wrong in ({"rotate_bytes": 0}, {"checkpoint_records": 0}, {"checkpoint_s": 0.0}, {"most_unwritten": 0}):
        with pytest.raises(ConfigError):
            AuditSettings(**wrong)
    record = checkpoint(signer, Entry(0, "0" * 64), "2027-01-15T08:00:00.000Z", closed=False)
    assert record.n == 1


def kill(log):
    """As if the process had been killed: no closing record."""
    with log._turn:
        log._closing = True
        log._turn.notify_all()
    log._writer.join()
    os.close(log._file)
    os.close(log._lock)
