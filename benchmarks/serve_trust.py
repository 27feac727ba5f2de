"""What the gateway's checks cost: a key, a limit, a plan, a guard on every token, a record of the audit; and how fast an audit is verified.

    python -m benchmarks.serve_trust
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bedplate.core.generation import Ask, Turn
from bedplate.serve import keys
from bedplate.serve.audit import AuditLog, AuditSettings
from bedplate.serve.audit_verify import verify
from bedplate.serve.guard_rules import RuleGuard, RuleSettings
from bedplate.serve.guards import GuardedStream
from bedplate.serve.limits import Limiter, LimitSettings, LimitsSettings
from bedplate.serve.receipts import Facts, issue
from bedplate.serve.redact import Redactor, RedactSettings
from bedplate.serve.routes import DataSettings, RoutesSettings, plan
from bedplate.serve.signing import Signer
from benchmarks.record import append

ROUNDS = 5
QUESTION = "A user says that the printer on the third floor drops every second job since Monday. What should be looked at first? " * 4
"""480 characters, about 110 tokens."""
RULES = [
    RuleSettings("words", literals=tuple(f"project {name} {n}" for name in ("nightjar", "heron", "osprey", "kestrel") for n in range(50))),
    RuleSettings("hosts", regexes=(r"\b[a-z0-9-]{1,63}\.corp\.example\b", r"\b[A-Z]{2}-[0-9]{4,8}\b")),
]
"""Two hundred literals and two patterns, the longest of 76 characters."""


def microseconds(work: Callable[[], object], times: int) -> list[float]:
    """Of one call, in rounds."""
    work()
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(times):
            work()
        rounds.append((time.perf_counter() - started) / times * 1e6)
    return rounds


def main() -> None:
    """Measure and keep the record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        secret = [keys.add(folder / "keys.json", name=f"k{n}", tenant=f"t{n % 10}", scopes=("generate",)).secret for n in range(100)][50]
        ring = keys.KeyRing(folder / "keys.json")
        caller = ring.find(secret)
        assert caller is not None
        limiter = Limiter(LimitsSettings(key=LimitSettings(10**9, 10**12, 64), tenant=LimitSettings(10**9, 10**12, 256)))

        def admit() -> None:
            slot = limiter.admit(caller, 110, 128).slot
            assert slot is not None
            slot.settle(128)
            slot.release()

        ask = Ask(turns=(Turn.of("user", QUESTION),), labels=("public",))
        routes = RoutesSettings(data=DataSettings(may_leave=("public",)))
        guard = RuleGuard(RULES)
        stream = GuardedStream((guard,))
        redactor = Redactor(RedactSettings(mode="redact"))
        signer = Signer.open(folder / "gateway.pem")
        digests, policies = {"model": "ab" * 32}, {"guards": "cd" * 32}
        facts = Facts("chatcmpl-1", "2027-01-15T08:00:00Z", "soc", "k", "m", digests, policies, "00" * 16, "ef" * 32, "01" * 32, 110, 128, "stop")
        log = AuditLog.open(folder / "audit", signer, AuditSettings(most_unwritten=10**9))
        receipt = issue(signer, facts).as_json()
        metrics = {
            "key": (microseconds(lambda: ring.find(secret), 5000), "us"),
            "limits": (microseconds(admit, 5000), "us"),
            "route": (microseconds(lambda: plan(ask, routes, lambda: 110), 2000), "us"),
            "guard_question": (microseconds(lambda: guard.check(QUESTION), 2000), "us"),
            "guard_token": (microseconds(lambda: stream.push(" word"), 5000), "us"),
            "redact": (microseconds(lambda: redactor.text(QUESTION), 1000), "us"),
            "receipt": (microseconds(lambda: issue(signer, facts), 1000), "us"),
            "audit_append": (microseconds(lambda: log.append("answer", {"id": "x", "receipt": receipt}), 2000), "us"),
        }
        started = time.perf_counter()
        first = log.end.n
        while time.perf_counter() - started < 1.0:
            log.append("answer", {"id": "x", "receipt": receipt})
        log.flush()
        durable = [(log.end.n - first) / (time.perf_counter() - started)]
        log.close()
        verified = []
        for _ in range(3):
            started = time.perf_counter()
            report = verify(folder / "audit", signer.public)
            assert report.holds
            verified.append(report.records / (time.perf_counter() - started))
        conditions = {"question_characters": len(QUESTION), "keys": 100, "literals": 200, "patterns": 2, "rounds": ROUNDS, "record_bytes": len(str(receipt))}
        append("serve_trust", conditions, {**metrics, "audit_durable": (durable, "records/s"), "audit_verify": (verified, "records/s")})


if __name__ == "__main__":
    main()
