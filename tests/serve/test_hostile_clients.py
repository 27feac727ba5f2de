"""Clients who mean harm: heads and bodies without end, headers said twice, answers taken without paying, lines slipped into the log."""

import contextlib
import logging
import socket
import time

import httpx
import pytest
from serve_gateway import serving

from bedplate.core.errors import RemoteError
from bedplate.serve.door import PUBLIC_BODY_BYTES
from bedplate.serve.limits import LimitSettings, LimitsSettings
from bedplate.serve.listen import LARGEST_HEAD_BYTES
from bedplate.testing.generators import FakeGenerator

ASKED = {"model": "fake", "messages": [{"role": "user", "content": "What does the river do?"}], "temperature": 0}


def connected(served, timeout_s=10):
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=timeout_s)


def heard(connection):
    """One answer of /health."""
    answered = b""
    while not answered.endswith(b'{"status":"ok"}'):
        more = connection.recv(1000)
        assert more, answered
        answered += more
    return answered


def eventually(holds, within_s=20):
    until_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def sent(connection, piece, most_bytes):
    """Bytes that were taken before the other side hung up."""
    count = 0
    with contextlib.suppress(OSError):
        while count < most_bytes:
            connection.sendall(piece)
            count += len(piece)
    return count


@pytest.mark.parametrize(
    "pieces",
    [
        (b"GET /health HTTP/1.1\r\nhost: x\r\n", b"x-more: " + b"y" * 8000 + b"\r\n"),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: ", b"y" * 8000),
        (b"GET /health?", b"y" * 8000),
        (b"POST /login HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x-trailer: " + b"y" * 8000 + b"\r\n"),
    ],
    ids=["many headers", "one header", "address", "trailers"],
)
def test_a_head_without_end_is_not_kept(served, pieces):
    """Nobody had shown a key, and all of it was kept in memory for as long as a head may take."""
    with connected(served) as connection:
        connection.sendall(pieces[0])
        assert sent(connection, pieces[1], 64 * 1024 * 1024) < 32 * 1024 * 1024  # what the kernels hold between the two
        answered = b""
        with contextlib.suppress(OSError):
            answered = connection.recv(1000)
        assert answered == b"" or answered.startswith((b"HTTP/1.1 431", b"HTTP/1.1 303", b"HTTP/1.1 401"))
    assert httpx.get(f"{served.url}/health").status_code == 200


def test_a_head_that_is_long_but_ends_is_read(served):
    long = {"x-long": "y" * (LARGEST_HEAD_BYTES // 2)}
    assert httpx.get(f"{served.url}/health", headers=long).status_code == 200
    with httpx.Client() as client:  # a connection that lives long is not tired of heads
        assert all(client.get(f"{served.url}/health", headers=long).status_code == 200 for _ in range(5))


def test_many_small_chunks_are_one_body(served):
    def body():
        yield from (bytes([byte]) for byte in b'{"model":"fake","prompt":"' + b"a" * 2000 + b'","max_tokens":1}')

    assert httpx.post(f"{served.url}/v1/completions", headers=served.headers, content=body()).status_code == 200


def test_who_has_no_key_sends_no_large_body(served):
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert httpx.post(f"{served.url}/login", headers=form, content=b"key=" + b"a" * PUBLIC_BODY_BYTES).status_code == 413
    chunks = iter([b"key=", *[b"a" * 1000] * 40])
    assert httpx.post(f"{served.url}/login", headers=form, content=chunks).status_code == 413
    assert httpx.post(f"{served.url}/login", headers=form, content=b"key=" + b"a" * 200).status_code == 401


def test_a_body_that_nobody_reads_does_not_hold_a_connection(tmp_path):
    """A route without a body answers at once; whoever then sends a byte now and then kept the connection for ever."""
    with serving(tmp_path, listen={"body_s": 0.5}) as served, connected(served) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        heard(connection)
        until_s, cut = time.monotonic() + 8, False
        while not cut and time.monotonic() < until_s:
            try:
                connection.sendall(b"1\r\na\r\n")
                time.sleep(0.05)
            except OSError:
                cut = True
        assert cut
        with connected(served) as again:  # one that does end may ask again
            again.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            heard(again)
            again.sendall(b"0\r\n\r\n")
            time.sleep(0.7)
            again.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            heard(again)


def test_who_does_not_read_has_used_tokens(tmp_path):
    """Otherwise a client that is cut off has been given them for nothing, and asks again."""
    limits = LimitsSettings(key=LimitSettings(tokens_per_minute=60), tenant=LimitSettings(tokens_per_minute=0))
    fake = FakeGenerator(step_s=0.0005, context_tokens=100_000)
    with serving(tmp_path, fake=fake, limits=limits, listen={"kept_pieces": 64}) as served:
        body = {**ASKED, "max_tokens": 90_000, "ignore_eos": True, "stream": True}
        request = httpx.Request("POST", f"{served.url}/v1/chat/completions", headers=served.headers, json=body)
        with connected(served) as connection:
            head = b"".join(name + b": " + value + b"\r\n" for name, value in request.headers.raw)
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n" + head + b"\r\n" + request.content)
            eventually(lambda: served.gateway.metrics.left.labels("too_slow")._value.get() == 1 and not served.gateway.exchanges)
        account = next(one for one in served.gateway.limiter.accounts() if one.kind == "key")
        said = fake.load().counters["completion_tokens"]
        assert account.use.running == 0 and said > 500 and account.use.tokens_left < 60 - said / 2


def test_labels_said_twice_and_many_labels_all_count(served):
    """A proxy that adds its own line is not outdone by a client that said one before it, nor by one that says very many."""
    url, own = f"{served.url}/v1/chat/completions", list(served.headers.items())
    for lines in (["public", "confidential"], [", ".join(f"public{n}" for n in range(40)) + ", confidential"]):
        httpx.post(url, headers=[*own, *(("x-bedplate-labels", line) for line in lines)], json=ASKED)
        assert "confidential" in served.fake.asked[-1].labels


def test_a_path_with_one_slash_more_leads_nowhere(served):
    """It was answered with an address made of the request's own Host."""
    answered = httpx.post(f"{served.url}/v1/chat/completions/", headers={**served.headers, "host": "evil.example"}, json=ASKED)
    assert answered.status_code == 404 and "location" not in answered.headers


def test_nobody_writes_lines_of_their_own_into_the_log(served, caplog):
    with caplog.at_level(logging.ERROR, "bedplate.serve"):
        served.gateway.log("req_1", RemoteError("cloud answered 500: ok\n2026-11-26 ERROR request req_0: forged \x1b[2J\u202e", "ask again"))
        served.gateway.log("req_2", ValueError("a\r\nb"))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and not any(set(line) & set("\n\r\x1b\u202e") for line in told)
    assert "forged" in told[0] and "ask again" in told[0]


def test_one_connection_too_many_is_refused_in_the_words_of_the_rest(tmp_path):
    """It was told "Service Unavailable" as plain text, without a word of when to come back."""
    with serving(tmp_path, listen={"connections": 3}) as served:
        with connected(served), connected(served):
            refused = httpx.get(f"{served.url}/health")
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "busy" and refused.headers["retry-after"] and refused.headers["x-frame-options"]
        eventually(lambda: httpx.get(f"{served.url}/health").status_code == 200)
