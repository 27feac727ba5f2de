"""Long work without steps is told of, short work is not, and a job that is done again begins anew."""

from adaptations import run_of

from bedplate.adapt.loop import prepare
from bedplate.adapt.progress import told
from bedplate.adapt.settings import AdaptSettings, ExampleSettings
from bedplate.core.events import read_events
from bedplate.testing.corpora import WORDS


def events(folder):
    return [(event["label"], event["done"], event["total"]) for event in read_events(folder / "events.jsonl", ("progress",))]


def test_what_takes_long_is_told_once_a_second_and_at_its_end(tmp_path):
    now = [0.0]
    with run_of(AdaptSettings(to=tmp_path / "a")) as run:
        tell = told(run, lambda: now[0])
        for _ in range(2):
            for done in range(1, 11):
                now[0] += 0.4
                tell("features", done, 10, "positions")
        tell("short", 1, 2, "examples")
        tell("short", 2, 2, "examples")
    assert events(tmp_path / "a.run") == [("features", done, 10) for done in (4, 7, 10)] * 2


def test_reading_features_and_looks_are_told(base, base_folder, jsonl, tmp_path):
    rows = [{"text": f"{WORDS[n % 7]} {n}", "label": "ab"[n % 2]} for n in range(40)]
    heard = []
    asked = AdaptSettings(base_folder, tmp_path / "a", "classify", ExampleSettings(jsonl(rows)))
    prepared = prepare(asked, base, progress=lambda *word: heard.append(word))
    prepared.task.start(prepared.items, prepared.held_out)
    prepared.task.judge(prepared.held_out)
    ends = {label: (done, total) for label, done, total, _ in heard}
    assert ends["examples as the base sees them"] == (6, 6)
    assert ends["features of the base"] == (sum(item.positions for item in prepared.items),) * 2
    assert ends["held-out examples"] == (sum(item.positions for item in prepared.held_out),) * 2
