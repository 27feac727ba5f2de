"""The door: who may come in, and what every answer carries. The list of routes is the gateway's own, so a new route is tested by being there."""

import json
import re
import socket
import time

import httpx
import pytest
from serve_gateway import USER, serving

from bedplate.serve import keys
from bedplate.serve.caller import SCOPES
from bedplate.serve.door import HEADERS
from bedplate.serve.gateway import ROUTES
from bedplate.serve.route import PUBLIC

ASKED = {"model": "fake", "messages": [{"role": "user", "content": "What does the river do?"}]}
EVERY = [pytest.param(route, id=f"{route.method} {route.path}") for route in ROUTES]


def path_of(route):
    return re.sub(r"\{[^}]+\}", "something", route.path)


@pytest.mark.parametrize("route", EVERY)
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer bp_wrong"}, {"authorization": "Basic YTpi"}, {"cookie": "bedplate_session=guessed"}])
def test_every_route_refuses_a_missing_or_wrong_key(served, route, headers):
    answered = httpx.request(route.method, served.url + path_of(route), headers=headers, json={} if route.method == "POST" else None)
    if route.scope is PUBLIC:
        assert answered.status_code != 401 or route.path == "/login"
    else:
        assert answered.status_code == 401 and answered.json()["error"]["code"] == "invalid_api_key"


def test_only_these_routes_are_public():
    assert {(route.method, route.path) for route in ROUTES if route.scope is PUBLIC} == {
        ("GET", "/health"), ("GET", "/login"), ("POST", "/login"), ("GET", "/pages/static/{name}"),
    }  # fmt: skip


def test_every_scope_of_a_route_exists_and_is_asked_for(tmp_path):
    assert {route.scope for route in ROUTES} - {PUBLIC, ""} <= set(SCOPES)
    with serving(tmp_path, scopes=("receipts",)) as poor:
        for route in ROUTES:
            answered = httpx.request(route.method, poor.url + path_of(route), headers=poor.headers, json={} if route.method == "POST" else None)
            refused = answered.status_code == 403 and "scope" in answered.text
            assert refused == (route.scope not in (PUBLIC, "", "receipts")), route.path


def test_a_path_that_is_not_there_is_told_only_to_those_with_a_key(served):
    assert httpx.get(f"{served.url}/v1/nothing").status_code == 401
    assert httpx.get(f"{served.url}/v1/nothing", headers=served.headers).status_code == 404
    assert httpx.get(f"{served.url}/v1/chat/completions", headers=served.headers).status_code == 405


def test_every_answer_has_its_number_and_the_headers(served):
    numbers = set()
    for path, headers in (("/health", {}), ("/v1/models", served.headers), ("/v1/models", {}), ("/nothing", served.headers)):
        answered = httpx.get(served.url + path, headers=headers)
        numbers.add(answered.headers["x-request-id"])
        assert all(answered.headers[name] == value for name, value in HEADERS.items()) and "server" not in answered.headers
    assert len(numbers) == 4


def test_health_tells_no_secrets(served):
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("how", ["length", "chunked"])
def test_a_large_body_is_refused_while_it_is_read(tmp_path, how):
    from bedplate.serve.limits import LimitsSettings

    with serving(tmp_path, limits=LimitsSettings(body_bytes=10_000)) as small:
        host, port = small.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {small.key}\r\ncontent-type: application/json\r\n"
            if how == "length":
                connection.sendall(f"{head}content-length: 1000000000\r\n\r\n".encode())
            else:
                connection.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
                for _ in range(4):
                    connection.sendall(b"1000\r\n" + b" " * 0x1000 + b"\r\n")  # never ends
            answered = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b" 413 " in answered.split(b"\r\n")[0] and b"body_too_large" in answered
        assert httpx.post(f"{small.url}/v1/chat/completions", headers=small.headers, json=ASKED).status_code == 200


