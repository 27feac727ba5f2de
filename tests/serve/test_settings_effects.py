"""Each setting of the gateway changes what a client, a disk or a backend sees."""

import datetime as dt
import json
import socket
import ssl
import threading
import time

import httpx
import pytest
from serve_gateway import serving

from bedplate.core.config import load
from bedplate.core.errors import BedplateError, ConfigError, IntegrityError, ResourceError
from bedplate.serve import backends, keys
from bedplate.serve.limits import LimitSettings, LimitsSettings
from bedplate.serve.listen import bind
from bedplate.serve.policy import Policy
from bedplate.serve.settings import ListenSettings, ModelSettings, ServeSettings
from bedplate.testing.generators import FakeGenerator

ASKED = {"model": "fake", "messages": [{"role": "user", "content": "What does the river do?"}]}
LONG = {**ASKED, "max_tokens": 4000, "ignore_eos": True}


def post(served, body=ASKED, path="/v1/chat/completions", **more):
    return httpx.post(served.url + path, headers=served.headers, json=body, timeout=30, **more)


def test_where_it_listens():
    for host in ("127.0.0.1", "127.0.0.2", "::1"):
        listener = bind(ListenSettings(host=host, port=0))
        taken = listener.getsockname()[1]
        assert listener.getsockname()[0] == host
        with pytest.raises(ResourceError) as caught:
            bind(ListenSettings(host=host, port=taken))
        assert "listen.port" in caught.value.hint
        listener.close()


def test_a_client_that_takes_nothing_is_cut_after_stalled_s():
    listener = bind(ListenSettings(port=0, stalled_s=7))
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    for one in (listener, accepted):  # connections inherit it
        assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000 and one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    for one in (client, accepted, listener):
        one.close()


def certificate_for(folder):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - dt.timedelta(1), now + dt.timedelta(1))
    signed = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False).sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)


def test_with_a_certificate_and_its_private_key_it_speaks_tls(tmp_path):
    certificate_for(tmp_path)
    with serving(tmp_path, listen={"certificate": tmp_path / "cert.pem", "private_key": tmp_path / "key.pem"}) as served:
        assert served.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        url = served.url.replace("127.0.0.1", "localhost")
        with httpx.Client(verify=trusting, base_url=url) as client:
            assert client.post("/v1/chat/completions", json=ASKED, headers=served.headers).status_code == 200
            entered = client.post("/login", data={"key": served.key}, headers={"sec-fetch-site": "same-origin"})
            assert "; Secure" in entered.headers["set-cookie"]


@pytest.mark.parametrize("behind_tls", [False, True])
def test_behind_a_proxy_that_ends_tls_cookies_are_for_https_alone(tmp_path, behind_tls):
    with serving(tmp_path, listen={"behind_tls": behind_tls}) as served:
        entered = httpx.post(f"{served.url}/login", data={"key": served.key}, headers={"sec-fetch-site": "same-origin"})
        assert ("; Secure" in entered.headers["set-cookie"]) == behind_tls


def test_an_idle_connection_is_kept_for_idle_s(tmp_path):
    with serving(tmp_path, listen={"idle_s": 1.0}) as served:
        host, port = served.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b" 200 " in connection.recv(65536)
            while connection.recv(65536):  # what is left of the answer; then it is closed
                pass


def test_more_connections_than_allowed_are_refused(tmp_path):
    with serving(tmp_path, listen={"connections": 3}) as served:
        host, port = served.url.removeprefix("http://").split(":")
        waiting = [socket.create_connection((host, int(port))) for _ in range(3)]
        assert httpx.get(f"{served.url}/health").status_code == 503
        for one in waiting:
            one.close()
        until = time.monotonic() + 20
        while httpx.get(f"{served.url}/health").status_code != 200:
            assert time.monotonic() < until


@pytest.mark.parametrize("drain_s", [0.2, 30.0])
def test_what_has_not_ended_after_drain_s_is_broken_off(tmp_path, drain_s):
    with serving(tmp_path, fake=FakeGenerator(step_s=0.01), listen={"drain_s": drain_s}) as served:
        told = []
        asking = threading.Thread(target=lambda: told.append(post(served, {**LONG, "max_tokens": 150}).json()["usage"]["completion_tokens"]))
        asking.start()
        while not served.gateway.exchanges:
            time.sleep(0.01)
        served.server._loop.call_soon_threadsafe(served.server.drain)
        asking.join()
        assert told[0] < 150 if drain_s < 1 else told[0] == 150


def test_an_answer_is_as_long_as_answer_tokens_where_nobody_says(tmp_path):
    with serving(tmp_path, answer_tokens=3) as served:
        assert post(served).json()["usage"]["completion_tokens"] == 3
        assert post(served, {**LONG, "max_tokens": 9}).json()["usage"]["completion_tokens"] == 9
    with serving(tmp_path / "small", answer_tokens=10_000, fake=FakeGenerator(context_tokens=64)) as small:
        assert post(small, {**ASKED, "ignore_eos": True}).json()["usage"]["total_tokens"] == 64


