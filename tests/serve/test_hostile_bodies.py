"""Bodies that are small enough to be taken and large enough to hurt: what they cost is known before it is spent."""

import threading
import time

import httpx
import pytest
from serve_gateway import serving

from bedplate.serve.caller import Caller
from bedplate.serve.limits import Limiter, LimitSettings, LimitsSettings
from bedplate.serve.schemas import MOST_TOOLS, MOST_TURNS
from bedplate.testing.generators import FakeGenerator

ASKED = {"model": "fake", "messages": [{"role": "user", "content": "What does the river do?"}], "temperature": 0}


class Counting(FakeGenerator):
    """Remembers how many texts it was asked to count."""

    counted = 0

    def count(self, ask):
        self.counted += 1
        return super().count(ask)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"messages": [{"role": "user", "content": "é" * 200_000}]}, "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "a"}] * (MOST_TURNS + 1)}, "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(MOST_TOOLS + 1)]}, "invalid_value"),
    ],
)
def test_what_cannot_fit_is_refused_unread(tmp_path, change, code):
    """Sixteen megabytes were read for twenty seconds; three hundred thousand turns held everybody's streams for more than five."""
    fake = Counting(context_tokens=4096)
    with serving(tmp_path, fake=fake) as served:
        refused = httpx.post(f"{served.url}/v1/chat/completions", headers=served.headers, json={**ASKED, **change}, timeout=30)
        assert refused.status_code == 400 and refused.json()["error"]["code"] == code and fake.counted == 0
        fits = {**ASKED, "messages": [{"role": "user", "content": "a"}] * 100, "max_tokens": 1}
        assert httpx.post(f"{served.url}/v1/chat/completions", headers=served.headers, json=fits, timeout=30).status_code == 200


def test_every_answer_of_a_request_takes_a_place():
    """Sixty-four requests of sixteen answers were sixty-four, and filled the engine's queue for every tenant."""
    settings = LimitsSettings(key=LimitSettings(concurrent=20), tenant=LimitSettings(concurrent=40), concurrent=64)
    limiter = Limiter(settings, clock=lambda: 0.0)
    one, other = Caller("k1", "a", frozenset()), Caller("k2", "b", frozenset())
    first = limiter.admit(one, 1, answers=16)
    assert first.slot is not None and limiter.running == 16
    refused = limiter.admit(one, 1, answers=8)
    assert refused.slot is None and refused.retry_after_s and "16 answers under way, 20 are its most" in refused.reason
    assert limiter.admit(one, 1, answers=4).slot is not None and limiter.admit(other, 1, answers=20).slot is not None
    assert limiter.running == 40
    first.slot.release()
    first.slot.release()
    assert limiter.running == 24


def test_who_has_nothing_under_way_may_ask_for_a_whole_batch():
    limiter = Limiter(LimitsSettings(key=LimitSettings(concurrent=4), concurrent=8), clock=lambda: 0.0)
    caller = Caller("k1", "a", frozenset())
    batch = limiter.admit(caller, 1, answers=100)
    assert batch.slot is not None and limiter.admit(caller, 1).slot is None
    batch.slot.release()
    assert limiter.running == 0 and limiter.admit(caller, 1).slot is not None


def test_over_http_answers_count(tmp_path):
    fake = FakeGenerator(step_s=0.002)
    with serving(tmp_path, fake=fake, limits=LimitsSettings(key=LimitSettings(concurrent=6))) as served:
        long = {"model": "fake", "prompt": ["a", "b"], "n": 2, "max_tokens": 2000, "ignore_eos": True, "temperature": 1}
        heard = []
        thread = threading.Thread(target=lambda: heard.append(httpx.post(f"{served.url}/v1/completions", headers=served.headers, json=long, timeout=60).status_code))
        thread.start()
        until_s = time.monotonic() + 10
        while served.gateway.limiter.running != 4:
            assert time.monotonic() < until_s
            time.sleep(0.01)
        ask = {"model": "fake", "prompt": "a", "max_tokens": 1, "temperature": 1}
        assert httpx.post(f"{served.url}/v1/completions", headers=served.headers, json={**ask, "n": 3}).status_code == 429
        assert httpx.post(f"{served.url}/v1/completions", headers=served.headers, json={**ask, "n": 2}).status_code == 200
        assert httpx.post(f"{served.url}/v1/embeddings", headers=served.headers, json={"model": "fake", "input": ["a"] * 9}).status_code == 200
        thread.join(60)
        assert heard == [200] and served.gateway.limiter.running == 0
