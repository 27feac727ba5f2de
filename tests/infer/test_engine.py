"""The engine: what one request hears does not depend on the others, on budget, pages, guesses or kept beginnings; and it outlives whatever goes wrong."""

import contextlib
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.adapt.base import Base
from bedplate.adapt.encode import collate, compose, said
from bedplate.core.errors import ConfigError, ResourceError, StateError
from bedplate.core.generation import Sampling
from bedplate.data.document import Segment
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.request import Request
from bedplate.infer.scheduler import Scheduler
from bedplate.infer.sequence import Running
from bedplate.model.batch import to_torch
from bedplate.testing.bases import base_of, tiny_base
from bedplate.testing.corpora import tiny_specs
from bedplate.testing.heard import Heard
from bedplate.testing.models import family_model, tiny_model
from bedplate.testing.requests import words
from bedplate.testing.slow_answer import answer

USUAL = EngineSettings(precision="float32", threads=1, context=512, cache_bytes=2**22, most_running=8)


@pytest.fixture(scope="module")
def base():
    return base_of(tiny_model(senses=tiny_specs(), random=True))


@pytest.fixture
def engine(base):
    opened = Engine(base, USUAL)
    yield opened
    settle(opened)
    opened.close()


def settle(engine):
    """Nothing is left of requests that have ended."""
    deadline = time.monotonic() + 30
    while engine.load().running or engine.load().waiting:
        assert time.monotonic() < deadline, "something never ends"
        time.sleep(0.002)
    engine._scheduler.pages.check()
    assert engine._scheduler.pages.held == 0, "a page leaked"


def ask(engine, request, **kept):
    heard = Heard(**kept)
    engine.submit(request, heard)
    return heard


def picture(base, before=5, after=7, seed=0, last_row=None):
    """Words, a picture of 49 patches that see each other both ways, words."""
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28, 1), dtype=np.uint8)
    if last_row is not None:
        pixels[-1] = last_row
    parts = [said(words(base, before, seed).tokens, False), Segment("image", pixels), said(words(base, after, seed + 1).tokens, False)]
    return compose(parts, base.model.config)


@torch.inference_mode()
def greedily(base, positions, most):
    """The slow twin: everything computed anew for every token."""
    ids = positions.tokens.tolist()
    never = list(base.model.config.special_ids.values())
    while len(ids) < len(positions) + most:
        logits = base.model.forward_tokens(torch.tensor([ids]))[0, -1]
        logits[never] = -torch.inf
        ids.append(int(logits.argmax()))
    return ids[len(positions) :]


def test_it_says_what_the_model_says(base, engine):
    asked = [words(base, n, n) for n in (1, 15, 16, 17, 40, 100)]
    heard = [ask(engine, Request(one, Sampling(max_tokens=12))) for one in asked]
    for one, positions in zip(heard, asked):
        assert one.wait().tokens == greedily(base, positions, 12) and one.finish == "length" and one.cached_tokens == 0


@st.composite
def mixtures(draw):
    """Requests of every kind, with how they are drawn."""
    base = MIXED
    count = draw(st.integers(1, 6))
    made = []
    for number in range(count):
        seed = draw(st.integers(0, 3))
        if draw(st.integers(0, 3)) == 0:
            positions = picture(base, draw(st.integers(1, 30)), draw(st.integers(1, 20)), seed)
        else:
            positions = words(base, draw(st.sampled_from([1, 3, 16, 33, 64, 80])), seed)
        temperature = draw(st.sampled_from([0.0, 0.0, 1.0]))
        penalty = draw(st.sampled_from([1.0, 1.3]))
        sampling = Sampling(draw(st.integers(1, 24)), temperature, top_p=draw(st.sampled_from([1.0, 0.9])), repetition_penalty=penalty, seed=number)
        made.append(Request(positions, sampling, tenant=draw(st.sampled_from("ab"))))
    return made


MIXED = base_of(tiny_model(senses=tiny_specs(), random=True))
PAGE_BYTES = 2 * 2 * (8 + 16) * 16 * 4
"""Of MIXED, in float32."""
ALONE: dict[tuple, list[int]] = {}


def said_alone(request):
    key = (request.positions.tokens.tobytes(), request.sampling.seed, str(request.sampling), b"".join(u.tobytes() for u in request.positions.units.values()))
    if key not in ALONE:
        engine = Engine(MIXED, replace(USUAL, drafts=0, share_beginnings=False, step_positions=300))
        ALONE[key] = ask(engine, request).wait().tokens
        engine.close()
    return ALONE[key]


