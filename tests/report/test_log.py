"""Reading a run: each step once, settings with origins, hostile folders."""

import json

import numpy as np
import pytest
from synthetic import events, log

from bedplate.core.errors import DataError
from bedplate.report.log import RunLog, read_settings, smooth


def write(folder, these, toml=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in these))
    if toml:
        (folder / "run.toml").write_text(toml)
    return folder


def test_steps_after_a_resume_replace_those_that_were_lost():
    first = events(50, seed=1, total=100)
    again = [{"t": 0, "event": "run_resumed", "step": 40, "lost_s": 5}, *events(60, seed=2, total=100)[3:]]
    again = [e for e in again if e["event"] != "step" or e["step"] > 40]
    both = log(first + again)
    assert [e["step"] for e in both.steps] == list(range(1, 61))
    assert both.steps[44] == next(e for e in again if e["event"] == "step" and e["step"] == 45)


def test_a_rollback_without_an_event_is_seen_by_the_step_going_back():
    these = events(50, total=100) + [e | {"loss": 9.0} for e in events(45, total=100) if e["event"] == "step" and e["step"] > 30]
    steps = log(these).steps
    assert [e["step"] for e in steps] == list(range(1, 46))
    assert steps[35]["loss"] == 9.0


def test_training_time_leaves_pauses_out():
    these = events(20)
    for event in these[10:]:
        event["t"] += 3600
    assert log(these).seconds()[-1] == pytest.approx(sum(e["step_s"] for e in these if e["event"] == "step"))


def test_training_time_counts_steps_that_were_not_logged():
    thinned = [e for e in events(100) if e["event"] != "step" or e["step"] % 10 == 0]
    whole = log(events(100)).seconds()[-1]
    assert log(thinned).seconds()[-1] == pytest.approx(whole, rel=0.1)


def test_settings_come_with_their_origins(tmp_path):
    toml = '# kind: pretrain\nname = "a # b"  # default\n\n[optim]\nlr = 0.1  # --set\n\n[a.b]\nx = [1, 2]  # file.toml\n'
    (tmp_path / "run.toml").write_text(toml)
    found = {s.key: (s.value, s.origin) for s in read_settings(tmp_path / "run.toml")}
    assert found == {"name": ("a # b", "default"), "optim.lr": (0.1, "--set"), "a.b.x": ([1, 2], "file.toml")}


@pytest.mark.parametrize("broken", [b"\xff\xfe", b"x = ", b"[[[", b"a" * 10_000])
def test_a_broken_run_toml_gives_no_settings(tmp_path, broken):
    (tmp_path / "run.toml").write_bytes(broken)
    assert read_settings(tmp_path / "run.toml") == []


def test_a_folder_that_is_no_run_says_which_runs_it_holds(tmp_path):
    write(tmp_path / "runs" / "one", events(2))
    with pytest.raises(DataError) as caught:
        RunLog.read(tmp_path / "runs")
    assert "one" in caught.value.hint


def test_read_knows_kind_environment_and_state(tmp_path):
    run = RunLog.read(write(tmp_path / "one", events(5)))
    assert (run.kind, run.state, run.environment["cores"]) == ("pretrain", "finished", 2)


def test_smooth_keeps_a_constant_and_carries_over_gaps():
    values = np.array([2.0, 2.0, np.nan, 2.0])
    assert smooth(values).tolist() == [2.0, 2.0, 2.0, 2.0]
    assert np.isnan(smooth(np.array([np.nan, 1.0]))[0])
    falling = np.linspace(10, 0, 400)
    assert np.abs(smooth(falling, 10)[100:] - falling[100:]).max() < 0.5
