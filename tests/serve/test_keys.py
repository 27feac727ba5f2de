"""Keys: only who holds one gets in, the file gives none away, and a running gateway sees every change."""

import hmac
import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError, DataError, IntegrityError, PolicyError
from bedplate.data.privacy import find
from bedplate.serve import keys
from bedplate.serve.caller import Caller

NOON = 1_800_000_000.0


class Clock:
    def __init__(self, at_s=NOON):
        self.at_s = at_s

    def __call__(self):
        return self.at_s


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.json"


def made(file, **changes):
    return keys.add(file, **({"name": "desk", "tenant": "soc", "scopes": ("generate",), "now_s": NOON} | changes))


def test_a_key_is_recognised_and_stands_nowhere(file):
    key, secret = made(file, labels=("internal",), scopes=("generate", "embed", "generate"))
    ring = keys.KeyRing(file, clock=Clock())
    assert ring.find(secret) == Caller(key.id, "soc", frozenset({"generate", "embed"}), "desk", ("internal",))
    assert secret.startswith("bp_") and len(secret) == 46
    assert secret[3:] not in file.read_text() and secret not in repr(key)
    for wrong in ("", "bp_", secret[:-1], secret + "A", secret.swapcase(), key.digest, key.id, "bp_\ud800", "bp_\x00"):
        assert ring.find(wrong) is None


@given(st.text())
def test_no_text_is_a_key_by_chance(text):
    ring = keys.KeyRing.__new__(keys.KeyRing)
    ring._clock, ring._looked_s, ring._used = Clock(), NOON, {}
    ring._kept = keys._Kept(b"p" * 32, [])
    assert ring.find(text) is None


def test_a_wrong_key_is_compared_as_a_right_one_is(file, monkeypatch):
    _, secret = made(file)
    ring = keys.KeyRing(file, clock=Clock())
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
    assert ring.find(secret) is not None and ring.find("bp_wrong") is None
    assert compared == [(64, 64), (64, 64)]


def test_a_key_that_somebody_pastes_into_a_question_is_recognised_as_a_secret(file):
    text = f"my key is {made(file).secret}, why does it not work?"
    assert [text[f.start : f.end] for f in find(text)] == [text[10:56]]


def test_two_files_do_not_show_that_they_hold_the_same_key(tmp_path, monkeypatch):
    monkeypatch.setattr(keys.secrets, "token_urlsafe", lambda n: "A" * 43)
    first, second = made(tmp_path / "a").key, made(tmp_path / "b").key
    assert first.digest != second.digest


def test_the_file_is_its_owner_s_alone(file):
    before = os.umask(0)
    try:
        made(file)
        made(file)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    for mode in (0o604, 0o602, 0o620):
        file.chmod(mode)
        with pytest.raises(IntegrityError, match="others"):
            keys.KeyRing(file)
    file.chmod(0o440)  # a secret that a cluster mounts for a group
    assert len(keys.read(file)) == 2


def test_expiry_and_revocation(file):
    brief, brief_secret = made(file, name="brief", expires_in_s=60)
    lasting, lasting_secret = made(file, name="lasting")
    clock = Clock()
    ring = keys.KeyRing(file, clock=clock)
    assert ring.find(brief_secret) and ring.find(lasting_secret)
    clock.at_s += 59.9
    assert ring.find(brief_secret)
    clock.at_s += 0.1
    assert ring.find(brief_secret) is None and brief.state(clock.at_s) == "expired"
    revoked = keys.revoke(file, "lasting", clock.at_s)
    assert revoked.id == lasting.id and revoked.state(clock.at_s) == "revoked"
    clock.at_s += keys.LOOK_EVERY_S
    assert ring.find(lasting_secret) is None
    again = keys.revoke(file, lasting.id, clock.at_s + 99)
    assert again.revoked == revoked.revoked, "the first time counts"


def test_a_key_made_later_is_taken_over_without_a_restart(file):
    _, first = made(file)
    clock = Clock()
    ring = keys.KeyRing(file, clock=clock)
    _, second = made(file, name="second")
    assert ring.find(second) is None, "within the second nothing is read again"
    clock.at_s += keys.LOOK_EVERY_S
    assert ring.find(second) and ring.find(first)


