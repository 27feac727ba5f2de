"""Pictures, sounds and forecasts through HTTP, over the native engine: OpenAI's own client, what is refused, and what is written down of what was made."""

import asyncio
import base64
import io
import json
import wave

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from serve_gateway import serving

from bedplate.core.files import sha256_bytes
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.native import Native
from bedplate.serve.audit_verify import verify
from bedplate.serve.receipts import Receipt, tells_of
from bedplate.testing.bases import base_of
from bedplate.testing.corpora import tiny_specs
from bedplate.testing.generators import FakeGenerator
from bedplate.testing.models import tiny_model

GUARDS = """
[[rules]]
name = "code word"
on = ["prompt"]
literals = ["nightjar"]

[[rules]]
name = "boats"
on = ["answer"]
literals = ["boats"]
"""
PICTURE = {"model": "tiny", "prompt": "a disc", "seed": 1, "steps": 2}
PAST = (1e4 + 10 * np.sin(np.arange(90) / 4)).tolist()


def native():
    settings = EngineSettings(precision="float32", threads=1, context=256, cache_bytes=2**24, device="cpu")
    return Native(Engine(base_of(tiny_model(senses=tiny_specs(), random=True)), settings))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "guards.toml").write_text(GUARDS)
    with serving(folder, fake=native(), name="tiny", audit=folder / "audit", guards=folder / "guards.toml") as made:
        made.folder = folder
        yield made


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)


def post(served, path, body, **headers):
    return httpx.post(served.url + path, headers={**served.headers, **headers}, json=body, timeout=60)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_openais_client_gets_pictures(client):
    extra = {"seed": 1, "steps": 2}
    two = client.images.generate(model="tiny", prompt="a disc", n=2, response_format="b64_json", quality="high", extra_body=extra)
    made = [pixels(one.b64_json) for one in two.data]
    assert [one.shape for one in made] == [(28, 28)] * 2 and not np.array_equal(*made)
    assert two.usage.output_tokens == 2 * 49 and two.usage.total_tokens == two.usage.input_tokens + two.usage.output_tokens
    again = client.images.generate(model="tiny", prompt="a disc", extra_body=extra)
    assert np.array_equal(pixels(again.data[0].b64_json), made[0])
    wide = client.images.generate(model="tiny", prompt="a disc", size="16x8", extra_body=extra)
    assert pixels(wide.data[0].b64_json).shape == (8, 16)
    drawn = {client.images.generate(model="tiny", prompt="a disc", size="8x8", extra_body={"steps": 1}).data[0].b64_json for _ in range(2)}
    assert len(drawn) == 2, "without a seed one is drawn"


def test_openais_asynchronous_client_gets_many_at_once(served):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as client:
            pictures = [client.images.generate(model="tiny", prompt="a disc", size="12x12", extra_body={"seed": n % 3, "steps": 2}) for n in range(9)]
            text = client.completions.create(model="tiny", prompt="the river", max_tokens=8)
            *made, said = await asyncio.gather(*pictures, text)
            return [one.data[0].b64_json for one in made], said

    made, said = asyncio.run(ask())
    assert made[:3] == made[3:6] == made[6:] and len(set(made)) == 3 and said.usage.completion_tokens > 0


def test_openais_client_gets_speech(client):
    said = client.audio.speech.create(model="tiny", voice="alloy", input="high", response_format="wav", extra_body={"seconds": 0.4, "seed": 1, "steps": 2})
    with wave.open(io.BytesIO(said.read())) as sound:
        assert sound.getframerate() == tiny_specs().audio.sample_rate and sound.getnframes() > 100
    with client.audio.speech.with_streaming_response.create(model="tiny", voice="x", input="high", extra_body={"seconds": 0.2, "steps": 1}) as response:
        assert b"".join(response.iter_bytes()).startswith(b"RIFF") and response.headers["content-type"] == "audio/wav"


