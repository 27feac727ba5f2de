"""An exchange: one request under way, from the door to the audit. Admitted, asked, passed on, settled, written down.

    exchange = await Exchange.begin(gateway, call, target, asks)
    while pieces := await exchange.pieces(): ...
    await exchange.finish()          # before the last byte leaves: nothing is answered that is not written down
    exchange.close()                 # always, however it ended: the place is given back
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bedplate.core.contracts import Verdict
from bedplate.core.errors import BedplateError, PolicyError
from bedplate.core.files import sha256_bytes
from bedplate.core.generation import Ask, Part, Ticket, ToolCall
from bedplate.core.prediction import Vector, as_json
from bedplate.serve.audit import Entry
from bedplate.serve.bridge import Answer, Numbered, Question
from bedplate.serve.caller import Caller
from bedplate.serve.errors import Refusal
from bedplate.serve.guarded import Guarded, GuardedTicket
from bedplate.serve.limits import Slot
from bedplate.serve.models import Target
from bedplate.serve.receipts import Facts, issue, new_salt
from bedplate.serve.redact import plain, thing, written
from bedplate.serve.router import RoutedTicket

if TYPE_CHECKING:
    from bedplate.serve.gateway import Gateway


class Exchange:
    """One request of a caller under way. Make it with `begin`."""

    def __init__(self, gateway: Gateway, caller: Caller, id: str, target: Target, asks: Sequence[Ask], slot: Slot) -> None:
        self.id = id
        """Of the answer, as the client has it; its receipt has the same."""
        self.target = target
        self.asks = tuple(asks)
        self.answer: Answer | None = None
        self.first_s: float | None = None
        """From the question to the first piece of the answer."""
        self._gateway, self._caller, self._slot = gateway, caller, slot
        self._policy, self._redactor = gateway.policy, gateway.redactor  # a reload meanwhile is for those who come after
        self._began = time.monotonic()
        self._salt = new_salt()
        choices = sum(ask.sampling.n for ask in self.asks)
        self._said: list[list[str]] = [[] for _ in range(choices)]
        self._made: list[tuple[int, Part]] = []
        self._finish = ["cancelled"] * choices
        self._written = self._settled = self._closed = False

    @classmethod
    async def begin(cls, gateway: Gateway, caller: Caller, prefix: str, target: Target, asks: Sequence[Ask], prompt_tokens: int) -> Exchange:
        """Admit and ask.

        Args:
            gateway: what runs.
            caller: who asks.
            prefix: of the answer's id, as OpenAI has it ("chatcmpl-").
            target: who answers.
            asks: the questions, in order.
            prompt_tokens: of all of them together.
        Raises:
            Refusal: the limits do not admit it.
            BedplateError: the generator refuses it.
        """
        longest = max(ask.sampling.max_tokens if ask.want == "text" else 0 for ask in asks)
        answers = sum(ask.sampling.n for ask in asks if ask.want == "text")  # what is only read is over in a step
        admission = gateway.limiter.admit(caller, prompt_tokens, longest, max(1, answers))
        if admission.slot is None:
            gateway.metrics.refused.labels("limits").inc()
            status, code = (400, "too_large") if admission.retry_after_s is None else (429, "rate_limit_exceeded")
            raise Refusal(status, admission.reason, code=code, retry_after_s=admission.retry_after_s)
        labels, policy = caller.labels, gateway.policy.name
        asked = [
            replace(ask, worker=target.card.name, tenant=caller.tenant, policy=policy, labels=(*labels, *ask.labels), deadline_s=gateway.settings.answer_s)
            for ask in asks
        ]
        exchange = cls(gateway, caller, prefix + secrets.token_hex(12), target, asked, admission.slot)
        gateway.exchanges.add(exchange)
        try:
            await exchange._before()
            exchange.answer = await gateway.bridge.ask([Question(target.generator, ask) for ask in asked])
        except BaseException as error:
            if isinstance(error, BedplateError):
                await exchange._refused(error)
            exchange.close()
            raise
        return exchange

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says about itself."""
        told = {"x-bedplate-route": self._route}
        if self._gateway.audit is not None:
            told["x-bedplate-receipt"] = self.id
        if self.unchecked:
            told["x-bedplate-unchecked"] = ", ".join(self.unchecked)
        return told

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Senses of what was made that no guard could look at, where guards check answers."""
        guarded = isinstance(self.target.generator, Guarded) and self.target.generator.guards.answer
        return tuple(sorted({part.sense for _, part in self._made})) if guarded else ()

    @property
    def _route(self) -> str:
        """Where it is answered and why, as far as that is decided."""
        for ticket in _tickets(self.answer):
            if isinstance(ticket, RoutedTicket) and ticket.decision is not None:
                return ticket.decision.header
        model = self._gateway.settings.models.get(self.target.base)
        return "local" if model is None or model.here else f"{self.target.base} (remote); no routes"

    @property
    def _guard(self) -> Verdict | None:
        """What a guard refused."""
        return next((one.verdict for one in _tickets(self.answer) if isinstance(one, GuardedTicket) and not one.verdict.allowed), None)

    async def pieces(self) -> list[Numbered]:
        """What may leave now, waiting for something; empty at the end.

        Raises:
            BedplateError: the answer failed.
        """
        assert self.answer is not None
        found = await self.answer.pieces()
        if found and self.first_s is None:
            self.first_s = time.monotonic() - self._began
            self._gateway.metrics.first.observe(self.first_s)
        for number, piece in found:
            if piece.text:
                self._said[number].append(piece.text)
            if piece.tool_calls:
                self._said[number] += [_call_text(call) for call in piece.tool_calls]
            if piece.part is not None:
                self._made.append((number, piece.part))
                self._said[number].append(f"{piece.part.sense} sha256:{sha256_bytes(piece.part.data)}")
            if piece.prediction is not None and not isinstance(piece.prediction, Vector):
                self._said[number].append(json.dumps(as_json(piece.prediction), ensure_ascii=False))
            if piece.finish is not None:
                self._finish[number] = piece.finish
        return found

    def told(self) -> dict[str, Any]:
        """What may be shown of it while it is under way."""
        usage = self.answer.usage if self.answer is not None else None
        return {
            "id": self.id,
            "tenant": self._caller.tenant,
            "caller": self._caller.id,
            "model": self.target.name,
            "route": self._route,
            "age_s": round(time.monotonic() - self._began, 3),
            "first_s": None if self.first_s is None else round(self.first_s, 3),
            "pieces": sum(len(parts) for parts in self._said),
            "prompt_tokens": usage.prompt_tokens if usage is not None else 0,
        }

    def left(self) -> None:
        """The client has gone: stop."""
        if self.answer is not None and not self.answer.ended and not self._closed:
            self._gateway.metrics.left.labels("vanished").inc()
            self.answer.cancel()

    async def finish(self) -> None:
        """Settle and write down. Called before the last byte leaves.

        Raises:
            ResourceError: it cannot be written down.
        """
        self._settle()
        if self._gateway.audit is not None and not self._written:
            self._written = True
            entry = await asyncio.get_running_loop().run_in_executor(None, self._write_answer)
            await asyncio.wrap_future(self._gateway.audit.written(entry))

    def close(self) -> None:
        """Give the place back, cancel what still runs, and write down what was not yet."""
        if self._closed:
            return
        self._closed = True
        if self.answer is not None and not self.answer.ended:
            self.answer.cancel()
        self._settle()
        self._slot.release()
        self._gateway.exchanges.discard(self)
        if self._gateway.audit is not None and not self._written and self.answer is not None:
            self._written = True
            self._gateway.later(self._write_answer)

    async def _before(self) -> None:
        """Write the question down; where that fails, it is not asked."""
        if self._gateway.audit is None:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._write_question)
        except BedplateError as error:
            self._gateway.log(self.id, error)
            raise Refusal(503, "this gateway cannot write its audit, and answers nothing until it can", code="audit", retry_after_s=5.0) from error

    async def _refused(self, error: BedplateError) -> None:
        """Write down that it was not answered, and what decided so."""
        if (audit := self._gateway.audit) is None:
            return
        decided = error.message if isinstance(error, PolicyError) else type(error).__name__  # other messages may quote the question
        about = {"id": self.id, "tenant": self._caller.tenant, "reason": decided, "rule": error.rule if isinstance(error, PolicyError) else ""}
        try:
            await asyncio.get_running_loop().run_in_executor(None, audit.append, "refused", about)
        except BedplateError as failed:
            self._gateway.log(self.id, failed)

    def _settle(self) -> None:
        if self.answer is None or self._settled:
            return
        self._settled = True
        usage = self.answer.usage
        said = usage.completion_tokens if self.answer.ended else self.answer.said  # whoever leaves before the end has had what was said
        self._slot.settle(said)
        self._gateway.metrics.count_tokens(self.target.name, usage.prompt_tokens, usage.cached_tokens, said)

    def _write_question(self) -> None:
        gateway = self._gateway
        assert gateway.audit is not None
        questions = [self._redactor.ask(ask, self._salt) for ask in self.asks]
        about: dict[str, Any] = {"id": self.id, "caller": self._caller.id, "tenant": self._caller.tenant, "model": self.target.name, "questions": questions}
        gateway.audit.append("question", about)

    def _write_answer(self) -> Entry:
        gateway = self._gateway
        assert gateway.audit is not None and gateway.signer is not None and self.answer is not None
        salt, usage = self._salt, self.answer.usage
        texts = ["".join(parts) for parts in self._said]
        prompt = "\n".join(written(ask) for ask in self.asks)
        told = self._redactor.text("\n".join(texts), salt)
        facts = Facts(
            id=self.id,
            at=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            tenant=self._caller.tenant,
            caller=self._caller.id,
            model=self.target.name,
            digests=dict(self.target.card.digests),
            policies=dict(self._policy.digests),
            salt=salt.hex(),
            prompt_sha256=self._redactor.text(prompt, salt).sha256,
            answer_sha256=told.sha256,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            finish=",".join(dict.fromkeys(self._finish)),
            route=self._route,
            guard=guard.rule or guard.reason if (guard := self._guard) is not None else "",
        )
        made = [{"choice": number, "sense": part.sense} | thing(part.data, salt) for number, part in sorted(self._made, key=lambda one: one[0])]
        more = ({"made": made} if made else {}) | ({"unchecked": list(self.unchecked)} if self.unchecked else {})
        return gateway.audit.append("answer", {"id": self.id, "answer": plain(told), **more, "receipt": issue(gateway.signer, facts).as_json()})


def _tickets(answer: Answer | None) -> Iterator[Ticket]:
    """All of an answer's, those behind others included."""
    for ticket in answer.tickets if answer is not None else ():
        yield ticket
        if isinstance(ticket, GuardedTicket) and ticket.inner is not None:
            yield ticket.inner


def _call_text(call: ToolCall) -> str:
    return f"{call.name}({call.arguments})"


