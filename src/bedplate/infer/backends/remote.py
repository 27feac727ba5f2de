"""Any endpoint that speaks OpenAI's API behind the `Generator`: another gateway of ours, vLLM, a provider.

    generator = Remote(Settings(url="https://models.example.org/v1", model="base-7b", key_env="MODELS_KEY"))

One thread runs all requests. Nothing is asked twice once the first byte of an answer has come; before, what may pass is tried again. The key is read when it is
needed, goes nowhere but into the request's head, and is cut out of whatever the endpoint says.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bedplate.core.errors import BedplateError, ConfigError, RemoteError, StateError, did_you_mean
from bedplate.core.generation import Ask, Deliver, Load, Ticket, Usage, WorkerCard
from bedplate.infer.backends import openai_api
from bedplate.infer.backends.answering import Answering

if TYPE_CHECKING:
    import httpx

MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
"""Answers of an endpoint after which it is asked again."""
LONGEST_LINE_BYTES = 4 * 1024**2
MOST_BYTES = 256 * 1024**2
"""Of one answer."""
LONGEST_PAUSE_S = 20.0


@dataclass(frozen=True)
class Settings:
    """Where and how to ask."""

    url: str
    """Up to and with the version: https://models.example.org/v1."""
    model: str = ""
    """As the endpoint names what answers for the base."""
    workers: Mapping[str, str] = field(default_factory=dict)
    """Name of a worker -> name of the endpoint's model."""
    key_env: str = ""
    """Environment variable that holds the key; "": none."""
    key_file: Path | None = None
    """File that holds the key, read anew for each question."""
    context_tokens: int = 8192
    """Longest question and answer together, as far as is known."""
    senses: tuple[str, ...] = ("text",)
    """What the endpoint's models take in."""
    connect_s: float = 10.0
    """Longest time until a connection stands."""
    silent_s: float = 120.0
    """Longest time without a byte."""
    attempts: int = 3
    """How often it is tried, as long as nothing has come."""
    pause_s: float = 0.5
    """Before the second attempt, on average; each further one waits twice as long. Where the endpoint says how long, that counts."""
    authorities: Path | None = None
    """File of certificate authorities; None: those of this machine."""
    plain: bool = False
    """Allow http to another machine: everybody on the way can read the questions and the key."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{self.url!r} is no address of an endpoint", "write https://models.example.org/v1")
        if parts.username or parts.password:
            raise ConfigError("the address holds a password", "put the key into an environment variable and name it in key_env")
        if parts.scheme == "http" and not self.plain and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise ConfigError(f"http to {parts.hostname} can be read by everybody on the way", "use https, or set plain = true where the way is safe")
        if self.attempts < 1:
            raise ConfigError(f"attempts = {self.attempts} never asks", "3 is usual")


class Remote:
    """A `Generator` on an endpoint.

    Args:
        settings: where and how.
        transport: how httpx reaches it; None: over the network.
    """

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._settings, self._transport = settings, transport
        self._models = {"": settings.model, **settings.workers}
        self._client: httpx.AsyncClient | None = None
        self._under_way: dict[Answering, asyncio.Task[None]] = {}
        self._counters = {"prompt_tokens": 0.0, "cached_tokens": 0.0, "completion_tokens": 0.0, "retries": 0.0}
        self._closed = False
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote", daemon=True)
        self._thread.start()

    def submit(self, ask: Ask, deliver: Deliver) -> Ticket:
        if ask.worker not in self._models:
            raise ConfigError(f"there is no worker {ask.worker!r}", did_you_mean(ask.worker, self._models))
        where, tree = openai_api.body(ask, self._models[ask.worker])
        body = openai_api.written(tree)  # here: a question that cannot be sent is not the endpoint's failure
        answering = Answering(ask, deliver, listens=False, wake=lambda: self._wake(answering))
        with self._lock:
            if self._closed:
                raise StateError("the generator is closed", "open another")
            self._loop.call_soon_threadsafe(self._start, answering, where, body)
        return answering

    def workers(self) -> Sequence[WorkerCard]:
        settings = self._settings
        return [WorkerCard(name, "generate", {}, settings.context_tokens, settings.senses) for name in self._models]

    def count(self, ask: Ask) -> int:
        """An estimate: the endpoint alone knows its tokenizer. Four bytes of text a token, and four tokens a turn."""
        if ask.prompt is not None:
            return max(1, len(ask.prompt.encode("utf-8", "replace")) // 4 if isinstance(ask.prompt, str) else len(ask.prompt))
        return sum(4 + len(turn.text.encode("utf-8", "replace")) // 4 for turn in ask.turns)

    def load(self) -> Load:
        return Load(len(self._under_way), counters=dict(self._counters))

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wake(self, answering: Answering) -> None:
        with self._lock:  # a ticket may be kept for longer than the loop lives
            if not self._closed:
                self._loop.call_soon_threadsafe(self._stop, answering)

    # On the generator's own thread.

    def _start(self, answering: Answering, where: str, body: bytes) -> None:
        task = self._loop.create_task(self._answer(answering, where, body))
        self._under_way[answering] = task
        task.add_done_callback(lambda _: self._done(answering))

    def _done(self, answering: Answering) -> None:
        """A task that was cancelled before it began has said nothing."""
        answering.end_all("cancelled", Usage(0, 0, 0))
        self._under_way.pop(answering, None)

    def _stop(self, answering: Answering) -> None:
        if (task := self._under_way.get(answering)) is not None:
            task.cancel()

    async def _end(self) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    async def _answer(self, answering: Answering, where: str, body: bytes) -> None:
        hearing = openai_api.Hearing(answering)
        try:
            async with asyncio.timeout(answering.left_s):
                if (finish := answering.over) is not None:
                    answering.end_all(finish, Usage(0, 0, 0))
                elif answering.ask.want == "text" and not answering.ask.sampling.max_tokens and not answering.ask.echo:
                    answering.end_all("length", Usage(self.count(answering.ask), 0, 0))
                else:
                    await self._ask(answering, where, body, hearing)
                    hearing.over()
        except TimeoutError:
            answering.end_all("deadline", hearing.usage)
        except asyncio.CancelledError:
            answering.end_all("cancelled", hearing.usage)
        except BedplateError as error:
            answering.fail(error)
        except Exception as error:
            told = RemoteError(f"the endpoint cannot be understood: {type(error).__name__}", "see whether its address leads to OpenAI's API")
            told.__cause__ = error
            answering.fail(told)
        finally:
            for name, count in zip(self._counters, hearing.usage):
                self._counters[name] += count

    async def _ask(self, answering: Answering, where: str, body: bytes, hearing: openai_api.Hearing) -> None:
        """Try until something comes."""
        import httpx

        key = self._key()
        head = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        for attempt in range(1, self._settings.attempts + 1):
            last = attempt == self._settings.attempts
            try:
                async with self._opened().stream("POST", f"{self._settings.url.rstrip('/')}/{where}", content=body, headers=head) as reply:
                    if reply.status_code == 200:
                        await _heard(reply, hearing)
                        return
                    refusal = _refusal(reply.status_code, await _some(reply), key, self._settings)
                    if last or reply.status_code not in MAY_PASS:
                        raise refusal
                    told_s = _seconds(reply.headers.get("retry-after"))
            except httpx.TransportError as error:
                if last or hearing.began:
                    raise _unreachable(error, self._settings, hearing.began) from error
                told_s = None
            self._counters["retries"] += 1
            pause_s = self._settings.pause_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            await asyncio.sleep(min(LONGEST_PAUSE_S, pause_s if told_s is None else told_s + pause_s))

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            import httpx

            authorities = None if self._settings.authorities is None else str(self._settings.authorities)
            timeouts = httpx.Timeout(self._settings.silent_s, connect=self._settings.connect_s)
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
            tls = ssl.create_default_context(cafile=authorities)
            self._client = httpx.AsyncClient(verify=tls, timeout=timeouts, limits=limits, transport=self._transport, trust_env=False)
        return self._client

    def _key(self) -> str:
        settings = self._settings
        if settings.key_file is not None:
            try:
                return settings.key_file.read_text(encoding="utf-8").strip()
            except OSError as error:
                raise RemoteError(f"the key's file cannot be read: {error.strerror}", f"put the key into {settings.key_file}") from error
        if settings.key_env and not os.environ.get(settings.key_env):
            raise RemoteError("there is no key for the endpoint", f"set the environment variable {settings.key_env}")
        return os.environ.get(settings.key_env, "").strip() if settings.key_env else ""


async def _heard(reply: httpx.Response, hearing: openai_api.Hearing) -> None:
    """The endpoint's events, or its whole answer where it does not stream."""
    if "text/event-stream" not in reply.headers.get("content-type", ""):
        hearing.whole(await _some(reply, MOST_BYTES))
        return
    async for line in _lines(reply):
        if line.startswith(b"data:") and hearing.event(line[5:].strip()):
            return