def test_a_slow_body_and_a_slow_head_are_let_go(tmp_path):
    with serving(tmp_path, listen={"body_s": 0.3, "headers_s": 0.3}) as hurried:
        host, port = hurried.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {hurried.key}\r\ncontent-length: 100\r\n\r\n{{"
            connection.sendall(head.encode())
            assert b" 408 " in connection.recv(65536).split(b"\r\n")[0]
        for beginning in (b"", b"GET /heal"):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(beginning)
                try:
                    assert connection.recv(100) == b""
                except ConnectionResetError:
                    pass


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"temprature": 1}, 400, "did you mean 'temperature'"),
        ({"messages": [{"role": "user", "content": "x", "contnet": "y"}]}, 400, "did you mean 'content'"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0]"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"temperature": 3}, 400, "temperature"),
        ({"n": 1000}, 400, "n: at most 16"),
        ({"max_tokens": 100_000}, 400, "max_tokens"),
        ({"top_logprobs": 3}, 400, "logprobs: true"),
        ({"stream_options": {"include_usage": True}}, 400, "stream: true"),
        ({"tool_choice": "required"}, 400, "none is given"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias"),
        ({"stop": [""]}, 400, "stop"),
        ({"response_format": {"type": "xml"}}, 400, "response_format"),
        ({"messages": [{"role": "user", "content": "boats " * 9000}]}, 400, "are more than the 4096"),
        ({"model": "finder"}, 400, "does not generate"),
        ({"model": "nobody"}, 404, "there is no model 'nobody'"),
    ],
)
def test_what_is_wrong_is_told_in_the_shape_of_openai(served, change, status, told):
    answered = httpx.post(f"{served.url}/v1/chat/completions", headers=served.headers, json={**ASKED, **change})
    error = answered.json()["error"]
    assert answered.status_code == status and told in error["message"] and set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": "fake", "messages": NaN}', b"[" * 100_000, b'{"a":' * 50_000])
def test_what_is_no_json_object_is_refused(served, body):
    answered = httpx.post(f"{served.url}/v1/chat/completions", headers=served.headers, content=body)
    assert answered.status_code == 400 and answered.json()["error"]["type"] == "invalid_request_error"


def test_what_openai_clients_send_besides_changes_nothing(served):
    more = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "parallel_tool_calls": True, "reasoning_effort": "low"}
    plain, with_more = (httpx.post(f"{served.url}/v1/chat/completions", headers=served.headers, json={**ASKED, "seed": 3, **one}) for one in ({}, more))
    assert plain.json()["choices"] == with_more.json()["choices"]


def test_limits_answer_with_429_and_when_to_come_back(tmp_path):
    from bedplate.serve.limits import LimitSettings, LimitsSettings

    with serving(tmp_path, limits=LimitsSettings(key=LimitSettings(requests_per_minute=2))) as limited:
        answers = [httpx.post(f"{limited.url}/v1/chat/completions", headers=limited.headers, json=ASKED) for _ in range(3)]
        assert [one.status_code for one in answers] == [200, 200, 429]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 31 and answers[2].json()["error"]["type"] == "rate_limit_error"
        assert limited.gateway.limiter.running == 0


def test_a_full_generator_pushes_back(tmp_path):
    from bedplate.testing.generators import FakeGenerator

    with serving(tmp_path, fake=FakeGenerator(most_running=1, most_waiting=0, step_s=0.01)) as full:
        answered = httpx.post(f"{full.url}/v1/chat/completions", headers=full.headers, json=ASKED)
        assert answered.status_code == 429 and answered.headers["retry-after"] == "1" and full.gateway.limiter.running == 0


def test_errors_within_are_not_told_and_midway_come_as_an_event(tmp_path):
    from bedplate.core.errors import IntegrityError
    from bedplate.testing.generators import FakeGenerator

    for after in (0, 3):
        with serving(tmp_path / str(after), fake=FakeGenerator(fails=lambda ask: IntegrityError("the secret path /x"), fails_after=after, step_s=0.01)) as broken:
            whole = httpx.post(f"{broken.url}/v1/chat/completions", headers=broken.headers, json=ASKED)
            assert whole.status_code == 500 and "secret" not in whole.text and whole.headers["x-request-id"] in whole.text
            streamed = httpx.post(f"{broken.url}/v1/chat/completions", headers=broken.headers, json={**ASKED, "stream": True})
            if after == 0:
                assert streamed.status_code == 500
            else:
                events = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
                assert json.loads(events[-2])["error"]["type"] == "server_error" and events[-1] == "[DONE]" and "secret" not in streamed.text
            assert not broken.gateway.exchanges and broken.gateway.limiter.running == 0


def test_numbers_for_prometheus(tmp_path):
    with serving(tmp_path, scopes=(*USER, "metrics")) as counted:
        httpx.post(f"{counted.url}/v1/chat/completions", headers=counted.headers, json=ASKED)
        httpx.get(f"{counted.url}/v1/models")
        text = httpx.get(f"{counted.url}/metrics", headers=counted.headers).text
        assert 'bedplate_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
        assert re.search(r'bedplate_tokens_total\{kind="completion",model="fake"\} [1-9]', text) and 'bedplate_refused_total{reason="invalid_api_key"} 1.0' in text
        assert re.search(r'bedplate_generator_counted_total\{model="fake",what="steps"\} [1-9]', text) and counted.key not in text


