"""Predictions over HTTP: every kind of worker, what is refused, and that they are guarded, written down and limited as every answer is."""

import json

import httpx
import pytest
from serve_gateway import serving

from bedplate.serve.redact import RedactSettings
from bedplate.testing.fake_predictions import LABELS

TEXT = "the quiet river carries small boats"
DOCUMENTS = ["stone bridges", {"text": "the river"}, "lamps and birds"]


def post(served, path, body):
    return httpx.post(f"{served.url}/v1/{path}", headers=served.headers, json=body, timeout=30)


def test_a_number(served):
    answered = post(served, "predict", {"model": "meter", "input": [TEXT, "lamps"]})
    told = answered.json()
    assert answered.status_code == 200 and told["task"] == "regress" and told["id"].startswith("pred-") and answered.headers["x-bedplate-receipt"] == told["id"]
    first, second = told["data"]
    assert (first["index"], second["index"], first["finish_reason"]) == (0, 1, "stop") and first["low"] <= first["value"] <= first["high"]
    (alone,) = post(served, "predict", {"model": "meter", "messages": [{"role": "user", "content": TEXT}]}).json()["data"]
    assert isinstance(alone["value"], float) and first["value"] != second["value"]
    assert told["usage"]["total_tokens"] == told["usage"]["prompt_tokens"] > 0


def test_stretches_of_a_text(served):
    (found,) = post(served, "predict", {"model": "marker", "input": TEXT}).json()["data"]
    (span,) = found["spans"]
    assert TEXT[span["start"] : span["end"]] == span["text"] and span["label"] in LABELS and 0 <= span["probability"] <= 1


def test_a_label_either_way(served):
    (said,) = post(served, "predict", {"model": "sorter", "input": TEXT}).json()["data"]
    (label,) = post(served, "classify", {"model": "sorter", "input": TEXT}).json()["data"]
    assert said["label"] == label["label"] in LABELS and said["probabilities"] == label["probabilities"] and label["abstained"] is False
    assert set(label) == {"object", "index", "label", "abstained", "probabilities"}


def test_texts_in_order(served):
    body = {"model": "ranker", "query": "the river", "documents": DOCUMENTS}
    told = post(served, "rerank", body).json()
    scores = [one["relevance_score"] for one in told["results"]]
    assert sorted(one["index"] for one in told["results"]) == [0, 1, 2] and scores == sorted(scores, reverse=True)
    assert all(set(one) == {"index", "relevance_score"} for one in told["results"]) and told["usage"]["total_tokens"] > 0
    best = post(served, "rerank", {**body, "top_n": 1, "return_documents": True}).json()["results"]
    wanted = DOCUMENTS[told["results"][0]["index"]]
    assert best == [{**told["results"][0], "document": {"text": wanted if isinstance(wanted, str) else wanted["text"]}}]


@pytest.mark.parametrize(
    ("path", "body", "about"),
    [
        ("predict", {"model": "fake", "input": TEXT}, "its task is generate"),
        ("predict", {"model": "ranker", "input": TEXT}, "its task is rank"),
        ("predict", {"model": "meter"}, "input or messages"),
        ("predict", {"model": "meter", "input": TEXT, "messages": [{"role": "user", "content": "a"}]}, "input or messages"),
        ("predict", {"model": "meter", "input": []}, "input"),
        ("predict", {"model": "meter", "input": TEXT, "top_n": 1}, "top_n"),
        ("classify", {"model": "meter", "input": TEXT}, "does not classify"),
        ("rerank", {"model": "meter", "query": "a", "documents": ["b"]}, "does not rank"),
        ("rerank", {"model": "ranker", "query": "a", "documents": []}, "documents"),
        ("rerank", {"model": "ranker", "query": "a", "documents": ["b"] * 3000}, "documents"),
        ("rerank", {"model": "ranker", "query": "a", "documents": [{"title": "b"}]}, "documents"),
        ("rerank", {"model": "ranker", "query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
    ],
)
def test_what_is_refused(served, path, body, about):
    answered = post(served, path, body)
    assert answered.status_code == 400 and about in answered.text, answered.text
    assert set(answered.json()["error"]) == {"message", "type", "param", "code"}


def test_a_model_that_is_not_there(served):
    assert post(served, "predict", {"model": "metre", "input": TEXT}).status_code == 404
    assert post(served, "rerank", {"model": "rankre", "query": "a", "documents": ["b"]}).status_code == 404


def test_predictions_are_guarded_and_written_down(tmp_path):
    guards = tmp_path / "guards.toml"
    guards.write_text(f'[[rules]]\nname = "no words of it"\non = ["answer"]\nliterals = {json.dumps(TEXT.split())}\n')
    with serving(tmp_path, audit=tmp_path / "audit", guards=guards, redact=RedactSettings("none")) as gateway:
        told = post(gateway, "predict", {"model": "marker", "input": TEXT}).json()
        assert told["data"] == [{"object": "prediction", "index": 0, "finish_reason": "content_filter"}]
        number = post(gateway, "predict", {"model": "meter", "input": TEXT})
        ranked = post(gateway, "rerank", {"model": "ranker", "query": "a", "documents": ["b", "c"]})
        receipts = [httpx.get(f"{gateway.url}/v1/receipts/{one.json()['id']}", headers=gateway.headers).json() for one in (number, ranked)]
    assert [one["finish"] for one in receipts] == ["stop", "stop"] and not any(one["guard"] for one in receipts)
    written = [json.loads(line) for file in sorted((tmp_path / "audit").glob("*.jsonl")) for line in file.read_text().splitlines()]
    said = [one["body"]["answer"]["text"] for one in written if one["kind"] == "answer"]
    (value,) = number.json()["data"]
    scores = [one["relevance_score"] for one in sorted(ranked.json()["results"], key=lambda one: one["index"])]
    assert said[0] == "" and json.loads(said[1]) == {name: value[name] for name in ("value", "low", "high")} and json.loads(said[2])["scores"] == scores