async def _lines(reply: httpx.Response) -> AsyncIterator[bytes]:
    held, count = b"", 0
    async for chunk in reply.aiter_bytes():
        count += len(chunk)
        held += chunk
        *lines, held = held.split(b"\n")
        for line in lines:
            yield line
        if len(held) > LONGEST_LINE_BYTES or count > MOST_BYTES:
            raise RemoteError("the endpoint says more than can be an answer", f"at most {MOST_BYTES:,} bytes are read")
    if held:
        yield held


async def _some(reply: httpx.Response, most: int = 64 * 1024) -> bytes:
    """The beginning of what an endpoint says."""
    said = b""
    async for chunk in reply.aiter_bytes():
        said += chunk
        if len(said) >= most:
            break
    return said[:most]


def _refusal(status: int, said: bytes, key: str, settings: Settings) -> RemoteError:
    """The error for an answer that is none."""
    told = openai_api.message(said)
    told = (told.replace(key, "***") if key else told)[:300]
    host = urlsplit(settings.url).hostname
    hints = {
        401: f"see whether {settings.key_env or settings.key_file or 'a key'} holds the right key",
        403: "see what the key may do",
        404: "see whether the address ends in /v1 and the model is one of the endpoint's",
        429: "ask less often, or raise the limit at the endpoint",
    }
    refused = RemoteError(f"{host} answered {status}: {told}", hints.get(status, "ask again later" if status >= 500 else "change what it names"))
    refused.status = status  # a question that was refused for what it is says nothing of the endpoint's health
    return refused


def _unreachable(error: httpx.TransportError, settings: Settings, began: bool) -> RemoteError:
    host, kind = urlsplit(settings.url).hostname, type(error).__name__
    if began:
        return RemoteError(f"{host} broke off in the middle of an answer ({kind})", "ask again")
    if "CERTIFICATE" in str(error).upper():
        return RemoteError(f"{host} cannot prove who it is ({kind})", "name its certificate authority in authorities")
    return RemoteError(f"{host} cannot be reached ({kind})", f"tried {settings.attempts} times; see whether its address is right and it runs")


def _seconds(told: str | None) -> float | None:
    try:
        return None if told is None else min(LONGEST_PAUSE_S, max(0.0, float(told)))
    except ValueError:
        return None
