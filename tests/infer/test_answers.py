"""Many answers at once: what `slow_answer` says one at a time, of the base and of workers adapted in place, and nothing that keeps memory or threads."""

import gc
import threading

import numpy as np
import pytest
import torch
from workers import made

from bedplate.adapt.base import Base
from bedplate.adapt.encode import Item, compose
from bedplate.adapt.loop import restore
from bedplate.core.errors import BedplateError, ConfigError
from bedplate.infer import answers as module
from bedplate.infer import engine_settings
from bedplate.infer.answers import Answers, Teacher
from bedplate.infer.worker import Worker
from bedplate.testing.bases import tiny_base
from bedplate.testing.corpora import WORDS
from bedplate.testing.slow_answer import answer

PROMPTS = ("the quiet river", "a", "children count lamps and birds return before winter rain", "stone", "boats past the")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    tiny_base(folder)
    texts = [" ".join(WORDS[n : n + 3]) for n in range(8)]
    for method in ("lora", "dora"):
        made(folder, "generate", [{"prompt": text, "completion": "lamps and birds"} for text in texts], method)
        (folder / "generate").rename(folder / method)
        (folder / "generate.run").rename(folder / f"{method}.run")
    return folder


@pytest.fixture(params=["", "lora", "dora"])
def base(folder, request):
    base = Base.load(folder / "base")
    if request.param:
        restore(base, folder / request.param)
    return base


def asked(base):
    return [compose([base.ends, base.words(prompt)], base.model.config) for prompt in PROMPTS]


def test_they_are_those_of_one_at_a_time(base, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 3)
    prompts, many = asked(base), Answers(base)
    assert many.computed_by.endswith("float32")
    one = [answer(base, prompt, [], 12) for prompt in prompts]
    assert many.texts(prompts, [], 12) == one and len(set(one)) > 1
    ends = range(0, base.encoder.size, 2)
    ended = many.texts(prompts, ends, 12)
    assert ended == [answer(base, prompt, ends, 12) for prompt in prompts] != one
    stop = one[0][4:6]
    assert many.texts(prompts, [], 12, [stop]) == [text.partition(stop)[0] for text in one] and stop in one[0]
    assert many.texts([], [], 5) == []
    again = many.texts(prompts, [], 12, temperature=1.0, seed=3)
    assert again == many.texts(prompts, [], 12, temperature=1.0, seed=3) != many.texts(prompts, [], 12, temperature=1.0, seed=4)


def test_an_adapter_that_the_weights_carry_is_part_of_them(folder, monkeypatch):
    """In torch's operations, too."""
    base = Base.load(folder / "base")
    bare = [answer(base, prompt, [], 12) for prompt in asked(base)]
    restore(base, folder / "dora")
    prompts = asked(base)
    wanted = [answer(base, prompt, [], 12) for prompt in prompts]
    assert wanted != bare
    monkeypatch.setattr(engine_settings, "CpuRunner", lambda model, shape: (_ for _ in ()).throw(BedplateError("no compiler")))
    many = Answers(base)
    assert many.computed_by == "torch float32 cpu" and many.texts(prompts, [], 12) == wanted


def test_one_question_that_cannot_be_asked_fails_all_and_the_next_are_answered(base):
    many, prompts = Answers(base), asked(base)
    with pytest.raises(ConfigError, match="tokens wanted"):
        many.texts(prompts, [], 10**6)
    with pytest.raises(RuntimeError, match="broken"):
        many.predict(Broken(), [Broken().item(prompts[0])])
    assert many.texts(prompts[:1], [], 4) == [answer(base, prompts[0], [], 4)]


class Broken:
    layers = 1

    def item(self, positions):
        return Item(0, (positions,), np.zeros(0, np.float32), 1.0)

    def regard(self, positions, states):
        raise RuntimeError("broken")


def test_other_numbers_are_computed_with_a_copy(folder):
    base = Base.load(folder / "base")
    many = Answers(base, torch.bfloat16)
    assert not many.computed_by.endswith("float32") and base.model.head.dtype == torch.float32
    many.close()


def test_threads_end_with_whoever_asked(folder):
    gc.collect()
    before = threading.active_count()
    worker = Worker.load(folder / "base", folder / "lora")
    assert worker.generate(["the river"], max_tokens=2) == worker.generate(["the river"], max_tokens=2) and threading.active_count() > before
    del worker
    gc.collect()
    assert threading.active_count() == before


def test_a_teacher_is_asked_one_question_after_the_other(folder):
    teach, first, second = Teacher(), Base.load(folder / "base"), Base.load(folder / "base")
    restore(second, folder / "lora")
    for base in (first, second, first):
        prompt = asked(base)[0]
        assert teach(base, prompt, [], 6) == answer(base, prompt, [], 6)
