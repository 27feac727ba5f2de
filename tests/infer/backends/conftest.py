"""A stand-in for an endpoint of OpenAI's API: the standard library's HTTP server over a native generator, faulty where it is told to be."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue

import pytest

from bedplate.adapt.base import Base
from bedplate.core.errors import BedplateError
from bedplate.core.generation import Ask, Form, Sampling, Tool, ToolCall, Turn
from bedplate.infer.native import Native
from bedplate.testing.bases import tiny_base
from bedplate.testing.slow_engine import SlowEngine


class StandIn(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, generator):
        super().__init__(("127.0.0.1", 0), Handler)
        self.generator = generator
        self.faults = []
        """What the next requests get instead of an answer: (status, body, headers), "cut" (in the middle), "drop" (at once), or bytes as they are."""
        self.seen = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


def ask_of(path, body):
    """A request's body as a question."""
    if path == "embeddings":
        return Ask(prompt=body["input"], want="vector")
    sampling = Sampling(
        max_tokens=body["max_tokens"], temperature=body["temperature"], top_p=body["top_p"], seed=body["seed"], n=body["n"], stop=tuple(body.get("stop", ())),
        ignore_end=body.get("ignore_eos", False), logprobs=body.get("top_logprobs") if path == "chat/completions" else body.get("logprobs"),
        top_k=body.get("top_k", 0), min_p=body.get("min_p", 0.0), repetition_penalty=body.get("repetition_penalty", 1.0),
        presence_penalty=body.get("presence_penalty", 0.0), frequency_penalty=body.get("frequency_penalty", 0.0),
    )  # fmt: skip
    worker = body["model"].removeprefix("tiny").removeprefix("/")
    if path == "completions":
        prompt = body["prompt"] if isinstance(body["prompt"], str) else tuple(body["prompt"])
        return Ask(worker=worker, prompt=prompt, sampling=sampling, echo=body.get("echo", False))
    form = body.get("response_format")
    form = None if form is None else Form(json=True) if form["type"] == "json_object" else Form(schema=form["json_schema"]["schema"])
    turns = []
    for told in body["messages"]:
        calls = tuple(ToolCall(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in told.get("tool_calls", ()))
        text = told["content"] if isinstance(told["content"], str) else "".join(part.get("text", "") for part in told["content"])
        turns.append(Turn(told["role"], Turn.of("", text).parts, calls, told.get("tool_call_id", "")))
    tools = tuple(Tool(**tool["function"]) for tool in body.get("tools", ()))
    choice = body.get("tool_choice", "auto")
    return Ask(worker=worker, turns=tuple(turns), sampling=sampling, form=form, tools=tools, tool_choice=choice if isinstance(choice, str) else choice["function"]["name"])


def event_of(path, piece):
    """A piece as an event of a stream."""
    choice = {"index": piece.choice, "finish_reason": piece.finish}
    if path == "completions":
        choice["text"] = piece.text
        if piece.logprobs:
            choice["logprobs"] = {
                "tokens": [n.said.text for n in piece.logprobs],
                "token_logprobs": [None if math.isnan(n.said.logprob) else n.said.logprob for n in piece.logprobs],
                "top_logprobs": [{a.text: a.logprob for a in n.top} for n in piece.logprobs],
            }
    else:
        choice["delta"] = {"content": piece.text}
        if piece.tool_calls:  # in fragments, as providers send them
            choice["delta"]["tool_calls"] = [
                {"index": i, "id": c.id, "function": {"name": c.name, "arguments": c.arguments[:3]}} for i, c in enumerate(piece.tool_calls)
            ] + [{"index": i, "function": {"arguments": c.arguments[3:]}} for i, c in enumerate(piece.tool_calls)]
        if piece.logprobs:
            choice["logprobs"] = {"content": [{**_told(n.said), "top_logprobs": list(map(_told, n.top))} for n in piece.logprobs]}
    return {"choices": [choice]}


def _told(alternative):
    return {"token": alternative.text, "logprob": alternative.logprob}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["content-length"]))
        path, server = self.path.removeprefix("/v1/"), self.server
        server.seen.append((path, {name.lower(): value for name, value in self.headers.items()}, json.loads(raw)))
        fault = server.faults.pop(0) if server.faults else None
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(fault, bytes):
            self.answer(200, fault, {"content-type": "text/event-stream"})
            return
        if isinstance(fault, tuple):
            self.answer(fault[0], json.dumps(fault[1]).encode(), fault[2])
            return
        pieces = SimpleQueue()
        try:
            ticket = server.generator.submit(ask_of(path, json.loads(raw)), pieces.put)
        except BedplateError as error:
            self.answer(400, json.dumps({"error": {"message": str(error), "type": "invalid_request_error"}}).encode())
            return
        if path == "embeddings":
            last = pieces.get()
            self.answer(200, json.dumps({"data": [{"embedding": last.prediction.vector}], "usage": {"prompt_tokens": last.usage.prompt_tokens}}).encode())
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            while True:
                piece = pieces.get()
                self.event(event_of(path, piece))
                if fault == "cut":
                    self.connection.close()
                    return
                if piece.last:
                    if piece.usage is not None:
                        names = ("prompt_tokens", "completion_tokens")
                        self.event({"choices": [], "usage": {name: getattr(piece.usage, name) for name in names}})
                    self.wfile.write(b"data: [DONE]\n\n")
                    return
        except OSError:
            ticket.cancel()
        finally:
            ticket.cancel()

    def event(self, tree):
        self.wfile.write(b"data: " + json.dumps(tree).encode() + b"\n\n")
        self.wfile.flush()

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    native = Native(SlowEngine(Base.load(tiny_base(tmp_path_factory.mktemp("base")))))
    yield native
    native.close()


@pytest.fixture(scope="session")
def stand_in(native):
    server = StandIn(native)
    yield server
    server.shutdown()
    server.server_close()
