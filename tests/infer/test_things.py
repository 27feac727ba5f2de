"""Things as a generator gives them: files that open, what is known stays, nobody is told twice; and pairs of sequences that a scheduler never parts."""

import io
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bedplate.core.errors import ConfigError, DataError
from bedplate.core.generation import Ask, Form, Make, Sampling, Tool, Turn, stream
from bedplate.infer import forecast
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.maker import Silent, beside
from bedplate.infer.native import Native
from bedplate.infer.pages import Pages, pages_for
from bedplate.infer.request import Making, Request
from bedplate.infer.scheduler import Scheduler
from bedplate.infer.sequence import Running
from bedplate.modality import image
from bedplate.testing.bases import base_of
from bedplate.testing.corpora import tiny_specs
from bedplate.testing.models import tiny_model
from bedplate.testing.requests import words

PAST = b"load\n" + b"".join(b"%d\n" % (1000 + 7 * n % 13) for n in range(40))
BASE = base_of(tiny_model(senses=tiny_specs(), random=True))


@pytest.fixture(scope="module")
def native():
    opened = Native(Engine(BASE, EngineSettings(precision="float32", threads=1, context=256, cache_bytes=2**24, device="cpu")))
    yield opened
    opened.close()


def parts(native, want, prompt="a disc", n=1, seed=1, **make):
    ask = Ask(prompt=prompt, want=want, make=Make(**{"steps": 2, **make}), sampling=Sampling(seed=seed, n=n))
    return [piece.part for piece in stream(native, ask)]


def test_what_is_known_of_a_picture_stays(native):
    whole = np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)
    made = np.asarray(Image.open(io.BytesIO(parts(native, "image", known=image.encode(whole), known_share=4 / 7)[0].data)))
    assert np.array_equal(made[:16], whole[:16, :, 0]) and not np.array_equal(made[16:], whole[16:, :, 0])


def test_a_forecast_is_of_so_many_paths_and_points(native):
    few, many = (forecast.decode(parts(native, "series", "load", points=20, paths=paths, known=PAST)[0].data) for paths in (1, 9))
    assert few.median.shape == (20,) and np.array_equal(few.low, few.high)
    assert (many.low <= many.median).all() and (many.low < many.high).any()


@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False)] * 3), min_size=1, max_size=9))
def test_the_table_of_a_forecast_loses_nothing(rows):
    wanted = forecast.Forecast(*np.array(rows, np.float32).T)
    found = forecast.decode(forecast.encode(wanted))
    assert all(np.array_equal(a, b.astype(np.float32)) for a, b in zip(wanted, found))


def test_guidance_side_frames_and_length_have_their_effect(native):
    assert parts(native, "image") == parts(native, "image", guidance=2.0) != parts(native, "image", guidance=1.0)
    assert Image.open(io.BytesIO(parts(native, "image", side=(8, 12))[0].data)).size == (12, 8)
    assert Image.open(io.BytesIO(parts(native, "video", frames=6)[0].data)).n_frames == 6
    assert parts(native, "image", steps=3) != parts(native, "image")


@pytest.mark.parametrize(
    ("want", "make", "says"),
    [
        ("series", {}, "CSV"),
        ("series", {"known": b"a\nb\n"}, "number"),
        ("series", {"known": PAST + b"nan\n"}, "fill them in"),
        ("image", {"known": b"no picture"}, "damaged"),
        ("image", {"guidance": float("inf")}, "from 1 to 3"),
        ("audio", {"most_s": -1.0}, "3 s"),
        ("audio", {"most_s": float("nan")}, "3 s"),
        ("video", {"frames": 0}, "1 or more"),
        ("series", {"known": PAST, "paths": 0}, "1 or more"),
    ],
)
def test_what_cannot_be_made_is_refused(native, want, make, says):
    with pytest.raises((ConfigError, DataError)) as caught:
        parts(native, want, **make)
    assert says in caught.value.hint, caught.value


def test_things_are_made_from_a_caption_alone():
    for more in ({"prompt": (1, 2)}, {"turns": (Turn.of("user", "x"),)}, {"prompt": "x", "echo": True}, {"prompt": "x", "form": Form(json=True)}, {"prompt": "x", "tools": (Tool("f"),)}):
        with pytest.raises(ConfigError) as caught:
            Ask(want="image", **more)
        assert "prompt" in caught.value.hint


def test_whoever_cannot_take_a_thing_is_told_of_no_other(native):
    told, over = [], threading.Event()

    def take(piece):
        told.append(piece)
        over.set()
        raise RuntimeError("no room")

    native.submit(Ask(prompt="a", want="image", make=Make(steps=1, side=(8, 8)), sampling=Sampling(n=4)), take)
    assert over.wait(30) and len(parts(native, "image", n=2)) == 2
    assert len(told) == 1


# Pairs.


def pair(asked, wanted, guided, number):
    positions = words(BASE, asked, number)
    making = Making("image", np.zeros((wanted, 3), np.int16), guidance=2.0, without=words(BASE, 2, number) if guided else None)
    lead = Running(Request(positions, making=making, tenant="ab"[number % 2]), Silent(), None, None, False)
    if (without := beside(lead.request)) is not None:
        lead.beside = Running(without, Silent(), None, None, False)
        lead.beside.lead = lead
    for one in lead.together:
        one.number = number
    return lead


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20), st.booleans()), min_size=1, max_size=8),
    st.integers(8, 20),
    st.integers(1, 40),
    st.integers(1, 5),
    st.booleans(),
)
def test_pairs_begin_wait_and_are_put_back_together_and_all_end(asked, count, positions, most_running, share):
    pages = Pages(count)
    scheduler = Scheduler(pages, positions=positions, most_running=most_running, share_beginnings=share)
    leads = [pair(*one, number) for number, one in enumerate(asked, 1)]
    assert all(sum(pages_for(one.most) for one in lead.together) <= count for lead in leads)
    for lead in leads:
        scheduler.add(lead)
    left = len(leads)
    for _ in range(20_000):
        if not left:
            break
        portions = scheduler.plan()
        assert portions, "nobody can go on"
        pages.check()
        running = scheduler.running
        assert all(one.lead in running and (one.beside is None or one.beside in running) for one in running), "a pair was parted"
        for one, start, end in portions:
            assert start == one.computed < end <= one.length and pages_for(end) <= len(one.pages)
            one.computed = end
            one.name_pages(pages.name)
        for lead in {id(one.lead): one.lead for one, _, _ in portions}.values():
            if any(part.computed < part.length for part in lead.together):
                continue
            for part in lead.together:
                part.append(lead.said % 7)
            assert len({part.said for part in lead.together}) == 1
            if lead.length == lead.most:
                scheduler.remove(lead)
                left -= 1
    assert not left and pages.held == 0 and not scheduler.running and not scheduler.waiting
