"""What the native generator makes of questions: classifying and embedding workers as `Worker` has them, pictures, raw prompts, echoes, what is refused."""

import io
import math
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from workers import PREDICTING, TEXTS, made

from bedplate.adapt.base import Base
from bedplate.adapt.examples import Row
from bedplate.adapt.loop import restore
from bedplate.core.errors import BedplateError, ConfigError, DataError
from bedplate.core.generation import Ask, Form, Part, Sampling, Tool, Turn, stream, whole
from bedplate.infer import grammar
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.native import Native
from bedplate.infer.reading import read
from bedplate.infer.worker import Worker
from bedplate.testing.bases import tiny_base
from bedplate.testing.corpora import WORDS, tiny_specs
from bedplate.testing.slow_answer import answer
from bedplate.testing.slow_engine import SlowEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    tiny_base(folder, tiny_specs())
    for task in PREDICTING:
        made(folder, task)
    made(folder, "generate", [{"prompt": text, "completion": "lamps"} for text in TEXTS], template="raw")
    return folder


@pytest.fixture(scope="module", params=["engine", "slow engine"])
def native(request, folder):
    base = Base.load(folder / "base")
    if request.param == "engine":
        engine = Engine(base, EngineSettings(precision="float32", threads=1, cache_bytes=2**26))
    else:
        engine = SlowEngine(base, folder=folder / "base")
    native = Native(engine)
    for task in (*PREDICTING, "generate"):
        assert native.register(task, folder / task).task == task
    yield native
    native.close()


def last(native, ask):
    return list(stream(native, ask))[-1]


def picture(side=16):
    handle = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)).save(handle, "PNG")
    return handle.getvalue()


def test_what_forms_need_is_made_when_a_generator_opens_and_once(folder, monkeypatch):
    made, asked, begun = [], threading.Event(), threading.Event()

    class Watched(grammar.Grammars):
        def __init__(self, *arguments):
            made.append(asked.is_set())
            begun.set()
            super().__init__(*arguments)

    monkeypatch.setattr(grammar, "Grammars", Watched)
    native = Native(Engine(Base.load(folder / "base"), EngineSettings(precision="float32", threads=1, cache_bytes=2**24)))
    assert begun.wait(20), "nobody has asked yet"
    asked.set()
    ask = Ask(prompt=TEXTS[0], form=Form(choice=("yes", "no")), sampling=Sampling(max_tokens=8))
    assert {whole(native, ask)[0] for _ in range(3)} <= {"yes", "no"} and made == [False]
    native.close()


@pytest.mark.parametrize("task", PREDICTING)
def test_a_worker_predicts_what_its_task_does(native, folder, task):
    """What the network itself, adapted in place, says of the same examples."""
    base = Base.load(folder / "base")
    own = restore(base, folder / task)
    for text in TEXTS:
        turns = tuple(Turn.of("user", one) for one in ((text, *TEXTS[:3]) if task == "rank" else (text,)))
        row = {"query": text, "texts": TEXTS[:3]} if task == "rank" else {"text": text}
        item = own.encode(Row(1, row, lambda name: b""), learn=False)
        with torch.no_grad():
            wanted = own.predict(item, torch.cat([own.regard(one, own.model.hidden(own.batch([one]), own.layers)[0]) for one in item.sequences]))
        asks = [Ask(task, turns=turns, want="prediction")]
        asks += [] if task == "rank" else [Ask(task, prompt=text, want="prediction")]
        for ask in asks:
            assert native.count(ask) == item.positions
            found = last(native, ask).prediction
            assert type(found) is type(wanted) and near(found, wanted)


def near(one, other):
    if isinstance(one, float):
        return one == pytest.approx(other, abs=2e-5)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[name], other[name]) for name in one)
    return len(one) == len(other) and all(map(near, one, other)) if isinstance(one, tuple) else one == other


def test_a_long_text_is_read_in_windows_and_its_words_see_what_follows(folder):
    """Longer than a step and, cut between words, than what a worker reads at once."""
    base = Base.load(folder / "base")
    native = Native(Engine(base, EngineSettings(precision="float32", threads=1, cache_bytes=2**26, step_positions=16)))
    native.register("extract", folder / "extract")
    task = native._engine.adapters["extract"].task
    assert task.both_ways
    text = " ".join(WORDS) * 90
    item = task.cut(text)
    assert len(item.sequences) > 1 and max(map(len, item.sequences)) > 16 + 64
    with torch.no_grad():
        own = restore(Base.load(folder / "base"), folder / "extract")
        wanted = own.predict(item, torch.cat([own.regard(one, own.model.hidden(own.batch([one]), own.layers)[0]) for one in item.sequences]))
    ask = Ask("extract", prompt=text, want="prediction")
    assert near(last(native, ask).prediction, wanted) and native.count(ask) == item.positions > base.model.config.max_position_embeddings
    assert last(native, Ask(prompt="the river", sampling=Sampling(max_tokens=3))).finish is not None, "others are answered as before"
    native.close()


def test_a_query_with_a_picture_is_ranked(native):
    texts = [Turn.of("user", text) for text in TEXTS[:2]]
    seen = last(native, Ask("rank", turns=(Turn("user", (Part("text", "which"), Part("image", data=picture()))), *texts), want="prediction")).prediction
    plain = last(native, Ask("rank", turns=(Turn.of("user", "which"), *texts), want="prediction")).prediction
    assert len(seen.scores) == 2 and seen.scores != plain.scores
    for turns in (texts[:1], [texts[0], Turn("user", (Part("image", data=picture()),))], [texts[0], Turn.of("user", " ")]):
        with pytest.raises((ConfigError, DataError)) as caught:
            native.submit(Ask("rank", turns=tuple(turns), want="prediction"), print)
        assert caught.value.hint


