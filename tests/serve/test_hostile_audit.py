"""An audit in the hands of somebody who can write its folder but has not the key; and one whose process dies at the worst moment."""

import json
import shutil
import threading

import httpx
import pytest
from serve_gateway import serving

from bedplate.core.errors import IntegrityError
from bedplate.serve import audit as audit_module
from bedplate.serve import audit_files
from bedplate.serve.audit import AuditLog, AuditSettings, Entry
from bedplate.serve.audit_chain import START, Record
from bedplate.serve.audit_files import HEAD, file_name, files
from bedplate.serve.audit_verify import verify
from bedplate.serve.signing import Signer

ASKED = {"model": "fake", "messages": [{"role": "user", "content": "What does the river do?"}], "temperature": 0}
SMALL = AuditSettings(rotate_bytes=1500, checkpoint_records=3)


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    return Signer.open(tmp_path_factory.mktemp("key") / "gateway.pem")


def wrote(folder, signer, records=6):
    log = AuditLog.open(folder, signer, SMALL)
    for n in range(records):
        log.append("answer", {"id": f"r{n}"})
        log.flush()
    log.close()
    return log.end


def lines(folder):
    return [Record.parse(line) for path in files(folder) for line in path.read_bytes().splitlines()]


def forged(folder, more=3, checkpoints=False):
    """The log made anew with another answer in it: every number and hash fits, only signatures cannot be made. head.json is left as it is."""
    before, made = Entry(0, START), []
    kept = [one for one in lines(folder) if checkpoints or one.kind != "checkpoint"]
    for one in [*kept, *[Record.following(before, kept[-1].at, "answer", {"id": f"late{n}"}) for n in range(more + len(lines(folder)))]]:
        body = {**one.body, "id": "forged"} if one.body.get("id") == "r2" else one.body
        record = Record.following(before, one.at, one.kind, body)
        made.append(record)
        before = record.entry
    for path in files(folder):
        path.unlink()
    (folder / file_name(1)).write_bytes(b"".join(record.line for record in made))


def test_a_log_made_anew_without_its_checkpoints_does_not_hold(tmp_path, signer):
    """It is longer than what was signed, so nothing seemed to be cut off."""
    wrote(tmp_path, signer)
    head = (tmp_path / HEAD).read_bytes()
    forged(tmp_path)
    report = verify(tmp_path, signer.public)
    assert not report.holds and (tmp_path / HEAD).read_bytes() == head
    assert any("signed" in finding.what for finding in report.findings)


def test_a_log_made_anew_is_not_continued_and_so_not_signed(tmp_path, signer):
    """The gateway's next start would have signed it."""
    wrote(tmp_path, signer)
    forged(tmp_path)
    with pytest.raises(IntegrityError):
        AuditLog.open(tmp_path, signer, SMALL)


@pytest.mark.parametrize("harm", ["last file exchanged", "a gap between files", "head exchanged"])
def test_a_log_is_only_continued_where_it_hangs_together(tmp_path, signer, harm):
    wrote(tmp_path, signer)
    AuditLog.open(tmp_path, signer, SMALL).close()  # as it was, it is
    present, last = files(tmp_path), lines(tmp_path)[-1]
    assert len(present) >= 3 and last.kind == "checkpoint"
    if harm == "last file exchanged":  # its records belong together, but do not follow the file before
        before, made = Entry(int(present[-1].stem[-12:]) - 1, "ab" * 32), []
        for n in range(9):
            made.append(Record.following(before, last.at, "answer", {"id": f"f{n}"}))
            before = made[-1].entry
        present[-1].write_bytes(b"".join(record.line for record in made))
    elif harm == "a gap between files":
        (tmp_path / file_name(last.n + 5)).write_bytes(Record.following(Entry(last.n + 4, last.hash), last.at, "answer", {}).line)
    else:
        text = present[-1].read_bytes().splitlines(keepends=True)
        text[-1] = Record.following(Entry(last.n - 1, last.previous), last.at, "answer", {"id": "forged"}).line
        present[-1].write_bytes(b"".join(text))
    assert not verify(tmp_path, signer.public).holds
    with pytest.raises(IntegrityError):
        AuditLog.open(tmp_path, signer, SMALL)


