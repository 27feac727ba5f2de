"""Redaction: what the policy keeps out of the audit does not get there."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError
from bedplate.core.generation import Ask, Part, ToolCall, Turn
from bedplate.data.privacy import find
from bedplate.serve.redact import Redactor, RedactSettings, masked, plain, text_digest

PRIVATE = {
    "e-mail": "jane.roe@corp-mail.io",
    "phone number": "+49 30 1234567",
    "card number": "4539 1488 0343 6467",
    "github token": "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2,
    "ip address": "8.8.8.8",
}


@pytest.mark.parametrize("kind", PRIVATE)
def test_each_kind_is_taken_out_and_counted(kind):
    text = f"Please note: {PRIVATE[kind]} is mine."
    shown, found = masked(text)
    assert PRIVATE[kind] not in shown and f"[{kind}]" in shown and found == {kind: 1}
    assert masked(text, (kind,))[0] == text


@given(st.lists(st.sampled_from([*PRIVATE.values(), "hello", " call ", "\n", "x=1", "é"]), max_size=12))
def test_nothing_that_is_found_is_left(parts):
    shown, _ = masked(" ".join(parts))
    assert not [f for f in find(shown, ()) if shown[f.start : f.end] in PRIVATE.values()]
    for secret in PRIVATE.values():
        if find(secret, ()):
            assert secret not in shown


def test_the_three_policies():
    text = f"write to {PRIVATE['e-mail']}"
    none, redact, digests = (Redactor(RedactSettings(mode=mode)).text(text, b"s") for mode in ("none", "redact", "digests"))
    assert none.text == text and redact.text == "write to [e-mail]" and digests.text is None
    assert {none.sha256, redact.sha256, digests.sha256} == {text_digest(text, b"s")} and text_digest(text, b"s") != text_digest(text, b"t")
    assert redact.found == {"e-mail": 1} and "text" not in plain(digests) and plain(redact)["redacted"] == {"e-mail": 1}


def test_most_characters_cut():
    recorded = Redactor(RedactSettings(mode="redact", most_characters=10)).text("é" * 50)
    assert recorded.text == "é" * 10 + " [cut]" and recorded.characters == 50


def test_a_secret_is_not_let_in_by_the_cut():
    text = "x" * 5 + " " + PRIVATE["e-mail"]
    recorded = Redactor(RedactSettings(mode="redact", most_characters=16)).text(text)
    assert "jane" not in recorded.text


def test_a_question_of_every_sense():
    secret = PRIVATE["e-mail"]
    turns = (
        Turn("user", (Part("text", f"mail {secret}"), Part("image", data=b"\x89PNG" + secret.encode()))),
        Turn("assistant", (), (ToolCall("c1", "send", json.dumps({"to": secret})),)),
    )
    for mode in ("redact", "digests"):
        told = json.dumps(Redactor(RedactSettings(mode=mode)).ask(Ask(turns=turns)))
        assert secret not in told and "sha256" in told and '"bytes"' in told
    assert secret in json.dumps(Redactor(RedactSettings(mode="none")).ask(Ask(turns=turns)))
    assert secret not in json.dumps(Redactor(RedactSettings(mode="redact")).ask(Ask(prompt=f"a {secret}")))
    assert "text" in Redactor(RedactSettings(mode="none")).ask(Ask(prompt=(1, 2)))["prompt"]


def test_settings():
    with pytest.raises(ConfigError, match="e-male"):
        RedactSettings(keep=("e-male",))
    with pytest.raises(ConfigError):
        RedactSettings(most_characters=0)
    kept = Redactor(RedactSettings(mode="redact", keep=("ip address",))).text("from 8.8.8.8 to x")
    assert kept.text == "from 8.8.8.8 to x"
