"""Limits: how much a key and its tenant may ask for, decided at the door and settled when the answer is known.

    limiter = Limiter(LimitsSettings())
    admission = limiter.admit(caller, prompt_tokens=120)
    if admission.slot is None: ...                      # 429 with admission.retry_after_s, admission.reason
    with admission.slot as slot:
        slot.settle(completion_tokens=64)               # as often as wanted; leaving the block gives the place back

An amount "a minute" is a bucket that holds one minute's worth and fills evenly: in any t seconds at most amount * (1 + t / 60) is admitted.
What is only known afterwards may leave a debt, and nothing more is admitted until it is paid. What one tenant does never changes what
another may do, except that all share `concurrent` places; the last of those are kept for tenants below their even share.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from bedplate.core.errors import ConfigError
from bedplate.serve.caller import Caller


@dataclass(frozen=True)
class LimitSettings:
    """How much one key, or one tenant with all its keys, may ask for. 0: no limit."""

    requests_per_minute: int = 600
    """Questions admitted in a minute."""
    tokens_per_minute: int = 200_000
    """Tokens of prompts and answers together; an answer's are counted when they have been said."""
    concurrent: int = 64
    """Answers under way at once; one request may ask for several. Whoever has none under way may ask for as many as a request holds."""
    context_tokens: int = 0
    """Longest question and answer together; 0: what the model can."""

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "concurrent", "context_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)} is below 0", "0 sets no limit")


@dataclass(frozen=True)
class LimitsSettings:
    """What is admitted."""

    key: LimitSettings = field(default_factory=LimitSettings)
    tenant: LimitSettings = field(default_factory=lambda: LimitSettings(requests_per_minute=3000, tokens_per_minute=1_000_000, concurrent=256))
    tenants: Mapping[str, LimitSettings] = field(default_factory=dict)
    """Tenants with other limits than the rest, by name."""
    concurrent: int = 1024
    """Answers under way at once, of all tenants together."""
    kept_share: float = 0.125
    """Share of those places that only tenants below their even share may take."""
    body_bytes: int = 16_777_216
    """Largest body of a request."""

    def __post_init__(self) -> None:
        if self.concurrent < 1 or self.body_bytes < 1 or not 0 <= self.kept_share < 1:
            raise ConfigError("limits.concurrent and limits.body_bytes are at least 1, limits.kept_share is from 0 to below 1", "1024, 16777216, 0.125")


class Admission(NamedTuple):
    """What was decided at the door."""

    slot: Slot | None
    """The place that was taken; None: refused."""
    reason: str = ""
    """Why it was refused, for the one who asked."""
    retry_after_s: float | None = None
    """When it is worth asking again; None: never, the question itself is too large."""


class Bucket:
    """A minute's worth of something that fills evenly. Time is handed in."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """How much is in it; below 0: owed."""
        if now_s > self._at_s:  # a clock that steps back fills nothing
            self._level = min(float(self.per_minute), self._level + (now_s - self._at_s) * self.per_minute / 60)
            self._at_s = now_s
        return self._level

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until so much can be taken; 0: now; infinite: it holds less than that."""
        if self.per_minute == 0:
            return 0.0
        if amount > self.per_minute:
            return math.inf
        missing = amount - self.level(now_s)
        return max(0.0, missing * 60 / self.per_minute) if missing > 1e-9 * self.per_minute else 0.0

    def take(self, amount: float, now_s: float) -> None:
        """Take, into debt if need be; a negative amount gives back."""
        if self.per_minute:
            self._level = min(float(self.per_minute), self.level(now_s) - amount)

    def full(self, now_s: float) -> bool:
        """Whether forgetting it changes nothing."""
        return self.per_minute == 0 or self.level(now_s) >= self.per_minute


class _Account:
    """Of one key, or one tenant."""

    def __init__(self, limit: LimitSettings, now_s: float) -> None:
        self.limit = limit
        self.requests = Bucket(limit.requests_per_minute, now_s)
        self.tokens = Bucket(limit.tokens_per_minute, now_s)
        self.running = 0

    def use(self, now_s: float) -> Use:
        left = [bucket.level(now_s) if bucket.per_minute else math.inf for bucket in (self.requests, self.tokens)]
        return Use(self.running, left[0], left[1])

    def idle(self, now_s: float) -> bool:
        return not self.running and self.requests.full(now_s) and self.tokens.full(now_s)


class Slot:
    """A place under way; leaving its `with` block, or `release`, gives it back, once."""

    def __init__(self, limiter: Limiter, accounts: tuple[_Account, ...], answers: int) -> None:
        self._limiter, self._accounts, self._answers, self._held = limiter, accounts, answers, True

    def settle(self, completion_tokens: int) -> None:
        """Count tokens that were said since the last call; harmless after release, so that a late count is not lost."""
        if completion_tokens > 0:
            self._limiter._settle(self._accounts, completion_tokens)

    def release(self) -> None:
        """Give the place back; a second time does nothing."""
        self._limiter._release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Use(NamedTuple):
    """What a tenant uses now."""

    running: int
    requests_left: float
    """Infinite: no limit."""
    tokens_left: float


class Account(NamedTuple):
    """What one key or tenant may ask for, and uses now."""

    kind: str
    """key or tenant."""
    name: str
    limit: LimitSettings
    use: Use


