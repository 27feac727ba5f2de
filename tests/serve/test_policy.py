"""Policies through HTTP: what guards refuse, where routes lead, and what is written down of it."""

import json

import httpx
import pytest
from serve_gateway import USER, serving

from bedplate.serve.audit_verify import verify
from bedplate.serve.receipts import Receipt, holds, tells_of
from bedplate.serve.redact import RedactSettings
from bedplate.serve.signing import PublicKey, Signer
from bedplate.testing.generators import FakeGenerator

ASKED = {"model": "fake", "messages": [{"role": "user", "content": "What does the river do?"}], "temperature": 0}
GUARDS = """
[[rules]]
name = "code word"
reason = "that name is not spoken"
on = ["prompt"]
literals = ["nightjar"]

[[rules]]
name = "boats"
on = ["answer"]
literals = ["boats"]
"""
ROUTES = """
[places.local]
[places.cloud]
where = "remote"
url = "https://cloud.example/v1"
[data]
may_leave = ["public"]
[[rules]]
name = "public first to the cloud"
to = ["cloud", "local"]
"""


def post(served, body, path="/v1/chat/completions", **headers):
    return httpx.post(served.url + path, headers={**served.headers, **headers}, json=body, timeout=30)


def test_guards_refuse_questions_and_end_answers(tmp_path):
    (tmp_path / "guards.toml").write_text(GUARDS)
    boats = {**ASKED, "logit_bias": {"261": 100}}  # says nothing but " boats"
    with serving(tmp_path, guards=tmp_path / "guards.toml", audit=tmp_path / "audit") as served:
        refused = post(served, {**ASKED, "messages": [{"role": "user", "content": "who is Nightjar"}]})
        assert refused.status_code == 403 and "that name is not spoken" in refused.json()["error"]["message"]
        whole = post(served, boats).json()["choices"][0]
        assert whole["finish_reason"] == "content_filter" and "boat" not in whole["message"]["content"]
        streamed = post(served, {**boats, "stream": True}).text
        assert "boat" not in streamed and '"finish_reason":"content_filter"' in streamed and streamed.endswith("data: [DONE]\n\n")
    answers = [one["body"]["receipt"] for one in records(tmp_path / "audit") if one["kind"] == "answer"]
    assert [one["guard"] for one in answers] == ["boats", "boats"] and answers[0]["policies"]["guards"]


def records(folder):
    return [json.loads(line) for file in sorted(folder.glob("audit-*.jsonl")) for line in file.read_text().splitlines()]


def test_routes_decide_by_the_class_of_the_data_and_say_so(tmp_path):
    (tmp_path / "routes.toml").write_text(ROUTES)
    cloud = FakeGenerator(digest="c" * 64)
    with serving(tmp_path, routes_file=tmp_path / "routes.toml", remotes={"cloud": cloud}) as served:
        unlabelled, public = post(served, ASKED), post(served, ASKED, **{"x-bedplate-labels": "public"})
        assert unlabelled.headers["x-bedplate-route"].startswith("local (local); class confidential")
        assert "not cloud: confidential does not leave" in unlabelled.headers["x-bedplate-route"]
        assert public.headers["x-bedplate-route"].startswith("cloud (remote); class public")
        assert len(cloud.asked) == 1 and cloud.asked[0].tenant == ""
    cloud.close()


def test_an_answer_has_a_receipt_that_can_be_looked_up_and_checked(tmp_path):
    with serving(tmp_path, audit=tmp_path / "audit", scopes=USER) as served:
        answered = post(served, ASKED)
        text = answered.json()["choices"][0]["message"]["content"]
        streamed = post(served, {**ASKED, "stream": True})
        for one in (answered, streamed):
            found = httpx.get(f"{served.url}/v1/receipts/{one.headers['x-bedplate-receipt']}", headers=served.headers)
            receipt = Receipt.from_json(found.json())
            (tmp_path / "key.pem").write_bytes(httpx.get(f"{served.url}/v1/receipt-key", headers=served.headers).content)
            assert holds(receipt, PublicKey.read(tmp_path / "key.pem"))
            assert tells_of(receipt, "user: What does the river do?", text) and not tells_of(receipt, answer=text + "!")
            assert receipt.facts.model == "fake" and receipt.facts.tenant == "soc" and receipt.facts.completion_tokens > 0
        assert httpx.get(f"{served.url}/v1/receipts/chatcmpl-unknown", headers=served.headers).status_code == 404
    report = verify(tmp_path / "audit", Signer.open(tmp_path / "audit.pem").public)
    assert report.holds and report.closed


def test_a_receipt_of_another_tenant_is_not_there(tmp_path):
    from bedplate.serve import keys

    with serving(tmp_path, audit=tmp_path / "audit") as served:
        answered = post(served, ASKED)
        place = f"{served.url}/v1/receipts/{answered.headers['x-bedplate-receipt']}"
        for tenant, scopes, status in (("legal", ("receipts",), 404), ("legal", ("admin",), 200)):
            other = keys.add(tmp_path / "keys.json", name=f"{tenant}{status}", tenant=tenant, scopes=scopes).secret
            served.gateway.reception.ring.refresh()
            assert httpx.get(place, headers={"authorization": f"Bearer {other}"}).status_code == status


@pytest.mark.parametrize(("mode", "there", "gone"), [("none", ["jo.miller@kestrelbank.com"], []), ("redact", ['"redacted": {"e-mail'], ["jo.miller@kestrelbank.com"]), ("digests", [], ["jo.miller@kestrelbank.com", "write to"])])
def test_personal_data_is_written_down_as_the_policy_says(tmp_path, mode, there, gone):
    with serving(tmp_path, audit=tmp_path / "audit", redact=RedactSettings(mode=mode)) as served:
        post(served, {**ASKED, "messages": [{"role": "user", "content": "write to jo.miller@kestrelbank.com"}]})
    told = "".join(json.dumps(one) for one in records(tmp_path / "audit"))
    assert all(word in told for word in there) and not any(word in told for word in gone)
    assert served.key not in told


def test_an_answer_that_was_left_is_written_down(tmp_path):
    with (
        serving(tmp_path, audit=tmp_path / "audit", fake=FakeGenerator(step_s=0.02)) as served,
        httpx.stream("POST", f"{served.url}/v1/chat/completions", headers=served.headers, json={**ASKED, "stream": True}) as answer,
    ):
        next(answer.iter_raw())
    answers = [one["body"]["receipt"] for one in records(tmp_path / "audit") if one["kind"] == "answer"]
    assert [one["finish"] for one in answers] == ["cancelled"]


def test_who_asks_and_under_which_policy_reaches_the_generator(tmp_path):
    with serving(tmp_path) as served:
        post(served, {**ASKED, "model": "triage"}, **{"x-bedplate-labels": "internal, case 7"})
        asked = served.fake.asked[-1]
        assert (asked.worker, asked.tenant, asked.labels) == ("triage", "soc", ("internal", "case 7")) and asked.policy and asked.deadline_s


def test_nothing_is_answered_that_cannot_be_written_down(tmp_path):
    from bedplate.core.errors import ResourceError

    with serving(tmp_path, audit=tmp_path / "audit") as served:
        served.gateway.audit._failure = ResourceError("the disk is full", "make room")
        try:
            assert post(served, ASKED).status_code == 503 and not served.fake.asked
            assert served.gateway.limiter.running == 0
        finally:
            served.gateway.audit._failure = None
