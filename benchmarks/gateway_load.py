"""What the gateway costs: the same engine, bare and behind HTTP, in turns; then ten thousand requests, then a thousand clients that misbehave.

    python -m benchmarks.gateway_load                       # an engine that only computes (products of matrices on every core) and says fixed words
    python -m benchmarks.gateway_load --model models/smollm2-135m
    python -m benchmarks.gateway_load overhead --rounds 5

The server is a process of its own with keys, limits and audit in force; clients are another one, on the same cores, and as light as sockets can be. Loopback
only; every part is bounded in requests and in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bedplate.core.contracts import Generator
from bedplate.core.generation import Ask, Piece, Sampling, Turn
from benchmarks.record import append

STREAMS = 32
TOKENS = 128
SENTENCE = "What does the river carry past the stone bridges while children count lamps and birds return before winter rain? "
QUESTION = SENTENCE * 4
LONGEST_S = 600.0
"""Of any one part, where nobody says."""


# The server: a process of its own, told what to do by lines on its standard input.


def busy(step_s: float) -> Callable[[int], None]:
    """A step's worth of arithmetic on every core: as many products of matrices as take `step_s` on this machine when it is quiet."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 768, 768), dtype=np.float32)
    out = np.empty_like(a)
    np.matmul(a, b, out=out)
    times = []
    for _ in range(60):
        began = time.perf_counter()
        np.matmul(a, b, out=out)
        times.append(time.perf_counter() - began)
    products = max(1, round(step_s / min(times)))  # the quickest: others may be at work while it is measured

    def work(running: int) -> None:
        for _ in range(products):
            np.matmul(a, b, out=out)

    return work


def open_engine(model: str, step_s: float) -> Generator:
    """The native engine on a model, or the one that only computes; below 0: that only waits."""
    if model:
        from bedplate.serve.backends import open_model
        from bedplate.serve.settings import ModelSettings

        return open_model("model", ModelSettings(model))
    from bedplate.testing.generators import FakeGenerator

    return FakeGenerator(work=busy(step_s) if step_s > 0 else lambda running: None, step_s=max(0.0, -step_s), most_running=512, context_tokens=8192)


def serve(folder: Path, model: str, step_s: float) -> None:
    """Serve, and answer lines: `bare STREAMS TOKENS` runs the engine without the gateway."""
    from bedplate.serve.gateway import Gateway, create_app
    from bedplate.serve.limits import LimitSettings, LimitsSettings
    from bedplate.serve.listen import run
    from bedplate.serve.settings import ListenSettings, ServeSettings

    most = LimitSettings(requests_per_minute=0, tokens_per_minute=0, concurrent=256)
    settings = ServeSettings(
        listen=ListenSettings(port=0, headers_s=5.0, body_s=10.0, stalled_s=10.0, drain_s=5.0, kept_pieces=256),
        keys=folder / "keys.json",
        audit=folder / "audit",
        limits=LimitsSettings(key=LimitSettings(requests_per_minute=0, tokens_per_minute=0, concurrent=64), tenant=most),
    )
    generator = open_engine(model, step_s)
    gateway = Gateway(settings, {"model": generator})

    def obey() -> None:
        for line in sys.stdin:
            word, *numbers = line.split()
            if word == "bare":
                print(json.dumps(bare(generator, *map(int, numbers))), flush=True)
            elif word == "bridge":
                print(json.dumps([gateway.bridge.wakes, gateway.bridge.carried]), flush=True)

    threading.Thread(target=obey, daemon=True).start()
    run(gateway, create_app(gateway), lambda address: print(address, flush=True))
    generator.close()


def bare(generator: Generator, streams: int, tokens: int) -> dict[str, Any]:
    """So many answers at once, straight from the engine."""
    began = time.monotonic()
    firsts = [0.0] * streams
    left = threading.Semaphore(0)

    def deliverer(number: int) -> Callable[[Piece], None]:
        def deliver(piece: Piece) -> None:
            if not firsts[number] and piece.text:
                firsts[number] = time.monotonic() - began
            if piece.last:
                left.release()

        return deliver

    for number in range(streams):
        ask = Ask(turns=(Turn.of("user", f"{number} {QUESTION}"),), sampling=Sampling(max_tokens=tokens, ignore_end=True))
        generator.submit(ask, deliverer(number))
    for _ in range(streams):
        left.acquire()
    return {"seconds": time.monotonic() - began, "firsts": firsts}


