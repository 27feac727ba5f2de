"""llama.cpp behind the `Generator`: GGUF files, quantised or not, on machines where that is the fastest; the `xllamacpp` wheel carries it ready-made.

    generator = LlamaCpp(Path("model.q8_0.gguf"), Settings(slots=4))

Turns become tokens by our own template and tokenizer, read from the file, so what people write never becomes a control token. A file is tried
in a process of its own before it is opened here: one that llama.cpp does not like may end its process. Its HTTP port is closed by a secret
that nobody is told.
"""

from __future__ import annotations

import json
import queue
import secrets
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.core.errors import BedplateError, ConfigError, ResourceError, StateError, did_you_mean
from bedplate.core.files import sha256_file
from bedplate.core.generation import Alternative, Ask, Deliver, Form, Load, Ticket, TokenLogprob, Usage, WorkerCard
from bedplate.data.chat import ChatTemplate, Message
from bedplate.data.tokenizer import Encoder
from bedplate.infer.backends.answering import Answering, required
from bedplate.infer.words import Held
from bedplate.model.formats.gguf import llama_cpp
from bedplate.model.formats.gguf.header import read_header
from bedplate.model.formats.gguf.tensors import block_size
from bedplate.model.formats.gguf.vocabulary import read_tokenizer


@dataclass(frozen=True)
class Settings:
    """How llama.cpp runs."""

    slots: int = 4
    """Answers at once; their steps share a batch."""
    context_tokens: int = 4096
    """Longest question and answer together, of each slot."""
    threads: int = 2
    """Cores that compute at once."""
    reuse: bool = False
    """Keep what was read of a prompt for the next one that begins alike. Whoever can measure time learns from it what others asked, so it is for
    one tenant alone."""
    gpu_layers: int = 0
    """Layers that a GPU computes, where llama.cpp was built for one."""
    most_waiting: int = 256
    """Questions that wait for a slot; more are refused."""
    try_first: bool = True
    """Open the file in a process of its own first."""

    def __post_init__(self) -> None:
        if self.slots < 1 or self.context_tokens < 1 or self.threads < 1:
            raise ConfigError("slots, context_tokens and threads are at least 1", "4 slots of 4096 tokens are usual")


