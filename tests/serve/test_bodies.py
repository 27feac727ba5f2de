"""Bodies as nobody writes them: whatever is sent, the answer is an answer, or an error that says what is wrong. Never a failure of the gateway's own."""

import asyncio
import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bedplate.serve import schemas, schemas_made
from bedplate.serve.gateway import Gateway, create_app
from bedplate.serve.settings import ServeSettings
from bedplate.testing.generators import FakeGenerator

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(string.ascii_lowercase + "_", max_size=12), inner, max_size=4),
    max_leaves=12,
)
PATHS = {
    "/v1/chat/completions": schemas.ChatBody, "/v1/completions": schemas.CompletionBody, "/v1/embeddings": schemas.EmbeddingBody,
    "/v1/classify": schemas.ClassifyBody, "/v1/images/generations": schemas_made.ImageBody, "/v1/audio/speech": schemas_made.SpeechBody,
    "/v1/predict": schemas.PredictBody, "/v1/rerank": schemas.RerankBody, "/v1/forecasts": schemas_made.ForecastBody,
}  # fmt: skip


class Inside:
    """The application, asked without a socket; one event loop for all examples."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.fake = FakeGenerator(predictors={"sorter": "classify", "meter": "regress", "marker": "extract", "ranker": "rank"}, context_tokens=256)
        self.gateway = Gateway(ServeSettings(), {"fake": self.fake})
        self.app = create_app(self.gateway)
        self.loop.run_until_complete(self.gateway.start())

    def post(self, path, body, content_type=b"application/json"):
        sent = []
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if parts:
                return parts.pop()
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "scheme": "http", "headers": [(b"host", b"localhost"), (b"content-type", content_type)], "client": ("127.0.0.1", 1), "server": ("localhost", 80),
        }  # fmt: skip
        self.loop.run_until_complete(self.app(scope, receive, send))
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

    def close(self):
        self.loop.run_until_complete(self.gateway.stop())
        self.fake.close()
        self.loop.close()


@pytest.fixture(scope="module")
def inside():
    made = Inside()
    yield made
    assert not made.gateway.exchanges and made.gateway.limiter.running == 0
    made.close()


def told(status, body):
    """An answer, or an error in the agreed shape; the gateway's own failures have none of these codes."""
    assert status in (200, 400, 404, 413, 429) and b"internal_error" not in body, (status, body)
    if status != 200:
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(PATHS)), st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_answered(inside, path, body):
    told(*inside.post(path, body))


def near(path):
    """Bodies that are nearly right: known keys with right and wrong values."""
    ids = st.integers(-1, 300)
    parts = st.sampled_from([
        {"type": "text", "text": "hi \ud800"}, {"type": "text"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}, {"type": "input_series", "input_series": {"data": "1,2"}},
        {"type": "input_audio", "input_audio": {"data": "!", "format": "wav"}}, {"type": "video"},
    ])  # fmt: skip
    message = st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool", "developer", "x"])},
        optional={"content": st.text(max_size=8) | st.none() | st.lists(parts, max_size=2), "tool_call_id": st.text(max_size=3), "tool_calls": st.just([{"id": "a", "function": {"name": "f", "arguments": "{"}}]) | JSON},
    )
    right = {
        "model": st.sampled_from(["fake", "sorter", "meter", "marker", "ranker", "nobody"]),
        "messages": st.lists(message, max_size=3),
        "prompt": st.text(max_size=9) | st.lists(st.text(max_size=4), max_size=3) | st.lists(ids, max_size=4) | st.lists(st.lists(ids, max_size=3), max_size=3),
        "input": st.text(max_size=9) | st.lists(st.text(max_size=4), max_size=3) | st.lists(ids, max_size=4),
        "temperature": st.floats(0, 2), "top_p": st.floats(0, 1), "n": st.integers(0, 4), "seed": st.integers(), "max_tokens": st.integers(0, 300), "stop": st.text(max_size=2) | st.lists(st.text(max_size=2), max_size=3),
        "logprobs": st.booleans() if "chat" in path else st.integers(0, 21), "top_logprobs": st.integers(0, 21), "echo": st.booleans(), "stream": st.booleans(),
        "logit_bias": st.dictionaries(st.sampled_from(["1", "-1", "257", "x", "99999999999"]), st.floats(-101, 101), max_size=2),
        "response_format": st.sampled_from([{"type": "json_object"}, {"type": "regex", "regex": "("}, {"type": "regex", "regex": "yes"}, {"type": "choice", "choice": [""]}, {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": ["object"]}}}]),
        "tools": st.just([{"type": "function", "function": {"name": "f"}}]) | st.just([{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": 3}}}}}]),
        "tool_choice": st.sampled_from(["auto", "required", "none", "f", {"type": "function", "function": {"name": "g"}}, {"type": "function", "function": {"name": "f"}}]),
        "stream_options": st.just({"include_usage": True}), "encoding_format": st.sampled_from(["float", "base64", "x"]), "dimensions": st.integers(0, 20),
        "query": st.text(max_size=6), "documents": st.lists(st.text(max_size=6) | st.fixed_dictionaries({"text": st.text(max_size=6)}) | st.just({"title": "x"}), max_size=4),
        "top_n": st.integers(-1, 5), "return_documents": st.booleans(),
    }  # fmt: skip
    known = PATHS[path].model_fields
    right = {name: one for name, one in right.items() if name in known}
    always = {name: right.pop(name) for name in ("model", "messages", "prompt", "input", "query", "documents") if name in right and not (name == "messages" and "input" in known)}
    return st.fixed_dictionaries(always, optional={name: one | JSON if name != "stream" else one for name, one in right.items()})


@pytest.mark.parametrize("path", sorted(PATHS))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bodies_that_are_nearly_right(inside, path, data):
    told(*inside.post(path, json.dumps(data.draw(near(path))).encode()))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.sampled_from([b"multipart/form-data; boundary=x", b"multipart/form-data", b"application/json", b""]))
def test_forms_that_are_none(inside, body, content_type):
    told(*inside.post("/v1/audio/transcriptions", body, content_type))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["file", "model", "language", "prompt", "response_format", "temperature", "stream", "x"]), st.text(max_size=6)), max_size=5))
def test_forms_that_are_nearly_right(inside, fields):
    parts = []
    for name, value in fields:
        filename = '; filename="a.wav"' if name == "file" else ""
        parts.append(f'--x\r\ncontent-disposition: form-data; name="{name}"{filename}\r\n\r\n'.encode() + value.encode("utf-8", "replace") + b"\r\n")
    told(*inside.post("/v1/audio/transcriptions", b"".join(parts) + b"--x--\r\n", b"multipart/form-data; boundary=x"))
