"""Worker processes: results in order, and an input that kills its process is left out."""

import os
import subprocess
import sys

import pytest

from bedplate.core.errors import StateError
from bedplate.data.document import Origin, Skipped
from bedplate.data.inputs import Input
from bedplate.data.prepare import careful
from bedplate.data.workers import Workers


def begin(factor):
    os.environ["FACTOR"] = str(factor)


def multiply(items):
    if 13 in items:
        os._exit(1)  # as a crash in a decoder's C code
    if 99 in items:
        raise ValueError("not this one")
    return [item * int(os.environ["FACTOR"]) for item in items]


def test_results_come_in_order():
    with Workers(2, begin, (10,), multiply, lambda item: [f"died {item}"]) as workers:
        assert list(workers.in_order([n, n + 100] for n in range(12))) == [[[n * 10, n * 10 + 1000]] for n in range(12)]


def test_a_deadly_item_is_left_out_and_the_others_are_not():
    with Workers(2, begin, (1,), multiply, lambda item: [f"died {item}"]) as workers:
        results = list(workers.in_order([[1, 2], [12, 13, 14], [3], [4], [5]]))
    assert results == [[[1, 2]], [[12], ["died 13"], [14]], [[3]], [[4]], [[5]]]


def test_an_error_comes_through():
    with pytest.raises(ValueError), Workers(1, begin, (1,), multiply, lambda item: [item]) as workers:
        list(workers.in_order([[1], [99]]))


def die(_):
    os._exit(1)


def test_processes_that_cannot_begin_are_not_blamed_on_the_items():
    with pytest.raises(StateError, match="before they begin"), Workers(1, die, (1,), multiply, lambda item: [item]) as workers:
        list(workers.in_order([[1], [2]]))


def test_a_program_that_cannot_be_imported_again_is_refused():
    program = "from bedplate.data.workers import Workers\nWorkers(1, print, (), print, print)"
    told = subprocess.run([sys.executable], input=program, text=True, capture_output=True, check=False).stderr
    assert "comes from <stdin>" in told and "__main__" in told


def test_an_unforeseen_error_skips_one_input_only(tmp_path):
    class Fragile:
        def chunk(self, inputs):
            from bedplate.data.prepare import Outcome

            if any(isinstance(i, Input) and i.source == "bad" for i in inputs):
                raise RuntimeError("boom")
            return Outcome([Skipped(Origin(i.source), "seen") for i in inputs])

    inputs = [Input(tmp_path, name) for name in ("good", "bad", "fine")]
    outcome = careful(Fragile(), inputs)
    assert [(s.origin.source, s.reason) for s in outcome.results] == [("good", "seen"), ("bad", "failed"), ("fine", "seen")]
    assert "boom" in outcome.results[1].detail