class LlamaCpp:
    """A `Generator` on a GGUF file.

    Args:
        path: the file.
        settings: how it runs.
    Raises:
        ResourceError: the binding is not installed.
        DataError: llama.cpp does not take the file.
    """

    def __init__(self, path: Path, settings: Settings = Settings()) -> None:
        if hint := llama_cpp.missing():
            raise ResourceError("llama.cpp is not at hand", hint)
        self._settings = settings
        said = read_header(path, block_size).metadata
        trained = int(said.get(f"{said.get('general.architecture')}.context_length", settings.context_tokens))
        self._context = min(settings.context_tokens, trained)
        with tempfile.TemporaryDirectory() as folder:
            for name, text in read_tokenizer(said).items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            self._template = ChatTemplate.of(Path(folder))
            self._encoder = Encoder((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
        if settings.try_first:
            llama_cpp.ask(path, llama_cpp.Questions(prompts=((0,),)))
        self._begins = int(said["tokenizer.ggml.bos_token_id"]) if said.get("tokenizer.ggml.add_bos_token") else None
        self._card = WorkerCard("", "generate", {"model": sha256_file(path)}, self._context)
        self._server = self._open(path)
        self._turns: queue.SimpleQueue[tuple[Answering, int, list[int]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._running = 0
        self._under_way: set[Answering] = set()
        self._counters = {"prompt_tokens": 0.0, "cached_tokens": 0.0, "completion_tokens": 0.0}
        self._threads = [threading.Thread(target=self._work, name=f"llama.cpp {number}", daemon=True) for number in range(settings.slots)]
        for thread in self._threads:
            thread.start()

    def submit(self, ask: Ask, deliver: Deliver) -> Ticket:
        if self._closed:
            raise StateError("the generator is closed", "open another")
        ask = required(ask)
        self._refuse(ask)
        tokens = self._tokens(ask)
        if len(tokens) + ask.sampling.max_tokens > self._context:
            fits = f"at most {max(0, self._context - len(tokens))} tokens of an answer fit behind it; context_tokens = {self._context}"
            raise ConfigError(f"the question takes {len(tokens)} positions and its answer {ask.sampling.max_tokens}", fits)
        if self._turns.qsize() + ask.sampling.n > self._settings.most_waiting:
            raise ResourceError(f"{self._turns.qsize()} answers wait already", "ask again in a second, or open more slots")
        answering = Answering(ask, deliver, listens=True)
        with self._lock:
            self._under_way.add(answering)
        for choice in range(ask.sampling.n):
            self._turns.put((answering, choice, tokens))
        return answering

    def workers(self) -> Sequence[WorkerCard]:
        return [self._card]

    def count(self, ask: Ask) -> int:
        return len(self._tokens(ask))

    def load(self) -> Load:
        return Load(self._running, self._turns.qsize(), counters=dict(self._counters))

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            under_way = list(self._under_way)
        for answering in under_way:
            answering.cancel()
        for _ in self._threads:
            self._turns.put(None)
        for thread in self._threads:
            thread.join()
        self._server = None

    def _open(self, path: Path) -> Any:
        import xllamacpp

        settings = self._settings
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel, params.n_ctx = settings.slots, settings.slots * self._context
        params.n_ubatch = params.n_batch = 2048  # measured: docs/journal.md
        params.n_gpu_layers, params.fit_params, params.warmup, params.verbosity = settings.gpu_layers, False, False, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
        params.cache_ram_mib = 0 if not settings.reuse else params.cache_ram_mib
        params.api_keys = [secrets.token_hex(32)]
        server = xllamacpp.Server(params)
        server.handle_completions({"prompt": [0], "n_predict": 1}, lambda _: False)  # one that is closed before it works waits for ever, holding Python's lock
        return server

    def _refuse(self, ask: Ask) -> None:
        if ask.worker:
            raise ConfigError(f"there is no worker {ask.worker!r}", did_you_mean(ask.worker, ["(the base alone)"]))
        if ask.want != "text":
            raise ConfigError("this backend generates text only", f"ask the native engine for {ask.want}")
        if ask.echo:
            raise ConfigError("llama.cpp does not tell the numbers of a prompt", "ask the native engine")
        if senses := {part.sense for turn in ask.turns for part in turn.parts if part.sense != "text"}:
            raise ConfigError(f"this backend reads no {min(senses)}", "ask the native engine")

    def _tokens(self, ask: Ask) -> list[int]:
        if ask.prompt is None:
            messages = [Message(turn.role, turn.text, turn.tool_calls, turn.tool_call_id) for turn in ask.turns]
            return [int(token) for token in self._template.ask(messages, self._encoder, () if ask.tool_choice == "none" else ask.tools)]
        if not isinstance(ask.prompt, str):
            if unknown := [token for token in ask.prompt if not 0 <= token < self._encoder.size]:
                raise ConfigError(f"the prompt holds token {unknown[0]}", f"tokens go from 0 to {self._encoder.size - 1}")
            return list(ask.prompt)
        begin = [] if self._begins is None else [self._begins]
        return [*begin, *(int(token) for token in self._encoder.encode(ask.prompt))] or [self._template.ends()[0]]

    def _work(self) -> None:
        """One slot: answers one choice after the other."""
        while (turn := self._turns.get()) is not None:
            answering, choice, tokens = turn
            with self._lock:
                self._running += 1
            try:
                self._answer(answering, choice, tokens)
            except BedplateError as error:
                answering.fail(error)
            except Exception as error:
                told = ResourceError(f"llama.cpp failed: {type(error).__name__}", "ask again; if it comes back, open the file anew")
                told.__cause__ = error
                answering.fail(told)
            with self._lock:
                self._running -= 1
                if answering.ended:
                    self._under_way.discard(answering)

    def _answer(self, answering: Answering, choice: int, tokens: list[int]) -> None:
        ask = answering.ask
        if (finish := answering.over) is not None or not ask.sampling.max_tokens:
            answering.end(choice, finish or "length", Usage(len(tokens), 0, 0))
            return
        said, stopped = 0, False
        held = Held(ask.sampling.stop)  # ours: llama.cpp loses what it holds back where an answer ends by its length
        last: dict[str, Any] = {}

        def heard(chunk: Mapping[str, Any]) -> bool:
            nonlocal said, stopped
            if "error" in chunk:
                last.update(chunk)
                return True
            found = chunk["choices"][0]
            said += not found["finish_reason"]
            free = held.push(found["text"], _numbers(found.get("logprobs")))
            answering.say(choice, free.text, free.logprobs)
            last.update(chunk)
            stopped = free.stopped
            return stopped or answering.over is not None

        self._server.handle_completions(self._body(ask, choice, tokens), heard)
        if "error" in last:
            raise ConfigError(f"llama.cpp refuses: {str(last['error'].get('message'))[:300]}", "change what it names")
        usage = last.get("usage") or {}
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0))
        cost = Usage(len(tokens), cached, int(usage.get("completion_tokens", said)))
        with self._lock:
            for name, count in zip(self._counters, cost):
                self._counters[name] += count
        ended = "stop" if stopped else (last.get("choices") or [{}])[0].get("finish_reason")
        if not stopped:
            rest = held.end()
            answering.say(choice, rest.text, rest.logprobs)
        answering.end(choice, "length" if ended == "length" else "stop" if ended else answering.over or "cancelled", cost)

    def _body(self, ask: Ask, choice: int, tokens: list[int]) -> dict[str, Any]:
        sampling = ask.sampling
        body: dict[str, Any] = {
            "prompt": tokens,
            "stream": True,
            "n_predict": sampling.max_tokens,
            "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": self._context,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "logit_bias": [[token, False if bias <= -100 else bias] for token, bias in sampling.logit_bias.items()],
            "seed": (sampling.seed + choice * 0x9E3779B9) % 2**32,
            "ignore_eos": sampling.ignore_end,
            "n_probs": 0 if sampling.logprobs is None else max(1, sampling.logprobs),
            "cache_prompt": self._settings.reuse,
        }
        return body if ask.form is None else {**body, "grammar": grammar(ask.form)}


def grammar(form: Form) -> str:
    """A form as llama.cpp takes it where it was built with llguidance, as the wheel is."""
    if form.regex is not None:
        start = "/" + form.regex.replace("/", "\\/") + "/"
    elif form.choice:
        start = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in form.choice)
    else:
        schema = {"type": "object"} if form.schema is None else dict(form.schema)
        spaces = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        start = "%json " + json.dumps({**schema, "x-guidance": spaces}, ensure_ascii=False)
    return f"%llguidance {{}}\nstart: {start}"


def _numbers(told: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(_alternative(one), tuple(_alternative(other) for other in one.get("top_logprobs", ()))) for one in (told or {}).get("content") or ()
    )


def _alternative(one: Mapping[str, Any]) -> Alternative:
    return Alternative(str(one["token"]), float(one["logprob"]), int(one.get("id", -1)))
