"""Tokens that nobody has checked yet must cost nothing; sessions end when what opened them ends."""

import base64
import contextlib
import json
import threading
import time

import httpx
import pytest
from places import Clock
from serve_gateway import serving
from test_oidc import ISSUER, KEYS, NOW, handmade, jwks, public, token

from bedplate.core.errors import PolicyError
from bedplate.serve.oidc import Oidc, OidcSettings


def deep(levels=6000):
    return base64.urlsafe_b64encode(b'{"alg":' + b"[" * levels).rstrip(b"=").decode() + ".e30.AAAA"


def test_a_token_that_is_deep_is_refused_and_no_accident(tmp_path):
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks())
    oidc = Oidc(OidcSettings(issuer=ISSUER, keys_file=file), clock=Clock(NOW))
    for text in (deep(), handmade({"alg": "RS256", "kid": "RS256"}, {}).rpartition(".")[0] + "." + "A" * 300, "e30.e30.e30"):
        with pytest.raises(PolicyError):
            oidc.identify(text)
    with serving(tmp_path / "gateway", oidc=OidcSettings(issuer=ISSUER, keys_file=file)) as served:
        answered = httpx.get(f"{served.url}/v1/models", headers={"authorization": f"Bearer {deep()}"})
        assert answered.status_code == 401 and answered.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("warm", [False, True])
def test_a_provider_that_hangs_holds_up_nobody_with_a_key(tmp_path, warm):
    """Each token of an unknown key took a thread of the gateway for as long as the provider hung: six of them, without any key, and nobody was answered."""
    goes_on, hanging = threading.Event(), []

    def hangs(address):
        if warm and not hanging:
            hanging.append(0)
            return jwks(public("ES256"))
        hanging.append(1)
        assert goes_on.wait(20)
        return jwks()

    with serving(tmp_path, oidc=OidcSettings(issuer=ISSUER, keys_url="https://id.example/keys")) as served:
        oidc, clock = served.gateway.reception.oidc, Clock(NOW)
        oidc._fetch, oidc._clock = hangs, clock
        if warm:
            assert oidc.identify(token("ES256")).tenant == "soc"
            clock.at_s += 20
        answers = []

        def ask(number):
            with contextlib.suppress(httpx.HTTPError):
                headers = {"authorization": f"Bearer {token(headers={'kid': f'none{number}'})}"}
                answers.append(httpx.get(f"{served.url}/v1/models", headers=headers, timeout=30).status_code)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        try:
            body = {"model": "fake", "messages": [{"role": "user", "content": "What does the river do?"}]}
            assert httpx.post(f"{served.url}/v1/chat/completions", headers=served.headers, json=body, timeout=8).status_code == 200
            if warm:  # nor those with tokens of keys that are known
                assert oidc.identify(token("ES256", sub="joe")).tenant == "soc"
                for thread in threads:
                    thread.join(0.1)
                assert answers.count(503) >= 30
        finally:
            goes_on.set()
            for thread in threads:
                thread.join(20)
        assert len(answers) == 40 and set(answers) <= {401, 503} and sum(hanging) == 1


def test_a_key_that_is_known_is_taken_while_keys_are_fetched_again():
    clock, first, goes_on, asked = Clock(NOW), [True], threading.Event(), threading.Event()

    def fetch(address):
        if not first:
            asked.set()
            assert goes_on.wait(20)
        first.clear()
        return jwks()

    oidc = Oidc(OidcSettings(issuer=ISSUER, keys_url="https://id.example/keys", refetch_s=100), fetch=fetch, clock=clock)
    oidc.identify(token())
    clock.at_s += 200
    waiting = threading.Thread(target=lambda: oidc.identify(token("ES256")))
    waiting.start()
    assert asked.wait(10)
    assert oidc.identify(token("EdDSA")).tenant == "soc"  # while somebody else waits
    goes_on.set()
    waiting.join(10)


def test_the_session_of_a_token_ends_with_the_token(tmp_path):
    """It went on for session_s, eight hours, whatever the provider had said."""
    file = tmp_path / "jwks.json"
    file.write_bytes(json.dumps({"keys": [public(name) for name in KEYS]}).encode())
    settings = OidcSettings(issuer=ISSUER, keys_file=file, leeway_s=0)
    with serving(tmp_path / "gateway", oidc=settings) as served, httpx.Client(base_url=served.url) as browser:
        now_s = time.time()
        key = token(iat=int(now_s), exp=now_s + 2.5)
        assert browser.post("/login", data={"key": key}).status_code == 303
        assert browser.get("/pages/requests").status_code == 200
        time.sleep(max(0.0, now_s + 2.6 - time.time()))
        assert browser.get("/pages/requests").status_code == 401
        assert browser.post("/login", data={"key": served.key}).status_code == 303  # a key without an end: as long as the session
        assert browser.get("/pages/requests").status_code == 200


def test_health_asks_no_identity_provider(tmp_path):
    """A probe with a stale token took the gateway for ill where only the provider was."""
    oidc = OidcSettings(issuer=ISSUER, keys_url="https://127.0.0.1:9/keys")
    with serving(tmp_path, oidc=oidc) as served:
        headers = {"authorization": f"Bearer {token()}"}
        assert httpx.get(f"{served.url}/health", headers=headers).status_code == 200
        refused = httpx.get(f"{served.url}/v1/models", headers=headers)
        assert refused.status_code == 503 and refused.headers["retry-after"]