def test_a_forecast_is_in_the_series_own_unit(served):
    told = post(served, "/v1/forecasts", {"model": "tiny", "values": PAST, "points": 20, "name": "load", "paths": 5, "seed": 1, "steps": 3}).json()
    assert told["object"] == "forecast" and {len(told[name]) for name in ("median", "low", "high")} == {20}
    assert all(low <= middle <= high for low, middle, high in zip(told["low"], told["median"], told["high"]))
    assert abs(np.median(told["median"]) - 1e4) < 400 and told["usage"]["completion_tokens"] == 5 * 2


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/images/generations", {**PICTURE, "response_format": "url"}, "b64_json"),
        ("/v1/images/generations", {**PICTURE, "size": "30x30"}, "28 x 28"),
        ("/v1/images/generations", {**PICTURE, "size": "4000x4000"}, "patches would fit"),
        ("/v1/images/generations", {**PICTURE, "n": 1000}, "at most"),
        ("/v1/images/generations", {**PICTURE, "promt": "x"}, "prompt"),
        ("/v1/images/generations", {**PICTURE, "model": "tinny"}, "tiny"),
        ("/v1/audio/speech", {"model": "tiny", "input": "x", "response_format": "mp3"}, "wav"),
        ("/v1/audio/speech", {"model": "tiny", "input": "x", "seconds": 500}, "s of sound"),
        ("/v1/forecasts", {"model": "tiny", "values": [1.0, 2.0], "points": 4}, "at least 16"),
        ("/v1/forecasts", {"model": "tiny", "values": PAST, "points": 10**7}, "points"),
        ("/v1/forecasts", {"model": "tiny", "values": PAST, "points": 4, "paths": 10**6}, "at most"),
    ],
)
def test_what_cannot_be_made_is_refused_with_what_could(served, path, body, says):
    refused = post(served, path, body)
    assert refused.status_code in (400, 404) and says in refused.json()["error"]["message"], refused.text


def test_a_model_that_makes_no_pictures_says_so(tmp_path):
    with serving(tmp_path, fake=FakeGenerator()) as served:
        for path, body in (("/v1/images/generations", {"prompt": "x"}), ("/v1/audio/speech", {"input": "x"}), ("/v1/forecasts", {"values": PAST, "points": 4})):
            refused = post(served, path, {"model": "fake", **body})
            assert refused.status_code == 400 and refused.json()["error"]["code"] == "unsupported_sense"


def test_models_say_what_they_make(served):
    told = httpx.get(f"{served.url}/v1/models/tiny", headers=served.headers).json()
    assert told["makes"] == ["image", "audio", "video", "series"]


def test_captions_are_checked_and_what_could_not_be_is_told(served):
    refused = post(served, "/v1/images/generations", {**PICTURE, "prompt": "a nightjar"})
    assert refused.status_code == 403
    made = post(served, "/v1/images/generations", PICTURE)
    assert made.status_code == 200 and made.headers["x-bedplate-unchecked"] == "image"
    assert "x-bedplate-unchecked" not in post(served, "/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 2}).headers


def test_the_audit_knows_what_was_made(served):
    made = post(served, "/v1/images/generations", {**PICTURE, "n": 2})
    pictures = [base64.b64decode(one["b64_json"]) for one in made.json()["data"]]
    past = post(served, "/v1/forecasts", {"model": "tiny", "values": PAST, "points": 4, "steps": 1})
    served.gateway.audit.flush(timeout_s=5)
    lines = [json.loads(line) for file in sorted((served.folder / "audit").glob("audit-*.jsonl")) for line in file.read_text().splitlines()]
    written = {(one["kind"], one["body"].get("id")): one["body"] for one in lines}
    answer = written["answer", made.headers["x-bedplate-receipt"]]
    salt = bytes.fromhex(answer["receipt"]["salt"])
    assert [(one["sense"], one["bytes"], one["sha256"]) for one in answer["made"]] == [("image", len(one), sha256_bytes(salt + one)) for one in pictures]
    assert answer["unchecked"] == ["image"] and answer["receipt"]["completion_tokens"] == 98
    told = "\n".join(f"image sha256:{sha256_bytes(one)}" for one in pictures)
    assert tells_of(Receipt.from_json(answer["receipt"]), "a disc", told) and not tells_of(Receipt.from_json(answer["receipt"]), answer=told[:-1])
    question = written["question", past.headers["x-bedplate-receipt"]]["questions"][0]
    assert question["want"] == "series" and question["known"]["bytes"] > 100
    assert verify(served.folder / "audit", served.gateway.signer.public).holds
