"""Clients as they are: some leave, some do not read, some stay while the gateway is stopped or told new settings. Nobody else notices."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from serve_gateway import serving

from bedplate.serve import keys
from bedplate.serve.audit_verify import verify
from bedplate.serve.signing import Signer
from bedplate.testing.generators import FakeGenerator

ASKED = {"model": "fake", "messages": [{"role": "user", "content": "What does the river do?"}]}
LONG = {**ASKED, "stream": True, "max_tokens": 4000, "ignore_eos": True}


def eventually(holds, within_s=20):
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def ask_raw(served, body, receive_buffer=None):
    """A connection on which a question was asked, and nothing read yet."""
    host, port = served.url.removeprefix("http://").split(":")
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(20)
    connection.connect((host, int(port)))
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {served.key}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_forgotten_and_their_answer_stopped(tmp_path, stream):
    with serving(tmp_path, fake=FakeGenerator(step_s=0.01)) as served:
        connection = ask_raw(served, {**LONG, "stream": stream})
        eventually(lambda: served.fake.load().running == 1)
        if stream:
            assert connection.recv(100)
        connection.close()
        eventually(lambda: served.fake.load().running == 0 and not served.gateway.exchanges)
        assert served.gateway.limiter.running == 0 and served.fake.load().counters["completion_tokens"] < 4000
        assert served.gateway.metrics.left.labels("vanished")._value.get() == 1


def test_who_does_not_read_holds_up_nobody_and_is_cut_off(tmp_path):
    with serving(tmp_path, fake=FakeGenerator(step_s=0.0005, context_tokens=100_000), listen={"kept_pieces": 64}) as served:
        slow = ask_raw(served, {**LONG, "max_tokens": 90_000}, receive_buffer=4096)
        eventually(lambda: served.fake.load().running == 1)
        quick = httpx.post(f"{served.url}/v1/chat/completions", headers=served.headers, json={**LONG, "max_tokens": 500}, timeout=30)
        assert quick.text.count('"delta":{"content"') == 500 and quick.text.endswith("data: [DONE]\n\n")
        eventually(lambda: served.fake.load().running == 0 and not served.gateway.exchanges)
        assert served.gateway.metrics.left.labels("too_slow")._value.get() == 1 and served.gateway.limiter.running == 0
        with pytest.raises(ConnectionError):  # cut, not ended
            while slow.recv(65536):
                pass
            raise ConnectionResetError if not slow.recv(1) else AssertionError


def test_many_who_leave_at_once_stall_nobody(tmp_path):
    with serving(tmp_path, fake=FakeGenerator(step_s=0.002, most_running=32)) as served:
        leaving = [ask_raw(served, LONG) for _ in range(60)]
        threading.Timer(0.2, lambda: [one.close() for one in leaving]).start()
        answers = [httpx.post(f"{served.url}/v1/chat/completions", headers=served.headers, json={**ASKED, "max_tokens": 5}, timeout=60) for _ in range(5)]
        assert [one.status_code for one in answers] == [200] * 5
        eventually(lambda: not served.gateway.exchanges and served.gateway.limiter.running == 0)


def test_a_step_of_the_engine_wakes_the_loop_about_once(tmp_path):
    with serving(tmp_path, fake=FakeGenerator(step_s=0.01)) as served:
        with httpx.Client(timeout=60, headers=served.headers) as client:
            threads = [threading.Thread(target=client.post, args=(f"{served.url}/v1/chat/completions",), kwargs={"json": {**LONG, "max_tokens": 50}}) for _ in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert served.gateway.bridge.carried >= 16 * 50
        assert served.gateway.bridge.wakes < served.gateway.bridge.carried / 3


class Process:
    """A gateway as a process of its own."""

    def __init__(self, folder, toml="", step_s=0.005):
        self.key = keys.add(folder / "keys.json", name="tests", tenant="soc", scopes=("admin",)).secret
        self.settings = folder / "serve.toml"
        self.before = f'keys = "{folder}/keys.json"\naudit = "{folder}/audit"\n'
        self.write(toml)
        script = Path(__file__).with_name("fake_server.py")
        self.process = subprocess.Popen([sys.executable, script, self.settings, str(step_s)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.process.stderr.read()
        self.headers = {"authorization": f"Bearer {self.key}"}

    def write(self, toml, adapters="{}"):
        self.settings.write_text(f"{self.before}{toml}\n[listen]\nport = 0\ndrain_s = 20\n[models.fake]\nadapters = {adapters}\n")

    def ended(self):
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def streaming(process, lines, max_tokens):
    """Reads a stream into `lines` in a thread."""

    def read():
        with httpx.stream("POST", f"{process.url}/v1/chat/completions", headers=process.headers, json={**LONG, "max_tokens": max_tokens}, timeout=60) as answer:
            lines.extend(line for line in answer.iter_lines() if line)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_told_to_stop_it_ends_its_streams_and_takes_no_new_ones(tmp_path):
    process = Process(tmp_path)
    lines = []
    reader = streaming(process, lines, 400)
    eventually(lambda: httpx.get(f"{process.url}/admin/exchanges", headers=process.headers).json()["exchanges"])
    process.process.send_signal(signal.SIGTERM)
    eventually(lambda: httpx.get(f"{process.url}/health").status_code == 503)
    refused = httpx.post(f"{process.url}/v1/chat/completions", headers=process.headers, json=ASKED)
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0 and refused.json()["error"]["code"] == "draining"
    reader.join()
    assert lines[-1] == "data: [DONE]" and sum('"delta":{"content"' in line for line in lines) == 400
    code, out, err = process.ended()
    assert code == 0 and out.strip() == "closed", err
    report = verify(tmp_path / "audit", Signer.open(tmp_path / "audit.pem").public)
    assert report.holds and report.closed and report.records >= 4


def test_told_again_it_reads_its_settings_while_a_stream_goes_on(tmp_path):
    process = Process(tmp_path)
    try:
        lines = []
        reader = streaming(process, lines, 600)
        eventually(lambda: httpx.get(f"{process.url}/admin/exchanges", headers=process.headers).json()["exchanges"])
        models = f"{process.url}/v1/models"
        assert [one["id"] for one in httpx.get(models, headers=process.headers).json()["data"]] == ["fake"]
        (tmp_path / "guards.toml").write_text('[[rules]]\nname = "code word"\nliterals = ["nightjar"]\n')
        process.write(f'guards = "{tmp_path}/guards.toml"\nchoices = 2', '{triage = "adapters/triage", sorter = "classify-mail"}')
        process.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(httpx.get(models, headers=process.headers).json()["data"]) == 3)
        post = f"{process.url}/v1/chat/completions"
        guarded = httpx.post(post, headers=process.headers, json={**ASKED, "messages": [{"role": "user", "content": "say nightjar"}]})
        assert guarded.status_code == 403 and guarded.json()["error"]["type"] == "permission_error"
        assert httpx.post(post, headers=process.headers, json={**ASKED, "n": 3}).status_code == 400
        labels = httpx.post(f"{process.url}/v1/classify", headers=process.headers, json={"model": "sorter", "input": ["a", "b"]}).json()["data"]
        assert len(labels) == 2 and abs(sum(labels[0]["probabilities"].values()) - 1) < 1e-6

        process.write("choices = 2", '{triage = "adapters/triage"}')
        told = httpx.post(f"{process.url}/admin/reload", headers=process.headers).json()["changed"]
        assert "sorter: gone" in told and any(line.startswith("guards") for line in told)
        process.settings.write_text("choices = ")
        assert httpx.post(f"{process.url}/admin/reload", headers=process.headers).status_code == 400
        assert [one["id"] for one in httpx.get(models, headers=process.headers).json()["data"]] == ["fake", "triage"]
        reader.join()
        assert lines[-1] == "data: [DONE]" and sum('"delta":{"content"' in line for line in lines) == 600
    finally:
        process.process.send_signal(signal.SIGTERM)
        code, _, err = process.ended()
    assert code == 0 and "Traceback" not in err


def test_curl_streams(tmp_path):
    with serving(tmp_path) as served:
        words = ["curl", "-sN", f"{served.url}/v1/chat/completions", "-H", f"Authorization: Bearer {served.key}", "-d", json.dumps({**ASKED, "stream": True})]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stdout.startswith('data: {"id":') or done.stdout.startswith('data: {"id"')
        assert done.stdout.endswith("data: [DONE]\n\n")