class Limiter:
    """Admits or refuses. Safe from any thread; decides in microseconds and never waits.

    Args:
        settings: the limits.
        clock: seconds; only differences count.
    """

    FEW_ACCOUNTS = 1024
    """Below so many, none is forgotten."""

    def __init__(self, settings: LimitsSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._clock = clock
        self._turn = threading.Lock()
        self._keys: dict[str, _Account] = {}
        self._tenants: dict[str, _Account] = {}
        self._running = 0
        self._tidy_at = self.FEW_ACCOUNTS

    def admit(self, caller: Caller, prompt_tokens: int, max_tokens: int = 0, answers: int = 1) -> Admission:
        """Take places, a request and the prompt's tokens; all of it or nothing.

        Args:
            caller: who asks.
            prompt_tokens: positions of the question.
            max_tokens: longest answer asked for; only looked at for the limit on context.
            answers: to all prompts of the request; each takes a place.
        """
        with self._turn:
            now_s = self._clock()
            key, tenant = self._accounts(caller, now_s)
            refused = self._refusal(key, tenant, prompt_tokens, max_tokens, answers, now_s)
            if refused is not None:
                return refused
            for account in (key, tenant):
                account.requests.take(1, now_s)
                account.tokens.take(prompt_tokens, now_s)
                account.running += answers
            self._running += answers
            return Admission(Slot(self, (key, tenant), answers))

    def change(self, settings: LimitsSettings) -> None:
        """Take new limits over; what is under way keeps its place, and nobody's bucket is filled by it."""
        with self._turn:
            now_s = self._clock()
            self.settings = settings
            for accounts, limit_of in ((self._keys, lambda _: settings.key), (self._tenants, self._tenant_limit)):
                for name, account in accounts.items():
                    limit = limit_of(name)
                    for bucket, amount in ((account.requests, limit.requests_per_minute), (account.tokens, limit.tokens_per_minute)):
                        spent = bucket.per_minute - bucket.level(now_s)
                        bucket.per_minute, bucket._level = amount, amount - spent
                    account.limit = limit

    def use(self, tenant: str) -> Use:
        """What a tenant uses now, for pages and headers."""
        with self._turn:
            now_s = self._clock()
            account = self._tenants.get(tenant) or _Account(self._tenant_limit(tenant), now_s)
            return account.use(now_s)

    def accounts(self, caller: Caller | None = None) -> list[Account]:
        """What is used now: of a caller's tenant and key, or without one, of all that asked lately; tenants first, by name."""
        with self._turn:
            now_s = self._clock()
            if caller is not None:
                tenants = {caller.tenant: self._tenants.get(caller.tenant) or _Account(self._tenant_limit(caller.tenant), now_s)}
                keys = {caller.id: self._keys.get(caller.id) or _Account(self.settings.key, now_s)}
            else:
                tenants, keys = self._tenants, self._keys
            return [
                Account(kind, name, account.limit, account.use(now_s))
                for kind, accounts in (("tenant", tenants), ("key", keys))
                for name, account in sorted(accounts.items())
            ]

    @property
    def running(self) -> int:
        """Places taken now."""
        return self._running

    def _refusal(self, key: _Account, tenant: _Account, prompt_tokens: int, max_tokens: int, answers: int, now_s: float) -> Admission | None:
        wait_s = 0.0
        reason = ""
        for account, whose in ((key, "this key"), (tenant, "this tenant")):
            limit = account.limit
            if limit.context_tokens and prompt_tokens + max_tokens > limit.context_tokens:
                return Admission(None, f"{prompt_tokens} + {max_tokens} tokens are more than the {limit.context_tokens} that {whose} may ask at once")
            for bucket, amount, what in ((account.requests, 1, "requests"), (account.tokens, prompt_tokens, "tokens")):
                need_s = bucket.wait_s(amount, now_s)
                if math.isinf(need_s):
                    return Admission(None, f"{amount} {what} are more than the {bucket.per_minute} a minute of {whose}")
                if need_s > wait_s:
                    wait_s, reason = need_s, f"{whose} is at its {bucket.per_minute} {what} a minute"
            if limit.concurrent and account.running and account.running + answers > limit.concurrent and wait_s < 1:
                wait_s, reason = 1.0, f"{whose} has {account.running} answers under way, {limit.concurrent} are its most"
        if not reason and not self._room(tenant, answers):
            wait_s, reason = 1.0, f"all {self.settings.concurrent} places are taken"
        return Admission(None, reason, wait_s) if reason else None

    def _room(self, tenant: _Account, answers: int) -> bool:
        free = self.settings.concurrent - self._running - (answers - 1)
        if not self._running:
            return True
        if free <= 0:
            return False
        if free > int(self.settings.concurrent * self.settings.kept_share):
            return True
        active = sum(account.running > 0 for account in self._tenants.values()) + (tenant.running == 0)
        return tenant.running + answers - 1 < self.settings.concurrent / active if active > 1 else False

    def _accounts(self, caller: Caller, now_s: float) -> tuple[_Account, _Account]:
        if len(self._keys) + len(self._tenants) > self._tidy_at:
            for accounts in (self._keys, self._tenants):
                for name in [name for name, account in accounts.items() if account.idle(now_s)]:
                    del accounts[name]
            self._tidy_at = max(self.FEW_ACCOUNTS, 2 * (len(self._keys) + len(self._tenants)))
        key = self._keys.get(caller.id)
        if key is None:
            key = self._keys[caller.id] = _Account(self.settings.key, now_s)
        tenant = self._tenants.get(caller.tenant)
        if tenant is None:
            tenant = self._tenants[caller.tenant] = _Account(self._tenant_limit(caller.tenant), now_s)
        return key, tenant

    def _tenant_limit(self, name: str) -> LimitSettings:
        return self.settings.tenants.get(name, self.settings.tenant)

    def _settle(self, accounts: tuple[_Account, ...], tokens: int) -> None:
        with self._turn:
            now_s = self._clock()
            for account in accounts:
                account.tokens.take(tokens, now_s)

    def _release(self, slot: Slot) -> None:
        with self._turn:
            if slot._held:
                slot._held = False
                self._running -= slot._answers
                for account in slot._accounts:
                    account.running -= slot._answers
