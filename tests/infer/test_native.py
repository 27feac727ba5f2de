"""What the native generator makes of questions: classifying and embedding workers as `Worker` has them, pictures, raw prompts, echoes, what is refused."""

import io
import json
import math
import threading

import numpy as np
import pytest
from PIL import Image

from bedplate.adapt.base import Base
from bedplate.adapt.loop import adapt
from bedplate.adapt.settings import AdaptSettings, ExampleSettings, MethodSettings, TrainSettings
from bedplate.core.config import Resolved
from bedplate.core.errors import BedplateError, ConfigError, DataError
from bedplate.core.generation import Ask, Form, Part, Sampling, Tool, Turn, stream, whole
from bedplate.core.run import Run
from bedplate.infer import grammar
from bedplate.infer.answer import answer
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.native import Native
from bedplate.infer.reading import read
from bedplate.infer.worker import Worker
from bedplate.testing.bases import tiny_base
from bedplate.testing.corpora import WORDS, tiny_specs
from bedplate.testing.slow_engine import SlowEngine

TEXTS = [" ".join(WORDS[n : n + 4]) for n in range(8)]


def made(folder, task, rows, **data):
    """An adapter for a job, as `bedplate adapt` makes one."""
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = AdaptSettings(
        base=folder / "base", to=folder / task, task=task, data=ExampleSettings(file=folder / f"{task}.jsonl", **data),
        method=MethodSettings(name="lora"), train=TrainSettings(device="cpu", threads=1, epochs=1),
    )  # fmt: skip
    with Run.open(folder / f"{task}.run", "adapt", Resolved(settings, {})) as run:
        adapt(settings, run)
    return folder / task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    tiny_base(folder, tiny_specs())
    made(folder, "classify", [{"text": text, "label": ("quiet", "busy")[n % 2]} for n, text in enumerate(TEXTS)])
    made(folder, "embed", [{"text": text, "positive": text[::-1]} for text in TEXTS])
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
    for task in ("classify", "embed", "generate"):
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


def test_a_classifying_worker_says_what_worker_says(native, folder):
    for text, wanted in zip(TEXTS, Worker.load(folder / "base", folder / "classify").predict(TEXTS)):
        for ask in (Ask("classify", prompt=text, want="label"), Ask("classify", turns=(Turn.of("user", text),), want="label")):
            found = last(native, ask).label
            assert found.label == (wanted.label or "") and found.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)


def test_an_embedding_worker_says_what_worker_says(native, folder):
    for text, wanted in zip(TEXTS, Worker.load(folder / "base", folder / "embed").predict(TEXTS)):
        assert last(native, Ask("embed", prompt=text, want="vector")).vector == pytest.approx(wanted.vector, abs=1e-5)


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
    question = read(base, None, ask).positions
    assert "image" in question.units and native.count(ask) == len(question)
    assert whole(native, ask) == [answer(base, question, base.template.ends(), 8)]
    seen = last(native, Ask(turns=turns, want="vector")).vector
    assert seen != last(native, Ask(turns=(Turn.of("user", "what is it"),), want="vector")).vector
    numbers = Ask(turns=(Turn("user", (Part("series", data=b"load\n1\n2\n3.5\n"), Part("text", "and then?"))),), sampling=Sampling(max_tokens=2))
    assert whole(native, numbers) is not None and "series" in read(base, None, numbers).positions.units


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
        Ask("classify", prompt="a"), Ask("classify", prompt="a", want="vector"), Ask(prompt="a", want="label"), Ask("embed", prompt="a", want="label"), Ask("clasify", prompt="a"),
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
        native.submit(Ask("again", prompt="a", want="label"), print)


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