@settings(max_examples=40)
@given(mixtures(), st.data())
def test_nothing_else_changes_an_answer(requests, data):
    """Company, budget, pages (and so who is put back), guesses, kept beginnings, order."""
    setting = EngineSettings(
        precision="float32",
        threads=1,
        context=160,
        cache_bytes=PAGE_BYTES * data.draw(st.sampled_from([10, 12, 20, 100]), label="pages"),
        step_positions=data.draw(st.sampled_from([1, 7, 64, 256]), label="positions"),
        most_running=data.draw(st.sampled_from([1, 3, 8]), label="running"),
        share_beginnings=data.draw(st.booleans(), label="share"),
        drafts=data.draw(st.sampled_from([0, 1, 8]), label="drafts"),
    )
    engine = Engine(MIXED, setting)
    twice = [*requests, *requests] if data.draw(st.booleans(), label="twice") else requests
    heard = [ask(engine, request) for request in twice]
    for request, one in zip(twice, heard):
        assert one.wait().error is None and one.tokens == said_alone(request)
    settle(engine)
    engine.close()


def test_being_put_back_changes_no_draw(base):
    requests = [Request(words(base, 40, n), Sampling(max_tokens=60, temperature=1.0, seed=n)) for n in range(4)]
    plenty, scarce = Engine(base, USUAL), Engine(base, replace(USUAL, cache_bytes=PAGE_BYTES * 14))
    said = [[heard.wait().tokens for heard in [ask(engine, request) for request in requests]] for engine in (plenty, scarce)]
    assert said[0] == said[1] and scarce.load().counters["preemptions"] > 0 == plenty.load().counters["preemptions"]
    for engine in (plenty, scarce):
        settle(engine)
        engine.close()


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_picture_is_seen_as_an_answer_alone_sees_it(tmp_path, backend):
    base = Base.load(tiny_base(tmp_path, tiny_specs()))
    ends = frozenset(base.template.ends())
    engine = Engine(base, replace(USUAL, backend=backend, step_positions=20, device="cpu"))
    asked = [picture(base, 1 + 7 * n, 5, n) for n in range(4)]
    heard = [ask(engine, Request(one, Sampling(max_tokens=16), ends=ends)) for one in (*asked, *asked)]
    for positions, one in zip((*asked, *asked), heard):
        assert base.decode(np.array(one.wait().tokens, np.int64)) == answer(base, positions, ends, 16)
    again = [ask(engine, Request(one, Sampling(max_tokens=16), ends=ends)).wait() for one in asked]
    assert [one.tokens for one in again] == [one.tokens for one in heard[:4]] and all(one.cached_tokens >= 48 for one in again)
    engine.close()


def test_a_page_is_not_shared_where_its_picture_differs_behind_it(tmp_path):
    """The first patches see the last ones, which stand pages later."""
    base = Base.load(tiny_base(tmp_path, tiny_specs()))
    engine = Engine(base, USUAL)
    for last_row, cached in ((0, 0), (255, 0), (0, 48), (255, 48)):
        asked = picture(base, last_row=last_row)
        heard = ask(engine, Request(asked, Sampling(max_tokens=8))).wait()
        assert heard.cached_tokens == cached
        assert base.decode(np.array(heard.tokens, np.int64)) == answer(base, asked, (), 8)
    long = [picture(base, before=20, last_row=last_row) for last_row in (0, 255)]
    assert [ask(engine, Request(one, Sampling(max_tokens=1))).wait().cached_tokens for one in long] == [0, 16], "the words before it are shared"
    engine.close()


def test_states_are_the_models(base, engine):
    asked = [words(base, 30), picture(base), words(base, 64, 3)]
    for layers in (0, 1, 2):
        heard = [ask(engine, Request(one, layers=layers)) for one in asked]
        other = ask(engine, Request(words(base, 20), Sampling(max_tokens=5)))
        for positions, one in zip(asked, heard):
            with torch.inference_mode():
                expected = base.model.hidden(to_torch(collate([positions], base.pad_id), torch.device("cpu")), layers or None)[0]
            np.testing.assert_allclose(one.wait().states, expected.numpy(), rtol=1e-4, atol=1e-4)
            assert one.ends == 1 and not one.drawn
        other.wait()
    mixed = [ask(engine, Request(asked[0], layers=n % 3)) for n in range(6)]  # of several depths side by side
    for number in range(6):
        assert np.array_equal(mixed[number].wait().states, mixed[number % 3].wait().states)


