"""The report page: complete, alone, escaped, whatever the log says."""

import json
import re
import wave
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic import change, events, log

from bedplate.core.events import EVENTS
from bedplate.report import samples
from bedplate.report.compare import compare
from bedplate.report.html import comparison_page, run_page
from bedplate.report.log import RunLog, Setting

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'`&\x00\u202e$\\frac{"


class Tags(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.text = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def assert_harmless(page):
    tags = Tags(page).tags
    assert not {tag for tag, _ in tags} & {"script", "iframe", "object", "embed", "link", "form", "base"}
    for tag, attributes in tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "action"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes)
    assert "url(http" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


@pytest.fixture
def run(tmp_path):
    """A run folder with one sample of each sense."""
    folder = tmp_path / "harbour"
    (folder / "samples").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "samples" / "a.png")
    with wave.open(str(folder / "samples" / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        sound.writeframes((np.sin(np.arange(8000) / 10) * 9000).astype("<i2").tobytes())
    (folder / "samples" / "a.csv").write_text("point,value\n0,1.5\n1,2.5\n")
    made = [{"sense": "image", "path": "samples/a.png", "prompt": "a red square"}, {"sense": "audio", "path": "samples/a.wav"}]
    made += [{"sense": "series", "path": "samples/a.csv"}, {"sense": "text", "text": "what it wrote", "prompt": "asked"}]
    these = events(120) + [{"t": 0, "event": "sample", "step": 120, **m} for m in made]
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in these))
    (folder / "run.toml").write_text("[optim]\nadam_lr = 0.003  # --set\n")
    return RunLog.read(folder)


def test_the_page_holds_everything_and_needs_nothing(run):
    page = run_page(run)
    assert_harmless(page)
    text = " ".join(" ".join(Tags(page).text).split())
    for words in ("harbour", "finished", "Throughput", "Memory", "Gradient norm", "Learning rate", "optim.adam_lr", "--set", "held-out"):
        assert words in text, words
    for words in ("what it wrote", "a red square", "micro", "the size that 20 min train best", "Linux 6.1"):
        assert words in text, words
    assert page.count("<svg") == 5 + 5 + 1  # losses of four senses and together, how it ran, the series
    assert 'src="data:image/png;base64,' in page
    assert 'src="data:audio/wav;base64,' in page
    assert "<audio" in page
    assert len(page) < 2_000_000


def test_figures_follow_the_theme(run):
    page = run_page(run)
    inside = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "var(--c-text)" in inside
    assert "var(--ink)" in inside
    assert not re.search(r"#00[0-9a-f]{2}0[123]\b", inside), "a stand-in colour was left"
    assert "prefers-color-scheme: dark" in page
    used = set(re.findall(r"var\((--[\w-]+)\)", page))
    defined = set(re.findall(r"(--[\w-]+):", page))
    assert used <= defined


def test_the_same_log_gives_the_same_page(run):
    assert run_page(run) == run_page(run)


def test_hostile_words_stay_words(tmp_path):
    base = events(60)
    base[0] |= {"kind": HOSTILE, "environment": {HOSTILE: HOSTILE}}
    base = change(base, **{f"loss_{HOSTILE}": lambda n, v: 1.0 / n})
    base += [
        {"t": 0, "event": "sample", "step": 60, "sense": HOSTILE, "text": HOSTILE, "prompt": HOSTILE},
        {"t": 0, "event": "sample", "step": 60, "sense": "image", "path": HOSTILE},
        {"t": 0, "event": "counted", "what": HOSTILE, "counts": {HOSTILE: 1}},
        {"t": 0, "event": "chosen", "what": HOSTILE, "value": [HOSTILE], "reason": HOSTILE},
        {"t": 0, "event": "warning", "message": HOSTILE, "hint": HOSTILE},
        {"t": 0, "event": "health", "step": 3, "problem": "nan", "action": HOSTILE, "detail": HOSTILE},
    ]
    one = log(base, settings=(Setting("a", HOSTILE, HOSTILE),), folder=tmp_path / "one")
    assert_harmless(run_page(one))
    assert_harmless(comparison_page(compare([one, log(settings=(Setting("a", 1, "x"),), folder=tmp_path / "<b>two")])))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["nan", "inf", "-inf"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
FIELDS = st.sampled_from(
    ["t", "step", "steps", "loss", "loss_text", "lr", "step_s", "loader_s", "memory_bytes", "units_per_s", "epoch", "path", "text", "sense", "counts"]
    + ["what", "value", "environment", "problem", "detail", "seconds", "bits_per_byte", "kind", "error", "hint", "label", "done", "total", "reason"]
)
ANY_EVENT = st.builds(lambda name, fields: {**fields, "event": name}, st.sampled_from(sorted(EVENTS)), st.dictionaries(FIELDS, VALUES, max_size=6))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ANY_EVENT, max_size=8), st.sampled_from(["running", "finished", "failed", "stopped", "interrupted"]))
def test_any_log_gives_a_page(these, state):
    assert_harmless(run_page(log(these, state)))


@pytest.mark.parametrize("written", ["../secret.png", "/etc/passwd", "link.png", "samples/../../secret.png", "no\x00name.png", "x" * 5000 + ".png"])
def test_files_outside_the_run_are_never_shown(tmp_path, written):
    folder = tmp_path / "run"
    folder.mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    made = samples.collect(log([{"t": 0, "event": "sample", "sense": "image", "path": written}], folder=folder))
    assert [s.kind for s in made] == ["missing"]
    assert made[0].uri == ""


def test_a_moved_run_finds_its_samples(run, tmp_path):
    written = run.folder / "samples" / "a.png"
    (tmp_path / "kept").mkdir()
    moved = run.folder.rename(tmp_path / "kept" / "harbour")
    assert samples.inside(moved, str(written)) == moved / "samples" / "a.png"


@pytest.mark.parametrize("name", ["broken.wav", "broken.csv", "page.svg", "page.html"])
def test_broken_and_foreign_files_are_named_not_shown(tmp_path, name):
    (tmp_path / name).write_bytes(b"<svg onload=alert(1)>RIFF\x00\xff")
    made = samples.collect(log([{"t": 0, "event": "sample", "sense": "audio", "path": name}], folder=tmp_path))
    assert made[0].kind == "missing"
    assert name in made[0].text


def test_large_files_do_not_swell_the_page(tmp_path, monkeypatch):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    one = {"t": 0, "event": "sample", "sense": "image", "path": "a.png"}
    assert samples.collect(log([one], folder=tmp_path))[0].kind == "image"
    monkeypatch.setattr(samples, "LARGEST_BYTES", 1000)
    assert samples.collect(log([one], folder=tmp_path))[0].kind == "missing"
    monkeypatch.setattr(samples, "LARGEST_BYTES", 1 << 20)
    monkeypatch.setattr(samples, "LARGEST_PAGE_BYTES", 20_000)
    assert [s.kind for s in samples.collect(log([one] * 5, folder=tmp_path))].count("image") == 1


def test_an_empty_run_has_a_page():
    assert_harmless(run_page(log([], "interrupted")))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 90), FIELDS, VALUES), max_size=25), st.sampled_from(["running", "finished", "failed", "interrupted"]))
def test_a_real_log_with_wrong_fields_gives_a_page(wrong, state):
    these = events(80, total=200)
    for index, field, value in wrong:
        these[index] = these[index] | {field: value}
    assert_harmless(run_page(log(these, state)))