def test_an_answer_ends_after_answer_s(tmp_path):
    with serving(tmp_path, answer_s=0.2, fake=FakeGenerator(step_s=0.01)) as served:
        told = post(served, LONG).json()
        assert told["choices"][0]["finish_reason"] == "length" and told["usage"]["completion_tokens"] < 4000


def test_no_more_inputs_or_choices_than_allowed(tmp_path):
    with serving(tmp_path, inputs=2, choices=2) as served:
        for path, body in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
            assert post(served, {"model": "fake", body: ["a", "b"]}, path).status_code == 200
            assert post(served, {"model": "fake", body: ["a", "b", "c"]}, path).status_code == 400
        assert post(served, {**ASKED, "n": 2}).status_code == 200 and post(served, {**ASKED, "n": 3}).status_code == 400


def test_the_audit_and_the_signing_key_lie_where_they_are_told_to(tmp_path):
    for named, at in ((None, tmp_path / "log.pem"), (tmp_path / "elsewhere.pem", tmp_path / "elsewhere.pem")):
        with serving(tmp_path, audit=tmp_path / "log", signing_key=named) as served:
            assert "x-bedplate-receipt" in post(served).headers
        assert at.stat().st_mode & 0o77 == 0 and list((tmp_path / "log").glob("audit-*.jsonl"))
        for file in [*(tmp_path / "log").iterdir()]:
            file.unlink()
    with serving(tmp_path) as served:
        assert "x-bedplate-receipt" not in post(served).headers


def test_what_was_spent_is_kept(tmp_path):
    (tmp_path / "routes.toml").write_text(
        '[places.cloud]\nwhere = "remote"\nurl = "https://cloud.example/v1"\nprice_completion = 1000.0\n'
        '[data]\nmay_leave = ["public"]\n[[rules]]\nname = "all"\nto = ["cloud"]\n[budget]\nper_tenant_per_day = 50.0\n'
    )
    cloud = FakeGenerator()
    with serving(tmp_path, routes_file=tmp_path / "routes.toml", remotes={"cloud": cloud}, spent=tmp_path / "spent.json", close=False) as served:
        answered = httpx.post(f"{served.url}/v1/chat/completions", headers={**served.headers, "x-bedplate-labels": "public"}, json=ASKED)
        assert answered.status_code == 200
    assert json.loads((tmp_path / "spent.json").read_text())["spent"]["soc"] > 0
    cloud.close()


def test_a_browser_stays_logged_in_for_session_s(tmp_path):
    with serving(tmp_path, session_s=1.0) as served, httpx.Client(base_url=served.url, headers={"sec-fetch-site": "same-origin"}) as browser:
        entered = browser.post("/login", data={"key": served.key})
        assert "Max-Age=1" in entered.headers["set-cookie"]
        cookie = entered.headers["set-cookie"].split(";")[0]
        until = time.monotonic() + 20
        while httpx.get(f"{served.url}/docs", headers={"cookie": cookie}).status_code != 401:  # kept by a client that ignores the age
            assert time.monotonic() < until
            time.sleep(0.1)


@pytest.mark.parametrize("whose", ["key", "tenant", "tenants"])
@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute", "concurrent", "context_tokens"])
def test_every_limit_of_a_key_and_of_a_tenant_holds_over_http(tmp_path, whose, limit):
    free = {"requests_per_minute": 0, "tokens_per_minute": 0, "concurrent": 0, "context_tokens": 0}
    tight = LimitSettings(**{**free, limit: {"requests_per_minute": 1, "tokens_per_minute": 60, "concurrent": 1, "context_tokens": 50}[limit]})
    loose = LimitSettings(**free)
    limits = LimitsSettings(**{"key": loose, "tenant": loose, whose: {"soc": tight} if whose == "tenants" else tight})
    with serving(tmp_path, limits=limits, fake=FakeGenerator(step_s=0.005)) as served:
        first = threading.Thread(target=lambda: post(served, {**LONG, "max_tokens": 400 if limit == "concurrent" else 30}))
        first.start()
        if limit == "concurrent":
            while not served.gateway.exchanges:
                time.sleep(0.01)
        else:
            first.join()
        refused = post(served, {**LONG, "max_tokens": 30})
        if limit == "context_tokens":
            assert refused.status_code == 400 and "more than the 50" in refused.text
        else:
            assert refused.status_code == 429 and refused.headers["retry-after"]
        served.gateway.limiter.change(LimitsSettings(key=loose, tenant=loose))
        first.join()


# Models: what each backend is opened with.


@pytest.fixture
def opened(monkeypatch):
    """What the backends are opened with, in place of loading anything."""
    seen = []

    class Recorded(FakeGenerator):
        def __init__(self, *given):
            super().__init__()
            seen.append(given)

    monkeypatch.setattr("bedplate.adapt.base.Base.load", lambda path: path)
    monkeypatch.setattr("bedplate.infer.engine.Engine", lambda base, settings: (base, settings))
    monkeypatch.setattr("bedplate.infer.native.Native", lambda engine: Recorded(*engine))
    monkeypatch.setattr("bedplate.infer.backends.llama_cpp.LlamaCpp", Recorded)
    monkeypatch.setattr("bedplate.infer.backends.remote.Remote", Recorded)
    return seen


