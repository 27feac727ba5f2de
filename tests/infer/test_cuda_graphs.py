"""Decode steps filled up to fixed sizes come to the states of plain ones, and touch nobody's page; on a GPU, recorded ones to those of eager ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged import embedded, shape, through

from bedplate.core.generation import Sampling
from bedplate.infer.cuda_graphs import FEW, LEAST_PAGES, MOST_ROWS, cuda_graphs, few_each
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.request import Request
from bedplate.infer.step import PAGE, Segment, Step
from bedplate.infer.torch_runner import TorchRunner
from bedplate.testing.bases import base_of
from bedplate.testing.heard import Heard
from bedplate.testing.models import FAMILIES, family_model
from bedplate.testing.requests import words

CPU = torch.device("cpu")
EXACT = {"rtol": 2e-4, "atol": 2e-4}
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: graphs are recorded there")


class Again:
    """A record that computes on the same arrays again, and counts; what it gives stays in one place, as a graph's does."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, compute):
        self.recorded += 1
        result = compute().clone()

        def replay():
            self.replayed += 1
            return result.copy_(compute())

        return replay


@pytest.mark.parametrize("family", FAMILIES)
def test_filled_up_steps_come_to_the_states_of_plain_ones(family):
    model, again = family_model(family), Again()
    plain, fixed = (TorchRunner(model, shape(), CPU, torch.float32, record) for record in (None, again))
    sequences = embedded(model, [7, 20, 3, 80, 17])
    pages = np.random.default_rng(0).permutation(64)
    borders = [2, 3, *range(5, 64), 66]
    for a, b in zip(*(through(runner, sequences, borders, pages) for runner in (plain, fixed))):
        np.testing.assert_allclose(a, b, **EXACT)
    # Ten positions of five sequences, then fewer and fewer, on up to five pages: of eight pages, rows filled up to 16, 8, 4, 2 and 1.
    assert fixed._decode.sizes == [(rows, LEAST_PAGES) for rows in (1, 2, 4, 8, 16)] and again.recorded == 5 and again.replayed == len(borders) + 1
    for a, b in zip((*plain._keys, *plain._values), (*fixed._keys, *fixed._values)):
        np.testing.assert_allclose(a[:-PAGE], b[:-PAGE], **EXACT)
        assert b[-PAGE:].isfinite().all() and not b[-PAGE + 1 :].any(), "rows that fill up write one place of the page that is nobody's"


@settings(max_examples=20)
@given(st.data())
def test_whatever_was_computed_before_leaves_nothing_in_the_arrays(data):
    """Steps of any number of rows after one another, on any pages; a row of one step may fill up the next."""
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    pages = data.draw(st.permutations(range(64)))
    sequences = embedded(SMALL, lengths, seed=sum(lengths))
    borders = data.draw(st.sets(st.integers(1, 40), min_size=5))
    for runner in (FIXED, PLAIN):
        runner.made = through(runner, sequences, borders, pages)
    for a, b in zip(PLAIN.made, FIXED.made):
        np.testing.assert_allclose(a, b, **EXACT)


SMALL = family_model("qwen3")
PLAIN, FIXED = (TorchRunner(SMALL, shape(), CPU, torch.float32, record) for record in (None, Again()))


def test_what_is_no_number_stays_with_its_sequence():
    mad, sane = embedded(SMALL, (20, 20))
    expected = through(PLAIN, [sane], range(1, 20))[0]
    through(FIXED, [np.full_like(mad, np.nan), mad, mad], range(1, 20))
    np.testing.assert_allclose(through(FIXED, [sane, sane, sane], range(1, 20))[0], expected, **EXACT)


def test_only_steps_of_few_positions_each_are_recorded():
    def step(sequence=(0, 1), position=(3, 4), until=None, segments=(), layers=None):
        numbers = [np.array(one, np.int32) for one in (sequence, position, position if until is None else until, position)]
        return Step(np.zeros((len(position), 4), np.float32), *numbers, np.zeros((2, 1), np.int32), segments, layers)

    assert few_each(step()) and few_each(step((0,) * FEW, range(FEW)))
    assert not few_each(step((0,) * (FEW + 1), range(FEW + 1))), "a prompt"
    assert not few_each(step(range(MOST_ROWS + 1), (0,) * (MOST_ROWS + 1))), "too many"
    assert not few_each(step((0, 0), until=(4, 4))), "one sees the other"
    assert not few_each(step(segments=[Segment(0, 1, "a")])) and not few_each(step(layers=1))


@pytest.mark.parametrize("drafts", [0, 8])
def test_an_engine_over_filled_up_steps_says_the_same(drafts):
    """Few pages: some are put back, and read again beside others that answer."""
    base, said = base_of(family_model("qwen3")), []
    for record in (None, again := Again()):
        engine = Engine(base, EngineSettings("float32", "torch", "cpu", context=96, cache_bytes=14 * 4096, most_running=6, drafts=drafts))
        engine.runner = TorchRunner(base.model, engine.shape, CPU, torch.float32, record)
        heard = [Heard() for _ in range(9)]
        for number, one in enumerate(heard):
            engine.submit(Request(words(base, 5 + 3 * number, number), Sampling(max_tokens=40), tenant="abc"[number % 3]), one)
        said.append([one.wait().tokens for one in heard])
        preemptions = engine.load().counters["preemptions"]
        engine.close()
    assert said[0] == said[1] and preemptions > 0 and again.replayed > 20


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_steps_are_eager_ones(dtype):
    cuda = torch.device("cuda")
    states = []
    for record in (None, cuda_graphs(cuda)):
        model = family_model("qwen3", seed=3)
        runner = TorchRunner(model, shape(), cuda, dtype, record)
        states.append(through(runner, embedded(family_model("qwen3", seed=3), [7, 20, 3, 80, 17]), range(5, 80)))
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    for a, b in zip(*states):
        assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(a)


@gpu
def test_an_engine_on_a_gpu_says_what_one_on_a_processor_says():
    asked = [Request(words(base_of(family_model("qwen3")), 10 + n, n), Sampling(max_tokens=20), tenant=str(n)) for n in range(5)]
    said = []
    for device in ("cpu", "cuda"):
        settings = EngineSettings(precision="float32", device=device, context=128, cache_bytes=2**24, threads=1)
        for drafts in (0, 8):
            engine, heard = Engine(base_of(family_model("qwen3")), replace(settings, drafts=drafts)), []
            for request in asked:
                heard.append(Heard())
                engine.submit(request, heard[-1])
            said.append([one.wait().tokens for one in heard])
            engine.close()
    assert said[0] == said[1] == said[2] == said[3]