def test_a_damaged_or_missing_file_changes_nothing_in_force(file):
    _, secret = made(file)
    clock = Clock()
    ring = keys.KeyRing(file, clock=clock)
    whole = file.read_text()
    file.write_text(whole[:-30])
    clock.at_s += 1
    assert ring.find(secret) and "damaged" in ring.trouble
    file.unlink()
    clock.at_s += 1
    assert ring.find(secret) and ring.trouble
    file.write_text(whole)
    file.chmod(0o600)
    clock.at_s += 1
    assert ring.find(secret) and not ring.trouble


def test_keys_made_at_once_are_all_kept(file):
    threads = [threading.Thread(target=made, args=(file,), kwargs={"name": f"k{n}"}) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in keys.read(file)) == [f"k{n}" for n in range(8)]


def test_last_use_is_written_to_the_hour_and_only_when_new(file):
    key, secret = made(file)
    clock = Clock(NOON + 1234)
    ring = keys.KeyRing(file, clock=clock)
    before = file.read_bytes()
    ring.find(secret)
    assert keys.last_used(file) == {}, "not on the path of a request"
    ring.write_used()
    said = keys.last_used(file)[key.id]
    assert said.endswith(":00:00Z") and file.read_bytes() == before
    beside = file.with_name("keys.json.used")
    beside.unlink()
    ring.find(secret)
    ring.write_used()
    assert not beside.exists()
    clock.at_s += 3600
    ring.find(secret)
    ring.write_used()
    assert keys.last_used(file)[key.id] > said


def test_a_folder_that_cannot_be_written_costs_only_the_record_of_use(file, monkeypatch):
    """As where a cluster mounts the keys read-only."""
    key, secret = made(file)
    ring = keys.KeyRing(file, clock=Clock())
    ring.find(secret)
    real = keys.write_json

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(keys, "write_json", read_only)
    ring.write_used()
    assert "Read-only" in ring.unrecorded and ring.find(secret)
    monkeypatch.setattr(keys, "write_json", real)
    ring.write_used()
    assert not ring.unrecorded and keys.last_used(file)[key.id]


@pytest.mark.parametrize("changes", [{"scopes": ()}, {"scopes": ("generat",)}, {"tenant": " "}, {"name": ""}, {"expires_in_s": 0}, {"expires_in_s": float("inf")}])
def test_what_cannot_be_a_key(file, changes):
    with pytest.raises(ConfigError):
        made(file, **changes)
    assert not file.exists()


def test_revoking_what_is_not_there(file):
    with pytest.raises(DataError):
        keys.revoke(file, "x")
    made(file)
    made(file)
    for name in ("nobody", "desk"):
        with pytest.raises(ConfigError, match=name):
            keys.revoke(file, name)
    assert all(key.revoked is None for key in keys.read(file))


def test_a_newer_format_is_refused_by_name(file):
    made(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with pytest.raises(IntegrityError, match="format 2"):
        keys.read(file)


@given(at=st.integers(0, 10_000), put=st.binary(max_size=3), cut=st.integers(0, 5))
def test_a_damaged_file_is_an_error_of_ours_or_another_valid_file(tmp_path_factory, at, put, cut):
    file = tmp_path_factory.getbasetemp() / "fuzzed-keys.json"
    if not (whole := getattr(test_a_damaged_file_is_an_error_of_ours_or_another_valid_file, "whole", b"")):
        file.unlink(missing_ok=True)
        made(file)
        whole = test_a_damaged_file_is_an_error_of_ours_or_another_valid_file.whole = file.read_bytes()
    at %= len(whole)
    file.write_bytes(whole[:at] + put + whole[at + cut :])
    file.chmod(0o600)
    try:
        assert len(keys.read(file)) <= 1
    except IntegrityError as error:
        assert error.hint


def test_scopes():
    caller = Caller("k", "t", frozenset({"embed"}))
    caller.require("embed")
    with pytest.raises(PolicyError, match="generate"):
        caller.require("generate")
    Caller("k", "t", frozenset({"admin"})).require("generate")