def test_a_worker_that_learned_raw_prompts_is_asked_so(native, folder):
    worker = Worker.load(folder / "base", folder / "generate")
    for text in TEXTS[:3]:
        wanted = worker.generate([text], max_tokens=8)
        sampling = Sampling(max_tokens=8)
        assert whole(native, Ask("generate", prompt=text, sampling=sampling)) == wanted
        assert whole(native, Ask("generate", turns=(Turn.of("user", text),), sampling=sampling)) == wanted


def test_pictures_sounds_and_numbers_are_seen(native, folder):
    base = Base.load(folder / "base")
    turns = (Turn("user", (Part("text", "what is it"), Part("image", data=picture()))),)
    ask = Ask(turns=turns, sampling=Sampling(max_tokens=8))
    question = read(base, None, ask).sequences[0]
    assert "image" in question.units and native.count(ask) == len(question)
    assert whole(native, ask) == [answer(base, question, base.template.ends(), 8)]
    seen = last(native, Ask(turns=turns, want="vector")).prediction
    assert seen != last(native, Ask(turns=(Turn.of("user", "what is it"),), want="vector")).prediction
    numbers = Ask(turns=(Turn("user", (Part("series", data=b"load\n1\n2\n3.5\n"), Part("text", "and then?"))),), sampling=Sampling(max_tokens=2))
    assert whole(native, numbers) is not None and "series" in read(base, None, numbers).sequences[0].units


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        (Part("image", data=b"no picture"), DataError), (Part("image"), DataError), (Part("series", data=b"a\nb\n"), DataError), (Part("series", data=b"\xff"), DataError),
        (Part("audio", data=b"RIFF"), DataError), (Part("series", data=b""), DataError),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(native, part, kind):
    with pytest.raises(kind) as caught:
        native.submit(Ask(turns=(Turn("user", (part,)),)), print)
    assert caught.value.hint


def test_a_sense_that_was_never_learned_is_refused(tmp_path):
    native = Native(SlowEngine(Base.load(tiny_base(tmp_path))))
    with pytest.raises(ConfigError, match="never learned"):
        native.submit(Ask(turns=(Turn("user", (Part("image", data=picture()),)),)), print)
    native.close()


@pytest.mark.parametrize(
    "ask",
    [
        Ask("classify", prompt="a"), Ask("classify", prompt="a", want="vector"), Ask(prompt="a", want="prediction"), Ask("rank", prompt="a", want="prediction"), Ask("generate", prompt="a", want="prediction"), Ask("clasify", prompt="a"),
        Ask(prompt="a", sampling=Sampling(n=10_000)), Ask(prompt="a", sampling=Sampling(logit_bias={-1: 1.0})), Ask(prompt=(10**6,)), Ask(prompt=(-1,), want="vector"),
        Ask(prompt="a", sampling=Sampling(max_tokens=10**6)), Ask(prompt="a", form=Form(regex="(")), Ask(prompt="a", tool_choice="required"),
        Ask(prompt="a", tools=(Tool("time"),), tool_choice="tme"), Ask(prompt=" ", want="vector"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_at_once(native, ask):
    with pytest.raises(BedplateError) as caught:
        native.submit(ask, print)
    assert caught.value.hint


def test_an_unregistered_worker_is_gone(native, folder):
    native.register("again", folder / "classify")
    assert "again" in [card.name for card in native.workers()]
    native.unregister("again")
    with pytest.raises(ConfigError):
        native.submit(Ask("again", prompt="a", want="prediction"), print)


def test_numbers_of_an_echo_are_those_of_the_model(native, folder):
    import torch

    base = Base.load(folder / "base")
    pieces = list(stream(native, Ask(prompt=TEXTS[0], echo=True, sampling=Sampling(max_tokens=0, logprobs=1))))
    ids = torch.from_numpy(base.encoder.encode(TEXTS[0]).astype(np.int64))
    with torch.inference_mode():
        logs = base.model.forward_tokens(ids[None])[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0].tolist()
    numbers = [number for piece in pieces for number in piece.logprobs]
    assert math.isnan(numbers[0].said.logprob) and [one.said.logprob for one in numbers[1:]] == pytest.approx(logs, abs=1e-4)
    assert [one.said.id for one in numbers] == ids.tolist() and "".join(piece.text for piece in pieces) == TEXTS[0]
    assert whole(native, Ask(prompt=TEXTS[0], echo=True, sampling=Sampling(max_tokens=0)))[0] == TEXTS[0]


def test_a_listener_that_fails_harms_no_other(native):
    def fail(piece):
        raise RuntimeError("full")

    native.submit(Ask(prompt="a", sampling=Sampling(max_tokens=8)), fail)
    assert whole(native, Ask(prompt="a", sampling=Sampling(max_tokens=8, ignore_end=True)))[0]


def test_the_engine_says_what_its_slow_twin_says(folder):
    base = Base.load(folder / "base")
    slow = Native(SlowEngine(base))
    fast = Native(Engine(base, EngineSettings(precision="float32", threads=1, cache_bytes=2**26)))
    greedy = Sampling(max_tokens=24, ignore_end=True, repetition_penalty=1.3, frequency_penalty=0.2, logit_bias={70: 1.5, 71: -100.0})
    asks = [Ask(turns=(Turn.of("user", text),), sampling=greedy) for text in TEXTS]
    asks += [Ask(prompt=text, form=Form(schema={"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}), sampling=Sampling(max_tokens=40)) for text in TEXTS[:3]]
    try:
        assert [whole(fast, ask) for ask in asks] == [whole(slow, ask) for ask in asks]
    finally:
        slow.close()
        fast.close()