def test_path_and_backend_say_who_computes(opened):
    for given, backend in (
        (ModelSettings(path="models/base"), "native"), (ModelSettings("m.gguf"), "llama.cpp"), (ModelSettings("https://x.example/v1"), "remote"), (ModelSettings("odd", "llama.cpp"), "llama.cpp"),
    ):  # fmt: skip
        assert given.chosen == backend
        backends.open_model("m", given).close()
    assert [str(one[0]) for one in (opened[0], opened[1], opened[3])] == ["models/base", "m.gguf", "odd"] and opened[2][0].url == "https://x.example/v1"
    with pytest.raises(ConfigError):
        backends.open_model("m", ModelSettings())


def test_context_tokens_and_side_by_side_reach_the_backend(opened):
    for path in ("models/base", "m.gguf", "https://x.example/v1"):
        backends.open_model("m", ModelSettings(path, context_tokens=512, side_by_side=3)).close()
    assert (opened[0][1].context, opened[0][1].most_running) == (512, 3) and (opened[1][1].context_tokens, opened[1][1].slots) == (512, 3)
    assert opened[2][0].context_tokens == 512


def test_options_reach_the_backend_and_unknown_ones_are_refused(opened):
    backends.open_model("m", ModelSettings("models/base", options={"precision": "float32", "threads": 1})).close()
    assert (opened[0][1].precision, opened[0][1].threads) == ("float32", 1)
    with pytest.raises(ConfigError) as caught:
        backends.open_model("m", ModelSettings("m.gguf", options={"thread": 1}))
    assert "did you mean 'threads'" in caught.value.hint


def test_a_remote_is_asked_for_its_remote_model_with_the_key_of_key_file(opened, tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text("secret\n")
    key_file.chmod(0o600)
    backends.open_model("m", ModelSettings("https://x.example/v1", key_file=key_file, remote_model="large")).close()
    assert (opened[0][0].model, opened[0][0].key_file) == ("large", key_file)
    key_file.chmod(0o644)
    with pytest.raises(IntegrityError):
        backends.open_model("m", ModelSettings("https://x.example/v1", key_file=key_file))


def test_places_of_the_routes_are_opened(opened, tmp_path):
    (tmp_path / "routes.toml").write_text('[places.local]\n[places.a]\nwhere = "remote"\nurl = "https://a.example/v1"\nworker = "large"\n[places.b]\nwhere = "remote"\nurl = "https://b.example/v1"\n')
    settings = ServeSettings(routes=tmp_path / "routes.toml", models={"base": ModelSettings("models/base", adapters={"triage": "adapters/triage"})})
    places = backends.open_places(Policy.read(settings), settings)
    assert set(places) == {"a", "b"}
    assert [(one[0].model, dict(one[0].workers)) for one in opened] == [("large", {"large": "large"}), ("base", {"triage": "triage"})]
    backends.close_all(places)


def test_adapters_are_registered(opened):
    generator = backends.open_model("m", ModelSettings("models/base", adapters={"triage": "adapters/triage"}))
    assert [card.name for card in generator.workers()] == ["", "triage"]
    generator.close()


@pytest.mark.parametrize("listen", [{"headers_s": 0.3, "body_s": 30.0}, {"headers_s": 30.0, "body_s": 0.3}])
def test_patience_with_heads_and_bodies(tmp_path, listen):
    with serving(tmp_path, listen=listen) as served:
        host, port = served.url.removeprefix("http://").split(":")
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\ncontent-length: 100\r\n"
        for sent, patience in ((head, listen["headers_s"]), (head + "\r\n", listen["body_s"])):
            with socket.create_connection((host, int(port)), timeout=1.5) as connection:
                connection.sendall(sent.encode())
                if patience > 1:
                    with pytest.raises(TimeoutError):
                        connection.recv(100)
                else:
                    assert b" 408 " in (answer := connection.recv(100)) or not answer


def test_keys_guards_and_routes_are_files_that_must_be_there(tmp_path):
    for name in ("keys", "guards", "routes"):
        with pytest.raises(BedplateError) as caught, serving(tmp_path, **{"routes_file" if name == "routes" else name: tmp_path / "missing"}):
            pass
        assert "missing" in str(caught.value)


def test_a_file_of_settings_sets_them(tmp_path):
    file = tmp_path / "serve.toml"
    keys.add(tmp_path / "keys.json", name="a", tenant="b", scopes=("generate",))
    file.write_text(f'keys = "{tmp_path}/keys.json"\n[listen]\nhost = "0.0.0.0"\n')
    assert load(ServeSettings, path=file).value.listen.host == "0.0.0.0"