def test_the_prompts_logarithms_are_the_teachers(base, engine):
    positions = words(base, 150, 2)
    for most_tokens in (0, 3):
        heard = ask(engine, Request(positions, Sampling(max_tokens=most_tokens), prompt_logprobs=2)).wait()
        with torch.inference_mode():
            expected = base.model.forward_tokens(torch.from_numpy(positions.tokens[None].astype(np.int64)))[0].log_softmax(-1).numpy()
        assert np.isnan(heard.prompt[0].logprob) and [one.token for one in heard.prompt] == positions.tokens.tolist()
        for place, one in enumerate(heard.prompt[1:]):
            assert one.logprob == pytest.approx(expected[place, one.token], abs=1e-4)
            assert {token for token, _ in one.top} == set(np.argsort(-expected[place])[:2].tolist())
        assert len(heard.tokens) == most_tokens and heard.finish == "length"
    with_picture = ask(engine, Request(picture(base), Sampling(max_tokens=0), prompt_logprobs=0)).wait()
    assert sum(np.isnan(one.logprob) for one in with_picture.prompt) == 1 + 49


def test_answers_end_where_they_should(base, engine):
    positions = words(base, 20)
    whole = greedily(base, positions, 8)
    end = frozenset(whole[4:5])
    first = whole.index(whole[4])
    stopped = ask(engine, Request(positions, Sampling(max_tokens=8), ends=end)).wait()
    assert stopped.tokens == whole[:first] and stopped.finish == "stop"
    on = ask(engine, Request(positions, Sampling(max_tokens=8, ignore_end=True), ends=end)).wait()
    assert len(on.tokens) == 8 and on.finish == "length" and not set(on.tokens) & end
    nothing = ask(engine, Request(positions, Sampling(max_tokens=0))).wait()
    assert nothing.tokens == [] and nothing.finish == "length" and nothing.ends == 1
    enough = ask(engine, Request(positions, Sampling(max_tokens=100)), enough=3).wait()
    assert enough.tokens[:3] == whole[:3] and enough.finish is None


def test_what_cannot_be_asked_is_refused_at_once(base, engine):
    room = USUAL.context
    ask(engine, Request(words(base, room - 4), Sampling(max_tokens=4))).wait()
    for request, says in (
        (Request(words(base, room - 4), Sampling(max_tokens=5)), "at most 4 tokens"),
        (Request(words(base, 1), Sampling(max_tokens=10**9)), f"at most {room - 1}"),
        (Request(words(base, 5), adapter="nobody"), ""),
        (Request(compose([said([1, 320], False)], base.model.config)), "0 to 319"),
        (Request(compose([said([1, -1], False)], base.model.config)), "0 to 319"),
        (Request(words(base, 5), layers=3), "has 2"),
        (Request(words(base, 5), layers=-1), "has 2"),
        (Request(words(base, 0)), "one position"),
    ):
        with pytest.raises(ConfigError) as caught:
            engine.submit(request, Heard())
        assert says in caught.value.hint, caught.value.hint
    few = Engine(base, replace(USUAL, most_running=1, most_waiting=2))
    heard = []
    with pytest.raises(ResourceError, match="wait already"):
        for _ in range(40):
            heard.append(ask(few, Request(words(base, 100), Sampling(max_tokens=80))))
    few.close()
    assert all(one.wait().ends == 1 for one in heard)


def test_a_cancelled_request_ends_and_so_does_one_whose_time_is_over(base, engine):
    rng = np.random.default_rng(0)
    for number in range(60):
        request = Request(words(base, int(rng.integers(1, 120)), number), Sampling(max_tokens=int(rng.integers(1, 70))))
        if number % 3 == 0:
            request = replace(request, deadline=time.monotonic() + float(rng.uniform(-0.01, 0.02)))
        heard = Heard()
        handle = engine.submit(request, heard)
        if number % 3 == 1:
            time.sleep(float(rng.uniform(0, 0.004)))
            handle.cancel()
            handle.cancel()
        heard.wait()
        assert heard.finish in ("cancelled", "deadline", "length") and heard.ends == 1
        assert heard.finish == "length" or number % 3 == (0 if heard.finish == "deadline" else 1)
        handle.cancel()
    late = ask(engine, Request(words(base, 5), deadline=time.monotonic() - 1)).wait()
    assert late.finish == "deadline" and not late.drawn