# The clients: sockets, and as little else as can be.


@dataclass
class Answered:
    """One answer as its client saw it."""

    first_s: float = 0.0
    whole_s: float = 0.0
    status: int = 0
    gaps_s: list[float] = field(default_factory=list)
    """Between what came one after the other."""


@dataclass(frozen=True)
class Target:
    """Where to ask, and as whom."""

    host: str
    port: int
    key: str

    def request(self, number: int, tokens: int, stream: bool = True, question: str = QUESTION) -> bytes:
        """A whole request."""
        asked = {"model": "model", "stream": stream, "temperature": 0, "max_tokens": tokens, "ignore_eos": True}
        body = json.dumps({**asked, "messages": [{"role": "user", "content": f"{number} {question}"}]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.host}\r\nauthorization: Bearer {self.key}\r\ncontent-type: application/json\r\n"
        return f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def ask(target: Target, number: int, tokens: int, stream: bool = True, question: str = QUESTION) -> Answered:
    """Ask once and read to the end."""
    told = Answered()
    began = last = time.monotonic()
    reader, writer = await asyncio.open_connection(target.host, target.port)
    writer.write(target.request(number, tokens, stream, question))
    tail = b""
    while data := await reader.read(65536):
        now = time.monotonic()
        if not told.status:
            told.status = int(data.split(b" ", 2)[1])
        if not told.first_s and (b'"content":"' in data or not stream):
            told.first_s = now - began
        elif told.first_s:
            told.gaps_s.append(now - last)
        last = now
        tail = (tail + data)[-32:]
    writer.close()
    told.whole_s = last - began
    if stream and told.status == 200 and b"[DONE]" not in tail:
        raise RuntimeError(f"an answer broke off: {tail!r}")
    return told


async def many(
    target: Target,
    count: int,
    at_once: int,
    tokens: int,
    each: Callable[[int], None] = lambda done: None,
    stream: bool = True,
    question: str = QUESTION,
    longest_s: float = LONGEST_S,
) -> list[Answered]:
    """So many answers, so many at once."""
    answers: list[Answered] = []
    numbers = iter(range(count))

    async def one_by_one() -> None:
        for number in numbers:
            answers.append(await ask(target, number, tokens, stream, question))
            each(len(answers))

    async with asyncio.timeout(longest_s):
        await asyncio.gather(*(one_by_one() for _ in range(at_once)))
    if wrong := [one.status for one in answers if one.status != 200]:
        raise RuntimeError(f"{len(wrong)} of {count} answers failed, the first with {wrong[0]}")
    return answers


async def misbehave(target: Target, number: int, until: asyncio.Event) -> None:
    """One of five kinds of clients that nobody wants."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        reader, writer = await asyncio.open_connection(target.host, target.port, limit=1024)
        whole = target.request(number, 2000)
        kind = number % 5
        if kind == 0:  # asks, reads nothing
            writer.write(whole)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await until.wait()
        elif kind == 1:  # asks, and is gone after the first words
            writer.write(whole)
            await reader.read(300)
        elif kind == 2:  # never ends its head
            writer.write(whole[:40])
            await until.wait()
        elif kind == 3:  # a body, byte by byte
            for at in range(0, len(whole), 1 if len(whole) < 10 else 40):
                writer.write(whole[at : at + 1])
                await asyncio.sleep(0.25)
                if until.is_set() or writer.is_closing():
                    break
        else:  # says nothing at all
            await until.wait()
        writer.transport.abort()


# The parts.


class Server:
    """The server's process, with two keys: of those who behave, and of those who do not."""

    def __init__(self, folder: Path, model: str, step_s: float) -> None:
        from bedplate.serve import keys

        self.key, self.other = (keys.add(folder / "keys.json", name=name, tenant=name, scopes=("generate",)).secret for name in ("good", "bad"))
        words = [sys.executable, "-m", "benchmarks.gateway_load", "serve", "--folder", str(folder), f"--step-s={step_s}", f"--model={model}"]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.host, port = self.line().removeprefix("http://").split(":")
        self.port = int(port)
        self.target = Target(self.host, self.port, self.key)

    def line(self) -> str:
        """What it says next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str) -> Any:
        """Tell it something; what it answers."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.line())

    @property
    def processor_s(self) -> float:
        """Time of cores that it has used."""
        used = psutil.Process(self.process.pid).cpu_times()
        return float(used.user + used.system)

    @property
    def memory_bytes(self) -> int:
        """Resident, now."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def close(self) -> None:
        """Stop it."""
        self.process.terminate()
        self.process.wait(60)


def overhead(server: Server, rounds: int, conditions: dict[str, Any]) -> None:
    """Bare and behind the gateway, in turns."""
    asyncio.run(many(server.target, STREAMS, STREAMS, 16))
    server.tell(f"bare {STREAMS} 16")
    ratios, processor, bare_rate, rate = [], [], [], []
    firsts: dict[str, list[float]] = {"bare": [], "gateway": []}
    wakes_before, carried_before = server.tell("bridge")
    for number in range(rounds):
        order = ("bare", "gateway") if number % 2 == 0 else ("gateway", "bare")
        seconds, used = {}, {}
        for which in order:
            used_before = server.processor_s
            if which == "bare":
                told = server.tell(f"bare {STREAMS} {TOKENS}")
                seconds[which] = told["seconds"]
                firsts[which] += told["firsts"]
            else:
                began = time.monotonic()
                answers = asyncio.run(many(server.target, STREAMS, STREAMS, TOKENS))
                seconds[which] = time.monotonic() - began
                firsts[which] += [one.first_s for one in answers]
            used[which] = server.processor_s - used_before
        processor.append(100 * (used["gateway"] / used["bare"] - 1))
        ratios.append(100 * (seconds["gateway"] / seconds["bare"] - 1))
        bare_rate.append(STREAMS * TOKENS / seconds["bare"])
        rate.append(STREAMS * TOKENS / seconds["gateway"])
    wakes, carried = server.tell("bridge")
    metrics: dict[str, tuple[Sequence[float], str]] = {
        "overhead": (ratios, "%"),
        "overhead_processor": (processor, "%"),
        "tokens_per_s_bare": (bare_rate, "tokens/s"),
        "tokens_per_s": (rate, "tokens/s"),
        "pieces_per_wake": ([(carried - carried_before) / max(1, wakes - wakes_before)], "pieces"),
    }
    for which, values in firsts.items():
        for share in (50, 99):
            metrics[f"first_token_p{share}_{which}"] = ([1000 * float(np.percentile(values, share))], "ms")
    append("gateway_overhead", {**conditions, "streams": STREAMS, "tokens": TOKENS, "prompt_characters": len(QUESTION), "rounds": rounds}, metrics)


def processor(server: Server, rounds: int, conditions: dict[str, Any]) -> None:
    """Time of cores that a token takes in the server, bare and behind the gateway, in turns: what others do on the machine hardly changes it."""
    asyncio.run(many(server.target, STREAMS, STREAMS, 16))
    spent: dict[str, list[float]] = {"bare": [], "gateway": []}
    for _ in range(rounds):
        for which, values in spent.items():
            before = server.processor_s
            if which == "bare":
                server.tell(f"bare {STREAMS} {TOKENS}")
            else:
                asyncio.run(many(server.target, STREAMS, STREAMS, TOKENS))
            values.append(1e6 * (server.processor_s - before) / (STREAMS * TOKENS))
    added = [gateway - bare for bare, gateway in zip(spent["bare"], spent["gateway"])]
    cores = conditions["cores"]
    append(
        "gateway_processor",
        {**conditions, "streams": STREAMS, "tokens": TOKENS, "prompt_characters": len(QUESTION), "rounds": rounds, "counts": "the server's process"},
        {
            "bare_per_token": (spent["bare"], "us"),
            "gateway_per_token": (spent["gateway"], "us"),
            "added_per_token": (added, "us"),
            "share_of_cores_at_500_tokens_per_s": ([100 * one * 500 / (1e6 * cores) for one in added], "%"),
        },
    )


def soak(server: Server, count: int, longest_s: float, conditions: dict[str, Any]) -> None:
    """Many short answers; memory after every tenth of them. Each question begins in its own way, so each is read."""
    memory: list[int] = []

    def look(done: int) -> None:
        if done % (count // 10) == 0:
            memory.append(server.memory_bytes)

    began = time.monotonic()
    answers = asyncio.run(many(server.target, count, STREAMS, 8, look, question=SENTENCE, longest_s=longest_s))
    seconds = time.monotonic() - began
    mib = [value / 2**20 for value in memory]
    late = mib[len(mib) // 2 :]
    append(
        "gateway_soak",
        {
            **conditions,
            "requests": count,
            "streams": STREAMS,
            "tokens": 8,
            "prompt_characters": len(SENTENCE),
            "memory_MiB": [round(value, 1) for value in mib],
        },
        {
            "requests_per_s": ([count / seconds], "requests/s"),
            "memory": (mib, "MiB"),
            "memory_growth_second_half": ([late[-1] - late[0]], "MiB"),
            "whole_p99": ([1000 * float(np.percentile([one.whole_s for one in answers], 99))], "ms"),
        },
    )


def hostile(server: Server, count: int, rounds: int, conditions: dict[str, Any]) -> None:
    """Eight streams that behave, without and with so many clients that do not."""
    bad = Target(server.host, server.port, server.other)

    async def measured(with_bad: bool) -> list[Answered]:
        until = asyncio.Event()
        others = [asyncio.create_task(misbehave(bad, number, until)) for number in range(count if with_bad else 0)]
        if with_bad:
            await asyncio.sleep(1.0)
        try:
            return await many(server.target, 40, 8, 64)
        finally:
            until.set()
            await asyncio.gather(*others, return_exceptions=True)

    found: dict[bool, list[Answered]] = {False: [], True: []}
    before = server.memory_bytes
    for _ in range(rounds):
        for with_bad in (False, True):
            found[with_bad] += asyncio.run(measured(with_bad))
    time.sleep(2)
    metrics: dict[str, tuple[Sequence[float], str]] = {"memory_growth": ([(server.memory_bytes - before) / 2**20], "MiB")}
    for with_bad, answers in found.items():
        named = "among_hostile" if with_bad else "alone"
        gaps = [gap for one in answers for gap in one.gaps_s]
        for what, values in (("first_token", [one.first_s for one in answers]), ("gap", gaps), ("whole", [one.whole_s for one in answers])):
            for share in (50, 99):
                metrics[f"{what}_p{share}_{named}"] = ([1000 * float(np.percentile(values, share))], "ms")
    append("gateway_hostile", {**conditions, "hostile_clients": count, "answers": 40 * rounds, "streams": 8, "tokens": 64, "rounds": rounds}, metrics)


def main() -> None:
    """Measure all parts, or the chosen ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["overhead", "processor", "soak", "hostile"])
    parser.add_argument("--model", default="")
    parser.add_argument("--step-s", type=float, default=0.06, help="of the engine that only computes, with nothing else on the machine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--longest-s", type=float, default=LONGEST_S, help="of the soak")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # of clients that write into a connection that was cut
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 16_384), most))
    if arguments.parts == ["serve"]:
        serve(arguments.folder, arguments.model, arguments.step_s)
        return
    # A soak and a crowd measure the gateway alone: there the engine says its words at once, or nearly.
    parts: tuple[tuple[str, float, Callable[[Server, dict[str, Any]], None]], ...] = (
        ("overhead", arguments.step_s, lambda server, conditions: overhead(server, arguments.rounds, conditions)),
        ("processor", -0.005, lambda server, conditions: processor(server, 2 * arguments.rounds, conditions)),
        ("soak", 0.0, lambda server, conditions: soak(server, arguments.requests, arguments.longest_s, conditions)),
        ("hostile", -0.005, lambda server, conditions: hostile(server, arguments.clients, arguments.rounds, conditions)),
    )
    for name, step_s, part in parts:
        if name in arguments.parts:
            with tempfile.TemporaryDirectory() as folder:
                server = Server(Path(folder), arguments.model, step_s)
                fake = f"products of matrices, {1000 * step_s:g} ms a step" if step_s > 0 else f"says fixed words, {-1000 * step_s:g} ms a step"
                engine = arguments.model or fake
                try:
                    part(server, {"engine": engine, "cores": len(os.sched_getaffinity(0)), "audit": True})
                finally:
                    server.close()


if __name__ == "__main__":
    main()
