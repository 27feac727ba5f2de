"""The tour: its input, its stages, and that it goes on where it stopped."""

import json

import numpy as np
import pytest

from bedplate.advise.tour import gather as gathering
from bedplate.advise.tour import open_weights, stages
from bedplate.advise.tour.stages import TourSettings, recognised, tour
from bedplate.core.errors import RemoteError, StateError
from bedplate.core.events import read_events
from bedplate.testing.bases import tiny_base


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tour") / "raw"
    counts = gathering.gather(folder, lambda *_: None, megabytes=0.2, share=0.1)
    return folder, counts


def test_real_input_of_six_senses(raw):
    folder, counts = raw
    assert set(counts) == {"code", "text", "digits", "photos", "speech", "video", "machine"} and min(counts.values()) > 0
    assert len(list((folder / "speech").glob("*.wav"))) == counts["speech"]
    words = [p.read_text() for p in (folder / "speech").glob("*.txt")]
    assert "the word seven" in words


def test_no_caption_names_five_to_nine_and_some_digits_are_never_written(raw):
    folder, _ = raw
    captions = " ".join(p.read_text() for p in (folder / "digits").glob("*.txt"))
    assert "three" in captions and not any(name in captions for name in gathering.NAMES[5:])
    learned, held_out = gathering.load_digits()
    assert len(held_out.pixels) == gathering.HELD_OUT and len(learned.pixels) + len(held_out.pixels) == 1797


def test_the_judge_of_digits_can_tell():
    _, held_out = gathering.load_digits()
    chosen = held_out.labels < 5
    real = [(int(digit), picture[..., None]) for digit, picture in zip(held_out.labels[chosen], held_out.pixels[chosen])]
    noise = [(digit, np.random.default_rng(digit).integers(0, 255, (16, 16, 1))) for digit in range(5)] * 10
    assert recognised(real) > 0.95 and recognised(noise) < 0.5


def fake_stages(monkeypatch, log, fail=()):
    def stage(name):
        def take(one):
            log.append(name)
            one.check(name not in fail, f"{name} is wrong", "do better")
            return {"made": name}

        return take

    monkeypatch.setattr(stages, "STAGES", {name: stage(name) for name in ("gather", "learn", "report")})


def test_a_failed_check_stops_it_and_a_second_run_goes_on_there(tmp_path, monkeypatch):
    log = []
    fake_stages(monkeypatch, log, fail=("learn",))
    with pytest.raises(StateError, match="learn is wrong"):
        tour(tmp_path / "t", TourSettings())
    fake_stages(monkeypatch, log)
    tour(tmp_path / "t", TourSettings())
    assert log == ["gather", "learn", "learn", "report"]
    assert set(json.loads((tmp_path / "t" / "state.json").read_text())) == {"gather", "learn", "report"}
    tour(tmp_path / "t", TourSettings(), fresh=True)
    assert log[4:] == ["gather", "learn", "report"]
    assert [e["event"] for e in read_events(tmp_path / "t" / "log" / "events.jsonl")][-1] == "run_finished"


def test_a_foreign_folder_is_never_removed(tmp_path, monkeypatch):
    fake_stages(monkeypatch, [])
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(StateError, match="not a tour"):
        tour(tmp_path, TourSettings(), fresh=True)
    assert (tmp_path / "precious.txt").exists()


def test_functions_are_shown_without_the_line_that_says_what_they_do(tmp_path):
    (tmp_path / "m.py").write_text(
        'class A:\n    def longer(self, x):\n        """Give what is longer than x is."""\n' + "        x = x + 1\n" * 8 + "        return x\n\n"
        'def short():\n    """Do nothing at all here."""\n    return 1\n\ndef silent(x):\n' + "    x = x + 1\n" * 9
    )
    (tmp_path / "broken.py").write_text("def (")
    found = list(open_weights.functions(tmp_path))
    assert [row["completion"] for row in found] == ["Give what is longer than x is."] and found[0]["module"] == "m"
    shown = found[0]["prompt"].removeprefix(open_weights.ASK)
    assert shown.startswith("def longer(self, x):\n    x = x + 1\n") and shown.endswith("return x") and "longer than" not in shown


def test_without_a_package_index_the_tour_goes_on(tmp_path, monkeypatch):
    def nothing(*_, **__):
        raise RemoteError("no index answers", "later")

    monkeypatch.setattr("bedplate.model.formats.get.get", nothing)
    monkeypatch.setattr(stages, "STAGES", {"fetch": open_weights.fetch, "adapt": open_weights.adapt_it})
    tour(tmp_path / "t", TourSettings())
    state = json.loads((tmp_path / "t" / "state.json").read_text())
    assert state["fetch"]["reason"] == "no index answers" and state["adapt"]["scores"] is None
    assert [e["hint"] for e in read_events(tmp_path / "t" / "log" / "events.jsonl", ("warning",))]


@pytest.mark.slow
def test_a_whole_small_tour(tmp_path, monkeypatch):
    """Every stage with real parts; too short to learn much, so that only the checks of quality are left out."""
    monkeypatch.setattr(stages, "recognised", lambda painted: 0.9)
    original = stages.Tour.check
    lenient = ("fell only", "no better than", "single colour", "is empty")
    monkeypatch.setattr(stages.Tour, "check", lambda self, holds, what, hint: original(self, holds or any(w in what for w in lenient), what, hint))
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(open_weights, "BASE", str(tiny_base(tmp_path / "open")))
    monkeypatch.setattr(open_weights, "JUDGED", 6)
    settings = TourSettings(minutes=0.6, share=0.12, megabytes=0.15, reserve_s=20, labels=(10,), functions=16)
    page = tour(tmp_path / "t", settings).read_text()
    assert page.count("data:image/png") > 30 and page.count("<audio") == 6 and "<svg" in page and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
