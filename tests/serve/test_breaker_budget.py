"""The breaker leaves alone what is ill, and the budget is never overspent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import Clock

from bedplate.core.errors import ConfigError, IntegrityError
from bedplate.serve.breaker import Breaker, BreakerSettings
from bedplate.serve.budget import Budget, BudgetSettings

DAY_S = 86_400


def test_the_life_of_a_breaker():
    clock = Clock(0)
    breaker = Breaker(BreakerSettings(failures=3, open_s=30, probes=1), clock)
    for _ in range(2):
        breaker.enter().failed()
    breaker.enter().succeeded()
    for _ in range(2):
        breaker.enter().failed()
    assert breaker.state == "closed"
    late = breaker.enter()
    breaker.enter().failed()
    assert breaker.state == "open" and breaker.enter() is None and breaker.wait_s == 30
    late.succeeded()
    assert breaker.state == "open", "an answer from before it fell ill does not make it well"
    clock.at_s = 30
    probe = breaker.enter()
    assert breaker.state == "half-open" and probe.probe and breaker.enter() is None
    probe.failed()
    assert breaker.state == "open" and breaker.wait_s == 30
    clock.at_s = 60
    probe = breaker.enter()
    probe.abandoned()
    probe.succeeded()
    assert breaker.state == "half-open", "only the first outcome counts"
    breaker.enter().succeeded()
    assert breaker.state == "closed" and breaker.enter() and breaker.enter()


@given(st.lists(st.tuples(st.sampled_from(["enter", "success", "failure", "nothing", "wait"]), st.integers(0, 9)), max_size=80), st.integers(1, 3), st.integers(1, 3))
def test_an_open_breaker_lets_nobody_in_and_a_half_open_one_few(course, failures, probes):
    clock = Clock(0)
    breaker = Breaker(BreakerSettings(failures, 10.0, probes), clock)
    held = []
    for what, n in course:
        if what == "wait":
            clock.at_s += n
        elif what == "enter":
            state = breaker.state
            leave = breaker.enter()
            assert (leave is None) == (state == "open" or (state == "half-open" and sum(one.probe for one in held) >= probes))
            held += [leave] if leave is not None else []
        elif held:
            one = held.pop(n % len(held))
            {"success": one.succeeded, "failure": one.failed, "nothing": one.abandoned}[what]()
    for one in held:
        one.abandoned()
    clock.at_s += 10
    assert breaker.enter() is not None, "nothing keeps it shut for ever"


def test_what_a_breaker_cannot_be():
    for wrong in ({"failures": 0}, {"open_s": 0.0}, {"probes": 0}):
        with pytest.raises(ConfigError):
            BreakerSettings(**wrong)


@given(st.lists(st.tuples(st.integers(0, 40), st.one_of(st.none(), st.floats(0, 1)), st.integers(0, DAY_S)), max_size=40), st.integers(0, 100))
def test_no_day_costs_more_than_its_budget(course, budget):
    clock = Clock(0)
    kept = Budget(BudgetSettings(per_tenant_per_day=float(budget)), clock=clock)
    by_day, held = {}, []
    for most, share, wait_s in course:
        clock.at_s += wait_s // 8
        money = kept.reserve("t", float(most))
        if money is not None:
            by_day.setdefault(int(clock.at_s // DAY_S), []).append((money, most, share))
            held.append((money, most, share))
        if len(held) > 3:
            one, most, share = held.pop(0)
            one.settle(None if share is None else share * most)
            one.settle(1e9)
    for one, _, _ in held:
        one.settle()
    for taken in by_day.values():
        assert sum(most if share is None else 0 for _, most, share in taken) <= budget + 1e-6
    assert kept.spent("t") <= budget + 1e-6 and kept.left("t") >= -1e-6


def test_a_tenant_s_own_budget_and_a_new_day():
    clock = Clock(0)
    budget = Budget(BudgetSettings(per_tenant_per_day=1.0, tenants={"big": 5.0}), clock=clock)
    assert budget.reserve("small", 2.0) is None and budget.reserve("big", 4.0) is not None
    assert budget.reserve("big", 2.0) is None and budget.reserve("small", 0.0) is not None
    clock.at_s = DAY_S
    late = budget.reserve("big", 5.0)
    assert late is not None
    clock.at_s = 0
    assert budget.reserve("big", 1.0) is None, "a clock that steps back gives nobody a second budget"


def test_what_was_spent_outlives_the_process(tmp_path):
    file, clock = tmp_path / "budget.json", Clock(0)
    settings = BudgetSettings(per_tenant_per_day=10.0)
    budget = Budget(settings, file, clock)
    budget.write()
    assert not file.exists()
    budget.reserve("t", 4.0).settle(3.0)
    budget.reserve("t", 2.0)
    budget.write()
    assert file.stat().st_mode & 0o777 == 0o600
    assert Budget(settings, file, clock).left("t") == 5.0, "what nobody came back to settle counts as spent"
    clock.at_s = DAY_S
    assert Budget(settings, file, clock).left("t") == 10.0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2, "day": "1970-01-01", "spent": {}}', '{"format": 1, "day": "1970-1-1", "spent": {}}', '{"format": 1, "day": "1970-01-01", "spent": {"t": -1}}', '{"format": 1, "day": "1970-01-01", "spent": {"t": "1"}}', '{"format": 1, "day": 3, "spent": {}}'])
def test_a_damaged_file_is_refused(tmp_path, text):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(IntegrityError):
        Budget(BudgetSettings(), tmp_path / "b.json", Clock(0))


def test_what_a_budget_cannot_be():
    for wrong in ({"per_tenant_per_day": -1.0}, {"tenants": {"t": float("inf")}}, {"per_tenant_per_day": float("nan")}):
        with pytest.raises(ConfigError):
            BudgetSettings(**wrong)
