"""Units through the engine: as the slow way makes them, the same in any company, with as few pages as there are; and they end when they should."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError
from bedplate.core.generation import Sampling
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.maker import ROWS
from bedplate.infer.request import Request
from bedplate.infer.units import Clip, Future, Picture, Sound, planned
from bedplate.model.adapters import AdapterShape, attach, detach, trained
from bedplate.model.formats import peft
from bedplate.testing import slow_units
from bedplate.testing.bases import base_of
from bedplate.testing.corpora import tiny_specs
from bedplate.testing.heard import Heard
from bedplate.testing.models import tiny_model
from bedplate.testing.requests import words

BASE = base_of(tiny_model(senses=tiny_specs(), random=True))
USUAL = EngineSettings(precision="float32", threads=1, context=128, cache_bytes=2**22, most_running=8)
PAGE_BYTES = 2 * 2 * (8 + 16) * 16 * 4
"""Of BASE, in float32."""
WHOLE = np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)
PAST = 1e4 + 10 * np.sin(np.arange(90) / 4)
THINGS = [
    Picture("a disc", (12, 12), steps=3),
    Picture("a disc", (12, 12), guidance=1.0, steps=3),
    Picture("", (8, 16), steps=3),
    Picture("the boat", known=WHOLE[:16, :16], steps=2),
    Clip("x", frames=4, steps=2),
    Sound("high", 0.4, steps=3),
    Future(PAST, 40, "load", 3),
]


def units(model, wanted):
    return list(slow_units.units(model, wanted))


def request(thing, seed=0, **changes):
    return replace(planned(BASE, thing, USUAL.context).request(seed), **changes)


def ask(engine, wanted, **kept):
    heard = Heard(**kept)
    heard.handle = engine.submit(wanted, heard)
    return heard


def settle(engine):
    """Nothing is left of requests that have ended."""
    deadline = time.monotonic() + 30
    while engine.load().running or engine.load().waiting:
        assert time.monotonic() < deadline, "something never ends"
        time.sleep(0.002)
    engine._scheduler.pages.check()
    assert engine._scheduler.pages.held == 0, "a page leaked"


@pytest.fixture(params=["cpu", "torch"])
def engine(request):
    opened = Engine(BASE, replace(USUAL, backend=request.param, device="cpu"))
    yield opened
    settle(opened)
    opened.close()


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: type(thing).__name__)
def test_it_makes_what_the_slow_way_makes(engine, thing):
    """Errors of rounding grow from unit to unit, as each is what the next is made of; values of a random network reach 20."""
    wanted = request(thing, seed=3)
    heard, slow = ask(engine, wanted).wait(), units(BASE.model, wanted)
    assert heard.error is None and len(heard.units) == len(slow)
    np.testing.assert_allclose(heard.units[0], slow[0], rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(np.stack(heard.units), np.stack(slow), rtol=0, atol=2e-3)


def test_equal_seeds_make_equal_things_and_others_others(engine):
    first, second, other = (np.stack(ask(engine, request(THINGS[0], seed)).wait().units) for seed in (1, 1, 2))
    assert np.array_equal(first, second) and np.abs(first - other).max() > 0.1
    plain = np.stack(ask(engine, request(THINGS[1], 1)).wait().units)
    assert np.abs(plain - first).max() > 1e-3, "guidance changes it"


ALONE: dict[tuple[int, int], np.ndarray] = {}


def made_alone(number, seed):
    if (number, seed) not in ALONE:
        engine = Engine(BASE, replace(USUAL, share_beginnings=False, step_positions=300))
        ALONE[number, seed] = np.stack(ask(engine, request(THINGS[number], seed)).wait().units)
        engine.close()
    return ALONE[number, seed]


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, len(THINGS)), st.integers(0, 1)), min_size=1, max_size=7), st.data())
def test_nothing_else_changes_what_is_made(asked, data):
    """Company (text among it), budget, pages (and so who is put back), kept beginnings: to the bit."""
    setting = replace(
        USUAL,
        cache_bytes=PAGE_BYTES * data.draw(st.sampled_from([8, 9, 12, 100]), label="pages"),
        step_positions=data.draw(st.sampled_from([1, 7, 64]), label="positions"),
        most_running=data.draw(st.sampled_from([1, 3, 16]), label="running"),
        share_beginnings=data.draw(st.booleans(), label="share"),
    )
    engine = Engine(BASE, setting)
    heard = []
    for number, seed in asked:
        tenant = data.draw(st.sampled_from("ab"))
        if number == len(THINGS):
            heard.append(ask(engine, Request(words(BASE, 20, seed), Sampling(12), tenant=tenant)))
        else:
            heard.append(ask(engine, request(THINGS[number], seed, tenant=tenant)))
    for (number, seed), one in zip(asked, heard):
        assert one.wait().error is None
        if number == len(THINGS):
            assert len(one.tokens) == 12
        else:
            assert np.array_equal(np.stack(one.units), made_alone(number, seed))
    settle(engine)
    engine.close()


def test_text_is_the_same_beside_units():
    engine = Engine(BASE, USUAL)
    alone = ask(engine, Request(words(BASE, 30), Sampling(40))).wait().tokens
    company = [ask(engine, request(THINGS[n % 7], n)) for n in range(6)]
    assert ask(engine, Request(words(BASE, 30), Sampling(40))).wait().tokens == alone
    assert all(one.wait().error is None for one in company)
    settle(engine)
    engine.close()


def test_units_are_in_the_key_of_a_page():
    """Two series with equal tokens and places, but other numbers, must not read each other's pages; nor may a picture go on from another seed's."""
    engine = Engine(BASE, USUAL)
    long = np.sin(np.arange(40 * 16) / 7)
    futures = [Future(past, 32, "quiet river boats 77", 2) for past in (long, long * np.linspace(1, 2, len(long)))]
    assert len(begun := request(futures[0]).positions.tokens) > 17 > (begun != BASE.pad_id).sum(), "the first page holds words and units"
    first, second, again = (ask(engine, request(one, 5)).wait() for one in (*futures, futures[0]))
    assert second.cached_tokens == 0 and again.cached_tokens == 16
    assert np.array_equal(np.stack(first.units), np.stack(again.units))
    for one, heard in zip(futures, (first, second)):
        np.testing.assert_allclose(np.stack(heard.units), np.stack(units(BASE.model, request(one, 5))), atol=1e-4)
    one, two = (request(THINGS[0], seed, tenant="t") for seed in (1, 2))
    begun = [ask(engine, wanted) for wanted in (one, two, one)]
    assert np.array_equal(*(np.stack(begun[n].wait().units) for n in (0, 2)))
    assert np.abs(np.stack(begun[1].wait().units) - np.stack(begun[0].units)).max() > 0.1
    settle(engine)
    engine.close()


def test_pictures_with_guidance_are_put_back_together():
    """Room for one pair and a half: whoever came last waits, both halves of it, and all end."""
    wanted = [request(Picture("a disc", (28, 28), steps=1), seed) for seed in range(4)]
    engine = Engine(BASE, replace(USUAL, cache_bytes=PAGE_BYTES * 12))
    heard = [ask(engine, one) for one in wanted]
    assert all(len(one.wait().units) == 49 for one in heard)
    assert engine.load().counters["preemptions"] > 0
    settle(engine)
    engine.close()


def test_more_than_one_block_of_rows(engine):
    heard = [ask(engine, request(THINGS[1], seed)) for seed in range(ROWS["cpu"] + 3)]
    for seed, one in enumerate(heard[:: ROWS["cpu"] + 2]):
        np.testing.assert_allclose(np.stack(one.wait().units), np.stack(units(BASE.model, request(THINGS[1], seed * (ROWS["cpu"] + 2)))), atol=2e-3)


def test_sounds_end_where_the_model_ends_them():
    end = BASE.model.unit_heads["audio"].end
    with torch.no_grad():
        kept = end.weight.clone(), end.bias.clone()
        end.weight.zero_()
        engine = Engine(BASE, USUAL)
        try:
            for bias, count, finish in ((-5.0, 10, "length"), (5.0, 3, "stop")):
                end.bias.fill_(bias)
                heard = ask(engine, request(THINGS[5])).wait()
                assert (len(heard.units), heard.finish) == (count, finish)
        finally:
            end.weight.copy_(kept[0])
            end.bias.copy_(kept[1])
            engine.close()


def test_a_cancelled_picture_ends_both_of_its_sequences(engine):
    begun = threading.Event()
    heard = Heard()
    heard.unit = lambda unit: begun.set()
    handle = engine.submit(request(Picture("a disc", (28, 28), steps=20)), heard)
    waiting = [ask(engine, request(THINGS[0], seed)) for seed in range(12)]
    assert begun.wait(30)
    handle.cancel()
    waiting[-1].handle.cancel()
    assert heard.wait().finish == "cancelled" and waiting[-1].wait().finish == "cancelled"
    assert all(one.wait().finish == "length" for one in waiting[:-1])


def test_every_adapter_makes_its_own_beside_the_others(tmp_path):
    base = base_of(tiny_model(senses=tiny_specs(), random=True, seed=4))
    model, shape = base.model, AdapterShape(4, 8.0)
    for number, name in enumerate(("one", "two")):
        attach(model, shape, number)
        with torch.no_grad():
            for weight in trained(model).values():
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
        (tmp_path / name).mkdir()
        peft.write(tmp_path / name, model, shape, "base")
        detach(model)
    model.requires_grad_(False)
    engine = Engine(base, replace(USUAL, backend="torch", device="cpu"))  # which keeps factors as they are
    for name in ("one", "two"):
        engine.register(name, tmp_path / name)
    heard = {name: ask(engine, request(THINGS[0], 1, adapter=name)) for name in ("", "one", "two")}
    units_of = {name: np.stack(one.wait().units) for name, one in heard.items()}
    engine.close()
    for name, made in units_of.items():
        if name:
            peft.put_on(model, peft.read(tmp_path / name, model))
        np.testing.assert_allclose(made, np.stack(units(model, request(THINGS[0], 1))), atol=2e-3)
        detach(model)
    assert np.abs(units_of["one"] - units_of["two"]).max() > 0.01 < np.abs(units_of["one"] - units_of[""]).max()


def test_nobody_waits_behind_a_deadline(engine):
    assert ask(engine, request(THINGS[0], deadline=time.monotonic() - 1)).wait().finish == "deadline"


def test_a_head_that_fails_ends_its_own_requests_only(engine, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such unit")

    text = ask(engine, Request(words(BASE, 20), Sampling(60)))
    monkeypatch.setattr(engine._maker, "make", broken)
    assert "no such unit" in str(ask(engine, request(THINGS[0])).wait().error)
    assert len(text.wait().tokens) == 60


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: request(THINGS[0], layers=1), "one thing"),
        (lambda: replace(request(THINGS[0]), making=replace(request(THINGS[0]).making, steps=0)), "20 steps"),
        (lambda: replace(request(THINGS[0]), making=replace(request(THINGS[0]).making, guidance=float("nan"))), "from 1 to 3"),
        (lambda: replace(request(THINGS[0]), making=replace(request(THINGS[0]).making, grid=np.zeros((500, 3), np.int16))), "units"),
    ],
)
def test_what_cannot_be_made_is_refused(engine, wrong, says):
    with pytest.raises(ConfigError) as caught:
        engine.submit(wrong(), Heard())
    assert says in caught.value.hint


def test_a_pair_that_the_cache_cannot_hold_is_refused():
    engine = Engine(BASE, replace(USUAL, cache_bytes=PAGE_BYTES * 6))
    with pytest.raises(ConfigError, match="8 pages"):
        engine.submit(request(Picture("a disc", (28, 28))), Heard())
    assert len(ask(engine, request(Picture("a disc", (28, 28), guidance=1.0, steps=1))).wait().units) == 49
    engine.close()