def test_the_interface_describes_itself_and_needs_nothing_from_the_net(served):
    told = httpx.get(f"{served.url}/openapi.json", headers=served.headers).json()
    assert set(told["paths"]["/v1/chat/completions"]) == {"post"} and "ChatBody" in told["components"]["schemas"]
    described = {(method.upper(), path) for path, methods in told["paths"].items() for method in methods}
    assert described == {(route.method, re.sub(r":\w+\}", "}", route.path)) for route in ROUTES}
    page = httpx.get(f"{served.url}/docs", headers=served.headers)
    assert page.headers["content-type"].startswith("text/html") and "http://" not in page.text and "https://" not in page.text and not re.findall(r'(?:src|href)="(?!/|#)', page.text)


def test_a_revoked_key_is_refused_within_seconds(tmp_path):
    with serving(tmp_path) as served:
        assert httpx.get(f"{served.url}/v1/models", headers=served.headers).status_code == 200
        keys.revoke(tmp_path / "keys.json", "tests")
        until = time.monotonic() + 10
        while httpx.get(f"{served.url}/v1/models", headers=served.headers).status_code != 401:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_without_keys_only_this_machine_is_answered(tmp_path):
    with serving(tmp_path, keys=None) as local:
        port = local.url.rpartition(":")[2]
        for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
            assert httpx.get(f"{local.url}/v1/models", headers={"host": host}).status_code == 200
        assert httpx.get(f"{local.url}/v1/models", headers={"host": "attacker.example"}).status_code == 403
        post = f"{local.url}/v1/chat/completions"
        assert httpx.post(post, json=ASKED).status_code == 200
        assert httpx.post(post, json=ASKED, headers={"origin": "https://attacker.example"}).status_code == 403
        assert httpx.post(post, json=ASKED, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert httpx.post(post, json=ASKED, headers={"sec-fetch-site": "same-origin", "origin": local.url}).status_code == 200


def test_a_browser_logs_in_with_a_key_and_out_again(tmp_path):
    with serving(tmp_path) as served, httpx.Client(base_url=served.url) as browser:
        page = {"accept": "text/html", "sec-fetch-site": "same-origin"}
        sent_away = browser.get("/docs", headers=page)
        assert sent_away.status_code == 303 and sent_away.headers["location"] == "/login?next=/docs"
        assert 'name="key"' in browser.get(sent_away.headers["location"], headers=page).text
        assert browser.post("/login", data={"key": "bp_wrong", "next": "/docs"}, headers=page).status_code == 401
        assert browser.post("/login", data={"key": served.key}, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        entered = browser.post("/login", data={"key": served.key, "next": "/docs"}, headers=page)
        cookie = entered.headers["set-cookie"]
        assert entered.status_code == 303 and entered.headers["location"] == "/docs" and "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert served.key not in cookie
        assert browser.get("/docs", headers=page).status_code == 200
        assert browser.post("/v1/chat/completions", json=ASKED, headers=page).status_code == 200
        assert browser.post("/v1/chat/completions", json=ASKED, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert browser.post("/v1/chat/completions", json=ASKED, headers={"origin": "https://attacker.example"}).status_code == 403
        assert browser.post("/v1/chat/completions", json=ASKED).status_code == 403  # a cookie, and nothing that says whose page it was
        assert browser.post("/logout", headers=page).status_code == 303
        assert browser.get("/docs", headers=page).status_code == 303


def test_a_session_ends_with_its_key(tmp_path):
    with serving(tmp_path) as served, httpx.Client(base_url=served.url, headers={"sec-fetch-site": "same-origin"}) as browser:
        browser.post("/login", data={"key": served.key})
        assert browser.get("/docs").status_code == 200
        keys.revoke(tmp_path / "keys.json", "tests")
        until = time.monotonic() + 10
        while browser.get("/docs").status_code != 401:
            assert time.monotonic() < until
            time.sleep(0.1)


@pytest.mark.parametrize("onwards", ["//attacker.example", "https://attacker.example", "/\\attacker.example", "/x\r\nset-cookie: a=b", "javascript:alert(1)"])
def test_logging_in_leads_nowhere_else(served, onwards):
    entered = httpx.post(f"{served.url}/login", data={"key": served.key, "next": onwards}, headers={"sec-fetch-site": "same-origin"})
    assert entered.status_code == 303 and entered.headers["location"] == "/"
