"""Receipts: signed, about exactly these words, and found again."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import DataError, IntegrityError
from bedplate.serve import receipts
from bedplate.serve.audit import AuditLog, AuditSettings
from bedplate.serve.receipts import Facts, Receipt
from bedplate.serve.redact import RedactSettings, text_digest
from bedplate.serve.signing import Signer

SALT = b"0123456789abcdef"


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    return Signer.open(tmp_path_factory.mktemp("key") / "gateway.pem")


def facts(**changes):
    said = {
        "id": "chatcmpl-1", "at": "2027-01-15T08:00:00Z", "tenant": "soc", "caller": "k1", "model": "triage", "digests": {"model": "ab", "adapter": "cd"},
        "policies": {"guards": "ef"}, "salt": SALT.hex(), "prompt_sha256": text_digest("why?", SALT), "answer_sha256": text_digest("because", SALT),
        "prompt_tokens": 3, "completion_tokens": 1, "finish": "stop", "route": "local", "guard": "",
    }  # fmt: skip
    return Facts(**(said | changes))


def test_a_receipt_is_about_these_words_and_no_others(signer):
    receipt = receipts.issue(signer, facts())
    assert receipts.holds(receipt, signer.public)
    assert receipts.tells_of(receipt, "why?", "because") and receipts.tells_of(receipt, prompt="why?")
    assert not receipts.tells_of(receipts.issue(signer, facts(salt="no hex")), "why?")
    assert not receipts.tells_of(receipt, "why", "because") and not receipts.tells_of(receipt, answer="Because")


def test_every_fact_is_signed(signer, tmp_path):
    receipt = receipts.issue(signer, facts())
    for field in dataclasses.fields(Facts):
        value = getattr(receipt.facts, field.name)
        other = value + 1 if isinstance(value, int) else {**value, "x": "y"} if isinstance(value, dict) else value + "0"
        changed = dataclasses.replace(receipt, facts=dataclasses.replace(receipt.facts, **{field.name: other}))
        assert not receipts.holds(changed, signer.public), field.name
    assert not receipts.holds(receipt, Signer.open(tmp_path / "other.pem").public)
    assert not receipts.holds(dataclasses.replace(receipt, signature=receipt.signature.upper()), signer.public)


def test_it_is_found_in_the_audit(signer, tmp_path):
    log = AuditLog.open(tmp_path / "audit", signer, AuditSettings())
    receipt = receipts.issue(signer, facts())
    log.append("answer", {"id": "chatcmpl-1", "receipt": receipt.as_json()})
    log.append("answer", {"id": "chatcmpl-2", "receipt": {**receipt.as_json(), "model": "other"}})
    log.append("refused", {"id": "chatcmpl-3"})
    log.flush()
    assert receipts.look_up(tmp_path / "audit", "chatcmpl-1", signer.public) == receipt
    with pytest.raises(IntegrityError, match="not signed"):
        receipts.look_up(tmp_path / "audit", "chatcmpl-2", signer.public)
    assert receipts.look_up(tmp_path / "audit", "chatcmpl-3", signer.public) is None
    assert receipts.look_up(tmp_path / "audit", "chatcmpl-4", signer.public) is None
    log.close()


def test_it_survives_json(signer):
    receipt = receipts.issue(signer, facts(tenant="café", model="\ud83d" + "\ude00"))
    again = Receipt.from_json(json.loads(json.dumps(receipt.as_json())))
    assert again == receipt and receipts.holds(again, signer.public)
    for wrong in ({}, {**receipt.as_json(), "more": 1}, {**receipt.as_json(), "prompt_tokens": "3"}, {**receipt.as_json(), "signature": None}):
        with pytest.raises(DataError):
            Receipt.from_json(wrong)


@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Facts)] + ["key", "signature"]), st.none() | st.text() | st.integers() | st.lists(st.text())))
def test_no_object_breaks_the_reader(raw):
    try:
        Receipt.from_json(raw)
    except DataError:
        pass


def test_salts_differ_and_policies_have_digests():
    assert receipts.new_salt() != receipts.new_salt() and len(receipts.new_salt()) == 16
    one, same, other = RedactSettings(), RedactSettings(mode="digests"), RedactSettings(mode="none")
    assert receipts.policy_digest(one) == receipts.policy_digest(same) != receipts.policy_digest(other)
