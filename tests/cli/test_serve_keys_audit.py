"""`bedplate serve key`, `serve audit verify` and `serve receipt verify` as a user types them."""

import json

import pytest

from bedplate.serve import receipts
from bedplate.serve.audit import AuditLog, AuditSettings
from bedplate.serve.audit_files import files
from bedplate.serve.keys import KeyRing
from bedplate.serve.redact import text_digest
from bedplate.serve.signing import Signer


@pytest.fixture
def audit(tmp_path):
    signer = Signer.open(tmp_path / "gateway.pem")
    signer.public.write(tmp_path / "safe.pem")
    log = AuditLog.open(tmp_path / "audit", signer, AuditSettings())
    anchor = log.append("answer", {"id": "a1"})
    log.close()
    return tmp_path / "audit", signer, str(anchor)


def test_a_key_from_its_making_to_its_end(tmp_path, run):
    file = tmp_path / "keys.json"
    code, out, err = run("serve", "key", "add", "--tenant", "soc", "--name", "desk", "--scopes", "generate", "--scopes", "embed", "--labels", "internal", "--expires", "90d", "--file", file)
    secret = out.strip()
    assert code == 0 and secret.startswith("bp_") and secret not in err and KeyRing(file).find(secret).scopes == {"generate", "embed"}
    code, out, _ = run("serve", "key", "add", "--tenant", "soc", "--name", "two", "--file", file, "--json")
    assert code == 0 and KeyRing(file).find(json.loads(out)["key"]).tenant == "soc"
    code, out, _ = run("serve", "key", "list", "--file", file, "--json")
    listed = json.loads(out)
    assert code == 0 and [(one["name"], one["state"], one["labels"]) for one in listed] == [("desk", "valid", ["internal"]), ("two", "valid", [])]
    assert secret not in out and listed[0]["expires"] > listed[0]["created"]
    code, out, _ = run("serve", "key", "list", "--file", file, "--plain")
    assert code == 0 and "desk" in out and secret not in out
    code, _, err = run("serve", "key", "revoke", "desk", "--file", file)
    assert code == 0 and "revoked" in err and KeyRing(file).find(secret) is None


def test_keys_that_cannot_be_made(tmp_path, run):
    file = tmp_path / "keys.json"
    for words in (("--scopes", "everything"), ("--expires", "soon"), ("--expires", "0d")):
        code, _, err = run("serve", "key", "add", "--tenant", "t", "--name", "n", "--file", file, *words)
        assert code == 2 and "hint:" in err and not file.exists()
    assert run("serve", "key", "revoke", "x", "--file", file)[0] == 3
    assert run("serve", "key", "list", "--file", file)[0] == 3


def test_an_audit_that_holds(audit, tmp_path, run):
    folder, signer, anchor = audit
    code, out, err = run("serve", "audit", "verify", folder, "--key", tmp_path / "safe.pem", "--anchors", anchor)
    assert code == 0 and out.strip() == "holds" and "closed" in err and "exchange" not in err
    code, out, err = run("serve", "audit", "verify", folder)
    assert code == 0 and "exchange it" in err
    code, out, _ = run("serve", "audit", "verify", folder, "--json")
    told = json.loads(out)
    assert code == 0 and told["holds"] and told["key"] == signer.public.id and told["records"] == 4
    assert run("serve", "audit", "verify", folder, "--anchors", told["anchor"])[0] == 0
    assert run("serve", "audit", "verify", folder, "--anchors", f"5{told['anchor'][1:]}")[0] == 4


def test_an_audit_that_does_not(audit, tmp_path, run):
    folder, _, anchor = audit
    path = files(folder)[0]
    path.write_bytes(path.read_bytes().replace(b'"a1"', b'"a2"'))
    code, out, err = run("serve", "audit", "verify", folder)
    assert code == 4 and "record 3: it was changed" in out and "hint:" in err
    code, out, _ = run("serve", "audit", "verify", folder, "--json")
    assert code == 4 and json.loads(out)["findings"][0]["n"] == 3
    assert run("serve", "audit", "verify", folder, "--anchors", "x")[0] == 2
    assert run("serve", "audit", "verify", tmp_path / "nowhere")[0] == 3
    assert run("serve", "audit", "verify", folder, "--start", "9")[0] == 4


def test_a_receipt(audit, tmp_path, run):
    _, signer, _ = audit
    facts = receipts.Facts("a1", "2027-01-15T08:00:00Z", "soc", "k", "m", {}, {}, "00", text_digest("user: why?", b"\0"), text_digest("so", b"\0"), 1, 1, "stop")
    file, prompt, answer = tmp_path / "r.json", tmp_path / "q.txt", tmp_path / "a.txt"
    file.write_text(json.dumps(receipts.issue(signer, facts).as_json()))
    prompt.write_text("user: why?")
    answer.write_text("so")
    given = ("serve", "receipt", "verify", file, "--key", tmp_path / "safe.pem")
    code, out, err = run(*given, "--prompt", prompt, "--answer", answer)
    assert code == 0 and out.strip() == "holds" and "m answered soc" in err
    answer.write_text("so\n")
    assert run(*given)[0] == 0 and run(*given, "--answer", answer)[0] == 4
    file.write_text(file.read_text().replace('"soc"', '"sox"'))
    assert run(*given)[0] == 4
    file.write_text("[]")
    assert run(*given)[0] == 3
