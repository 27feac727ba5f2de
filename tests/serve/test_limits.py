"""Limits: never more than allowed, no place is lost, and nobody pays for another tenant."""

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError
from bedplate.serve.caller import Caller
from bedplate.serve.limits import Limiter, LimitSettings, LimitsSettings

FREE = LimitSettings(0, 0, 0)


class Clock:
    at_s = 0.0

    def __call__(self):
        return self.at_s


def who(tenant="t", key="k"):
    return Caller(f"{tenant}-{key}", tenant, frozenset({"generate"}))


def limiter(key=FREE, tenant=FREE, **more):
    clock = Clock()
    return Limiter(LimitsSettings(key=key, tenant=tenant, **more), clock), clock


steps = st.lists(st.tuples(st.floats(0, 30), st.integers(0, 40), st.integers(0, 60), st.booleans()), max_size=60)


@given(steps, st.integers(1, 12), st.integers(1, 100))
def test_no_stretch_of_time_has_more_than_the_limit(course, requests, tokens):
    limits, clock = limiter(key=LimitSettings(requests_per_minute=requests, tokens_per_minute=tokens, concurrent=0))
    admitted = []
    for wait_s, prompt, said, settle in course:
        clock.at_s += wait_s
        admission = limits.admit(who(), prompt)
        if admission.slot is not None:
            admitted.append((clock.at_s, prompt, said if settle else 0))
            if settle:
                admission.slot.settle(said)
            admission.slot.release()
        else:
            assert admission.reason
    for i, (start_s, _, _) in enumerate(admitted):
        for j in range(i, len(admitted)):
            minutes = 1 + (admitted[j][0] - start_s) / 60
            assert j - i + 1 <= requests * minutes + 1e-6
            # What answers cost may overdraw once, at the very end of the stretch; before that it held back what came after.
            within = sum(prompt for _, prompt, _ in admitted[i : j + 1]) + sum(said for _, _, said in admitted[i:j])
            assert within <= tokens * minutes + 1e-6


@given(steps)
def test_places_are_given_back_whatever_happens(course):
    limits, clock = limiter(key=LimitSettings(0, 0, 3), tenant=LimitSettings(0, 0, 5), concurrent=9)
    held = []
    for wait_s, prompt, said, give_back in course:
        clock.at_s += wait_s
        admission = limits.admit(who("t" if prompt % 2 else "u", str(said % 3)), prompt)
        if admission.slot is not None:
            held.append(admission.slot)
        if give_back and held:
            slot = held.pop(said % len(held))
            slot.release()
            slot.release()
        assert limits.running == len(held) <= 9
    for slot in held:
        slot.settle(3)
        slot.release()
    assert limits.running == 0 and limits.use("t").running == 0 == limits.use("u").running
    slots = [limits.admit(who("t", str(n)), 1).slot for n in range(5)]
    assert all(slots) and limits.admit(who("t", "9"), 1).slot is None


def test_an_error_on_the_way_gives_the_place_back():
    limits, _ = limiter(key=LimitSettings(0, 0, 1))
    with pytest.raises(ZeroDivisionError), limits.admit(who(), 1).slot:
        1 / 0
    assert limits.running == 0


def test_many_threads_lose_no_place():
    limits, _ = limiter(key=LimitSettings(0, 0, 4), concurrent=64)
    most = []

    def work():
        for _ in range(200):
            admission = limits.admit(who(), 1)
            if admission.slot is not None:
                most.append(limits.use("t").running)
                admission.slot.release()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limits.running == 0 and max(most) <= 4


@given(steps, steps)
def test_what_one_tenant_does_changes_nothing_for_another(course, others):
    each = LimitSettings(requests_per_minute=5, tokens_per_minute=60, concurrent=2)

    def decisions(disturbed):
        limits, clock = limiter(key=each, tenant=each, concurrent=1000)
        told = []
        for n, (wait_s, prompt, said, keep) in enumerate(course):
            clock.at_s += wait_s
            if disturbed and n < len(others):
                _, other_prompt, other_said, other_keep = others[n]
                admission = limits.admit(who("other"), other_prompt)
                if admission.slot is not None:
                    admission.slot.settle(other_said)
                    if not other_keep:
                        admission.slot.release()
            admission = limits.admit(who(), prompt)
            told.append((admission.slot is not None, admission.reason, admission.retry_after_s))
            if admission.slot is not None:
                admission.slot.settle(said)
                if not keep:
                    admission.slot.release()
        return told

    assert decisions(False) == decisions(True)