class Throwing(Heard):
    """A listener that fails where it is told to."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "__dict__").get("where"):
            raise RuntimeError("a listener's own trouble")
        return super().__getattribute__(name)


@pytest.mark.parametrize("where", ["began", "read", "heard", "state", "failed"])
def test_a_listener_that_throws_harms_nobody(base, engine, where):
    positions = words(base, 20)
    expected = greedily(base, positions, 30)
    others = [ask(engine, Request(positions, Sampling(max_tokens=30))) for _ in range(2)]
    engine.submit(Request(words(base, 30), Sampling(max_tokens=3), prompt_logprobs=0), Throwing(where))
    engine.submit(Request(words(base, 30), layers=0), Throwing(where))
    engine.submit(Request(words(base, 30), Sampling(max_tokens=3), constraint=Broken("allow")), Throwing(where))
    assert [one.wait().tokens for one in others] == [expected, expected]


class Broken:
    """A constraint that fails in one of its duties."""

    ended = False

    def __init__(self, where):
        self.where = where

    def allow(self, words):
        if self.where == "allow":
            raise RuntimeError("a constraint's own trouble")
        return False

    def advance(self, token):
        if self.where == "advance":
            raise RuntimeError("a constraint's own trouble")

    def kept(self, draft):
        return 0


@pytest.mark.parametrize("where", ["allow", "advance"])
def test_a_constraint_that_throws_ends_its_own_request(base, engine, where):
    positions = words(base, 20)
    others = [ask(engine, Request(positions, Sampling(max_tokens=20))) for _ in range(3)]
    heard = ask(engine, Request(positions, constraint=Broken(where))).wait()
    assert "constraint's own trouble" in str(heard.error) and heard.ends == 1
    assert [one.wait().tokens for one in others] == [greedily(base, positions, 20)] * 3


def test_a_failing_step_fails_its_requests_and_the_engine_lives(base, engine, monkeypatch):
    positions, run = words(base, 20), engine.runner.run

    def fail(step):
        monkeypatch.setattr(engine.runner, "run", run)
        raise MemoryError("no room")

    monkeypatch.setattr(engine.runner, "run", fail)
    lost = ask(engine, Request(positions)).wait()
    assert "no room" in str(lost.error) and lost.finish is None and lost.ends == 1
    assert ask(engine, Request(positions, Sampling(max_tokens=5))).wait().tokens == greedily(base, positions, 5)


def test_a_request_that_cannot_be_planned_ends_and_no_other(base, engine, monkeypatch):
    positions, known_keys, may_stop_at = words(base, 20), Running.known_keys, Running.may_stop_at
    for broken, name in ((known_keys, "known_keys"), (may_stop_at, "may_stop_at")):

        def fail(running, *arguments, broken=broken):
            if running.request.tenant == "odd":
                raise IndexError("out of its own range")
            return broken(running, *arguments)

        monkeypatch.setattr(Running, name, fail)
        others = [ask(engine, Request(positions, Sampling(max_tokens=30))) for _ in range(3)]
        lost = ask(engine, Request(words(base, 300), Sampling(max_tokens=30), tenant="odd")).wait()
        others += [ask(engine, Request(positions, Sampling(max_tokens=30)))]
        assert "own range" in str(lost.error) and lost.ends == 1
        assert [one.wait().tokens for one in others] == [greedily(base, positions, 30)] * 4


def test_a_plan_that_fails_through_nobody_ends_all_and_the_engine_begins_anew(base, engine, monkeypatch):
    def fail(scheduler):
        monkeypatch.undo()
        raise KeyError("a flaw of the scheduler's own")

    monkeypatch.setattr(Scheduler, "plan", fail)
    lost = [ask(engine, Request(words(base, 20, n))) for n in range(5)]
    assert "scheduler's own" in str(lost[0].wait().error)
    assert all(one.wait().ends == 1 and (one.error is not None or one.finish == "length") for one in lost)
    positions = words(base, 20)
    assert ask(engine, Request(positions, Sampling(max_tokens=5))).wait().tokens == greedily(base, positions, 5)


@pytest.mark.parametrize("where", ["add", "remove"])
def test_an_engine_that_cannot_go_on_tells_everybody(base, monkeypatch, where):
    engine = Engine(base, USUAL)

    def fail(*arguments):
        raise SystemError("beyond repair")

    monkeypatch.setattr(Scheduler, where, fail)
    heard = []
    with contextlib.suppress(StateError):  # the first may have brought it down already
        for n in range(3):
            heard.append(ask(engine, Request(words(base, 20, n), Sampling(max_tokens=3))))
    assert heard and all("beyond repair" in str(one.wait(10).error) and one.ends == 1 for one in heard)
    with pytest.raises(StateError):
        engine.submit(Request(words(base, 5)), Heard())
    engine.close()


def test_who_has_ended_is_not_told_again_when_the_step_fails_behind_it(base, engine, monkeypatch):
    class Failing(list):
        def append(self, item):
            monkeypatch.undo()
            raise MemoryError("no room")

    monkeypatch.setattr(engine, "_rate", Failing())
    heard = ask(engine, Request(words(base, 20), Sampling(max_tokens=1))).wait()
    ask(engine, Request(words(base, 5), Sampling(max_tokens=1))).wait()
    assert heard.ends == 1 and heard.error is None and heard.finish == "length"


def test_closed_while_busy_everybody_hears_of_it_once(base):
    engine = Engine(base, USUAL)
    heard = [ask(engine, Request(words(base, 60, n), Sampling(max_tokens=100))) for n in range(20)]
    engine.close()
    assert all(one.wait().ends == 1 for one in heard) and {one.finish for one in heard} <= {"cancelled", "length"} and heard[-1].finish == "cancelled"
    with pytest.raises(StateError):
        engine.submit(Request(words(base, 5)), Heard())
    engine.close()


def test_nothing_is_lost_between_asking_and_closing(base):
    """Whoever was let in hears an end, whoever was not is told so."""
    for _ in range(15):
        engine, heard = Engine(base, USUAL), []

        def keep_asking(engine=engine, heard=heard):
            try:
                while True:
                    heard.append(ask(engine, Request(words(base, 3), Sampling(max_tokens=1))))
            except (StateError, ResourceError):
                return

        threads = [threading.Thread(target=keep_asking) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.003)
        engine.close()
        for thread in threads:
            thread.join()
        assert all(one.wait(5).ends == 1 for one in heard)


def test_many_threads_ask_at_once(base, engine):
    expected = {n: greedily(base, words(base, 10 + n, n), 6) for n in range(8)}
    wrong = []

    def one(n):
        for _ in range(5):
            if ask(engine, Request(words(base, 10 + n, n), Sampling(max_tokens=6), tenant=str(n % 3))).wait().tokens != expected[n]:
                wrong.append(n)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and engine.load().counters["completion_tokens"] == 8 * 5 * 6


def test_a_beginning_serves_its_own_tenant_and_policy_only(base, engine):
    positions = words(base, 100)

    def cached(**whose):
        return ask(engine, Request(positions, Sampling(max_tokens=1), **whose)).wait().cached_tokens

    assert cached(tenant="a") == 0 and cached(tenant="a") == 96
    assert cached(tenant="b") == 0 and cached(tenant="a", policy="p") == 0 and cached() == 0
    assert cached(tenant="b") == 96 and cached(tenant="a", policy="p") == 96
    assert engine.load().counters["cached_tokens"] == 3 * 96


def test_many_guesses_beside_many_that_begin_fit_the_workplaces(base):
    """One request alone guesses far ahead; then as many begin at once as may run."""
    engine = Engine(base, replace(USUAL, most_running=64, context=64, cache_bytes=2**24, drafts=12))
    reached, go = threading.Event(), threading.Event()

    class Waiting(Heard):
        def heard(self, drawn, finish):
            enough = super().heard(drawn, finish)
            if len(self.drawn) >= 8:
                reached.set()
                go.wait(20)  # all the others arrive before the next step
            return enough

    alone, most = Waiting(), []
    logits = engine.runner.logits
    engine.runner.logits = lambda states: most.append(len(states)) or logits(states)
    engine.submit(Request(compose([said([20] * 16, False)], base.model.config), Sampling(max_tokens=40, logit_bias={20: 100})), alone)
    reached.wait(20)
    many = [ask(engine, Request(words(base, 2, n), Sampling(max_tokens=3))) for n in range(63)]
    go.set()
    assert all(one.wait().error is None for one in (alone, *many)) and max(most) > 64
    settle(engine)
    engine.close()


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_every_precision_says_the_same_whoever_else_is_there(precision):
    base = base_of(family_model("qwen3", seed=2))
    engine = Engine(base, replace(USUAL, precision=precision))
    alone = [ask(engine, Request(words(base, 30, n), Sampling(max_tokens=20), tenant="alone")).wait().tokens for n in range(6)]
    together = [ask(engine, Request(words(base, 30, n), Sampling(max_tokens=20))) for n in range(6)]
    assert [one.wait().tokens for one in together] == alone
    assert engine.runner.name == f"cpu {precision}"
    engine.close()


@pytest.mark.parametrize("wrong", [{"threads": -1}, {"step_positions": 0}, {"most_running": 0}, {"drafts": -1}, {"context": 10**6}])
def test_impossible_settings_are_refused(base, wrong):
    with pytest.raises(ConfigError):
        Engine(base, EngineSettings(**wrong))


def test_memory_for_less_than_two_pages_is_refused_with_what_would_do(base):
    with pytest.raises(ResourceError) as caught:
        Engine(base, EngineSettings(cache_bytes=1000, precision="float32"))
    assert f"{2 * PAGE_BYTES:,}" in caught.value.hint