def test_the_head_of_a_log_put_back_whole_needs_an_anchor(tmp_path, signer):
    """What docs/formats/audit.md promises, no more and no less."""
    folder, old = tmp_path / "audit", tmp_path / "old"
    wrote(folder, signer)
    shutil.copytree(folder, old)
    end = wrote(folder, signer)
    assert verify(folder, signer.public, anchors=(end,)).holds
    assert verify(old, signer.public).holds and not verify(old, signer.public, anchors=(end,)).holds


def test_the_last_byte_waits_for_the_disk(tmp_path, monkeypatch):
    """Whoever has had a whole answer finds it in the audit, whatever happens to the machine then."""
    may_write, real = threading.Event(), audit_module.AuditLog._write

    def slow(log, batch):
        if any(record.kind == "answer" for record in batch):
            may_write.wait(20)
        real(log, batch)

    with serving(tmp_path, audit=tmp_path / "audit") as served:
        monkeypatch.setattr(audit_module.AuditLog, "_write", slow)
        heard = []

        def ask(stream):
            with httpx.stream("POST", f"{served.url}/v1/chat/completions", headers=served.headers, json={**ASKED, "stream": stream}, timeout=30) as answer:
                heard.append(answer.read())

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(0.7)
        assert not heard
        assert httpx.get(f"{served.url}/health").status_code == 200  # nobody else waits
        may_write.set()
        for thread in threads:
            thread.join(20)
        assert len(heard) == 2 and any(one.endswith(b"data: [DONE]\n\n") for one in heard)


def test_an_answer_that_the_disk_did_not_take_is_not_completed(tmp_path, monkeypatch):
    def full(log, batch):
        raise OSError(28, "No space left on device")

    with serving(tmp_path, audit=tmp_path / "audit") as served:
        real = audit_module.AuditLog._write
        monkeypatch.setattr(audit_module.AuditLog, "_write", lambda log, batch: full(log, batch) if any(one.kind == "answer" for one in batch) else real(log, batch))
        try:
            streamed = httpx.post(f"{served.url}/v1/chat/completions", headers=served.headers, json={**ASKED, "stream": True}, timeout=30).text
            assert '"error"' in streamed and '"finish_reason":"stop"' not in streamed.rpartition('"error"')[2]
            assert httpx.post(f"{served.url}/v1/chat/completions", headers=served.headers, json=ASKED).status_code == 503
        finally:
            served.gateway.audit._failure = None
            monkeypatch.undo()


def test_a_receipt_is_found_slice_by_slice(tmp_path, signer, monkeypatch):
    """The whole gateway stood still while a file of the audit was searched: 43 ms of 64 MB, as often as any tenant liked to ask for what is not there."""
    log = AuditLog.open(tmp_path, signer, AuditSettings(rotate_bytes=4000))
    for n in range(60):
        log.append("answer", {"id": f"r{n % 50}", "turn": n // 50, "text": "x" * (n % 7)})
    log.close()
    for size in (1, 7, 64, 1000, 1 << 20):
        monkeypatch.setattr(audit_files, "SLICE_BYTES", size)
        assert [audit_files.find(tmp_path, f"r{n}").body["turn"] for n in range(50)] == [1] * 10 + [0] * 40
        assert audit_files.find(tmp_path, "r") is None and audit_files.find(tmp_path, "r500") is None


GUARDS = '[[rules]]\nname = "code word"\nreason = "not spoken of"\nliterals = ["nightjar"]\n'


def records(folder):
    return [json.loads(line) for path in files(folder) for line in path.read_text().splitlines()]


def test_a_question_that_was_refused_stands_in_the_audit_with_its_reason(tmp_path):
    """What a policy has prevented is what an audit is asked about first."""
    (tmp_path / "guards.toml").write_text(GUARDS)
    with serving(tmp_path, audit=tmp_path / "audit", guards=tmp_path / "guards.toml") as served:
        body = {**ASKED, "messages": [{"role": "user", "content": "who is nightjar"}]}
        assert httpx.post(f"{served.url}/v1/chat/completions", headers=served.headers, json=body).status_code == 403
    told = records(tmp_path / "audit")
    question = next(one["body"] for one in told if one["kind"] == "question")
    refused = [one["body"] for one in told if one["kind"] == "refused"]
    assert [(one["id"], one["reason"], one["rule"]) for one in refused] == [(question["id"], "not spoken of", "code word")]
    assert "nightjar" not in json.dumps(told)
