"""Comparison at equal steps, tokens and time; the live view; figures."""

import io
import json

import numpy as np
import pytest
from rich.console import Console
from synthetic import SETTINGS, change, events, log

from bedplate.core.errors import DataError
from bedplate.report import figures
from bedplate.report.compare import compare, differences
from bedplate.report.log import Setting
from bedplate.report.watch import Tail, sparkline, view


def pair(tmp_path):
    """Two runs: the second is worse by a constant, its steps hold half the tokens and take twice the time."""
    flat = change(events(400), loss=lambda n, v: 2.0)
    worse = change(events(300), loss=lambda n, v: 3.0, tokens=lambda n, v: n * 2048, step_s=lambda n, v: 1.0)
    other = (*SETTINGS[:2], Setting("optim.adam_lr", 1e-3, "--set"), *SETTINGS[3:], Setting("only.here", True, "default"))
    return [log(flat, folder=tmp_path / "a"), log(worse, settings=other, folder=tmp_path / "b")]


def test_settings_that_differ_and_only_those(tmp_path):
    found = differences(pair(tmp_path))
    assert [(d.key, d.values) for d in found] == [("only.here", (None, True)), ("optim.adam_lr", (3e-3, 1e-3))]


def test_losses_stand_at_equal_places_within_both_runs(tmp_path):
    comparison = compare(pair(tmp_path))
    ends = {part.axis: part.rows[-1][0] for part in comparison.parts}
    assert ends["steps"] == 300
    assert ends["tokens"] == 300 * 2048
    assert ends["time"] == pytest.approx(sum(e["step_s"] for e in comparison.logs[0].steps), rel=0.01)  # the first ends sooner
    for part in comparison.parts:
        for _, losses in part.rows:
            assert losses == pytest.approx((2.0, 3.0))
    assert json.loads(json.dumps(comparison.to_json(), allow_nan=False))["losses"]["steps"][-1]["losses"] == {"a": 2.0, "b": 3.0}


def test_a_comparison_refuses_one_run_and_a_loss_that_is_not_there(tmp_path):
    runs = pair(tmp_path)
    with pytest.raises(DataError):
        compare(runs[:1])
    with pytest.raises(DataError) as caught:
        compare(runs, "loss_smell")
    assert "loss_text" in caught.value.hint


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    one, two = log(folder=tmp_path / "a" / "run"), log(folder=tmp_path / "b" / "run")
    assert compare([one, two]).names == ["a/run", "b/run"]
    assert compare([one, one]).names == ["a/run (1)", "a/run (2)"]


def test_tail_gives_each_event_once_and_waits_for_whole_lines(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert list(tail.new()) == []
    path.write_text('{"event": "step", "step": 1}\n{"event": "st')
    assert [e["step"] for e in tail.new()] == [1]
    assert list(tail.new()) == []
    with path.open("a") as handle:
        handle.write('ep", "step": 2}\nnot json\n[1]\n{"event": "step", "step": 3}\n')
    assert [e["step"] for e in tail.new()] == [2, 3]


def drawn(these, state, now):
    out = io.StringIO()
    Console(file=out, width=100).print(view(log(these, state), now))
    return out.getvalue()


def test_the_view_tells_state_step_loss_and_trouble():
    these = events(200, total=500)
    text = drawn(these, "running", these[-1]["t"] + 3)
    for words in ("first", "running", "step 200/500", "left", "loss text", "memory 2.3 GiB", "last event 3.0 s ago"):
        assert words in text, words
    assert "spike" in drawn(change(these, loss=lambda n, v: v + (5 if n == 150 else 0)), "running", these[-1]["t"])
    assert "no step yet" in drawn([], "running", 0.0)


def test_sparkline_falls_and_skips_gaps():
    assert sparkline(np.linspace(1, 0, 8), 8)[0] == "█"
    assert sparkline(np.linspace(1, 0, 8), 8)[-1] == "▁"
    assert len(sparkline(np.arange(1000.0), 60)) == 60
    assert sparkline(np.array([1.0, np.nan, 2.0]), 10)[1] == " "
    assert sparkline(np.full(3, np.nan)) == ""
    assert set(sparkline(np.ones(5), 5)) == {"▁"}


def test_figures_stay_light_and_survive_gaps():
    x = np.arange(50_000.0)
    svg = figures.draw([figures.Line("a", x, np.sin(x), figures.INK, faint=np.cos(x))], x_label="step")
    assert len(svg) < 120_000
    for y in (np.full(5, np.nan), np.zeros(5), np.array([1.0, np.nan, np.inf, 3.0, 2.0])):
        assert "<svg" in figures.draw([figures.Line("a", np.arange(5.0), y, figures.INK)], x_label="step", y_format="bytes")
    assert "<svg" in figures.draw([], x_label="step")


def test_colours_are_told_apart():
    names = ["loss", "loss_text", "loss_image", "loss_image_regression", "loss_unknown", "loss_audio"]
    found = figures.colours(names)
    assert len(set(found)) == len(found)
    assert found[1] == figures.SENSE_COLOURS["text"]


@pytest.mark.parametrize("length", [0, 1, 511, 512, 100_000])
def test_a_spectrogram_of_any_sound_is_a_png(length):
    assert figures.spectrogram(np.random.default_rng(0).normal(size=length), 16_000).startswith(b"\x89PNG")