@given(steps, st.integers(1, 40))
def test_who_waits_as_told_is_admitted(course, prompt):
    limits, clock = limiter(key=LimitSettings(requests_per_minute=4, tokens_per_minute=50, concurrent=0))
    for wait_s, asked, said, _ in course:
        clock.at_s += wait_s
        admission = limits.admit(who(), asked)
        if admission.slot is not None:
            admission.slot.settle(said)
            admission.slot.release()
    admission = limits.admit(who(), prompt)
    if admission.slot is None:
        assert admission.retry_after_s > 0
        clock.at_s += admission.retry_after_s * (1 + 1e-9)
        assert limits.admit(who(), prompt).slot is not None


def test_one_tenant_cannot_take_every_place():
    limits, _ = limiter(concurrent=16, kept_share=0.25)
    hog = [limits.admit(who("hog", str(n)), 1) for n in range(40)]
    assert sum(admission.slot is not None for admission in hog) == 12
    assert hog[-1].retry_after_s == 1.0
    small = [limits.admit(who(f"small{n}"), 1) for n in range(6)]
    assert [admission.slot is not None for admission in small] == [True] * 4 + [False] * 2
    assert limits.running == 16


def test_a_tenant_s_keys_share_its_limit():
    limits, _ = limiter(key=LimitSettings(10, 0, 0), tenant=LimitSettings(12, 0, 0))
    said = [limits.admit(who(key=str(n % 2)), 1).slot is not None for n in range(20)]
    assert sum(said) == 12


def test_what_was_said_holds_the_next_question_back():
    limits, clock = limiter(key=LimitSettings(0, 600, 0))
    limits.admit(who(), 100).slot.settle(1100)
    refused = limits.admit(who(), 100)
    assert refused.slot is None and refused.retry_after_s == pytest.approx(70)
    clock.at_s = 71
    assert limits.admit(who(), 100).slot is not None


def test_too_large_a_question_is_refused_for_good():
    limits, _ = limiter(key=LimitSettings(0, 100, 0), tenant=LimitSettings(0, 0, 0, context_tokens=90))
    assert limits.admit(who(), 101).retry_after_s is None
    refused = limits.admit(who(), 80, max_tokens=20)
    assert refused.slot is None and refused.retry_after_s is None and "90" in refused.reason
    assert limits.admit(who(), 80, max_tokens=10).slot is not None


def test_a_tenant_of_its_own():
    limits, _ = limiter(tenant=LimitSettings(1, 0, 0), tenants={"big": LimitSettings(3, 0, 0)})
    assert sum(limits.admit(who("big"), 1).slot is not None for _ in range(5)) == 3
    assert sum(limits.admit(who("small"), 1).slot is not None for _ in range(5)) == 1


def test_refusal_takes_nothing():
    limits, _ = limiter(key=LimitSettings(10, 50, 1))
    slot = limits.admit(who(), 10).slot
    for _ in range(20):
        assert limits.admit(who(), 10).slot is None
    slot.release()
    assert limits.use("t").running == 0 and limits.admit(who(), 40).slot is not None


def test_accounts_of_those_who_left_are_forgotten():
    limits, clock = limiter(key=LimitSettings(5, 5, 0), tenant=LimitSettings(5, 5, 0))
    for n in range(20_000):
        clock.at_s += 0.1
        limits.admit(who(f"t{n}"), 1).slot.release()
    assert len(limits._keys) + len(limits._tenants) < 5000


def test_new_limits_fill_nobody_s_bucket():
    limits, _ = limiter(key=LimitSettings(5, 0, 0))
    for _ in range(5):
        limits.admit(who(), 1)
    limits.change(LimitsSettings(key=LimitSettings(6, 0, 0), tenant=FREE))
    assert [limits.admit(who(), 1).slot is not None for _ in range(2)] == [True, False]


def test_a_clock_that_steps_back_fills_nothing():
    limits, clock = limiter(key=LimitSettings(1, 0, 0))
    clock.at_s = 1000
    assert limits.admit(who(), 1).slot
    clock.at_s = 0
    assert limits.admit(who(), 1).slot is None
    clock.at_s = 1030
    assert limits.admit(who(), 1).slot is None


def test_settings():
    for wrong in ({"requests_per_minute": -1}, {"concurrent": -5}):
        with pytest.raises(ConfigError):
            LimitSettings(**wrong)
    for wrong in ({"kept_share": 1.0}, {"concurrent": 0}, {"body_bytes": 0}):
        with pytest.raises(ConfigError):
            LimitsSettings(**wrong)
    assert math.isinf(limiter()[0].use("t").tokens_left)
