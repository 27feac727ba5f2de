"""The log survives torn lines and any bytes; a run has one owner, a state, a heartbeat, and records its end."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bedplate.core import run as run_module
from bedplate.core.config import load
from bedplate.core.errors import DataError, StateError
from bedplate.core.events import EVENTS, EventLog, read_events
from bedplate.core.run import Run, run_state


@dataclass(frozen=True)
class Settings:
    seed: int = 0


def opened(folder, **overrides):
    return Run.open(folder, "pretrain", load(Settings, overrides=[f"{k}={v}" for k, v in overrides.items()]))


def test_what_is_emitted_can_be_read(tmp_path):
    told = []
    log = EventLog(tmp_path / "events.jsonl", (told.append,), clock=lambda: 12.5)
    log.emit("step", step=1, loss=float("nan"), lr=float("inf"), grid=(1, 2), where=tmp_path, word="ä\n")
    log.close()
    assert list(read_events(tmp_path / "events.jsonl")) == told
    assert told[0] == {"t": 12.5, "event": "step", "step": 1, "loss": "nan", "lr": "inf", "grid": [1, 2], "where": str(tmp_path), "word": "ä\n"}
    log.emit("warning", message="after close")
    assert len(told) == 2
    assert len(list(read_events(tmp_path / "events.jsonl"))) == 1


def test_unknown_events_are_our_own_mistake(tmp_path):
    with pytest.raises(KeyError):
        EventLog(None).emit("stepp")


@pytest.mark.parametrize("value", [10**400, {1: float("nan")}, "\ud800", b"bytes", object(), {"a": {"b": float("-inf")}}])
def test_any_value_can_be_emitted(tmp_path, value):
    log = EventLog(tmp_path / "events.jsonl")
    log.emit("chosen", value=value)
    log.close()
    assert [e["event"] for e in read_events(tmp_path / "events.jsonl")] == ["chosen"]


def test_numbers_of_numpy_stay_numbers(tmp_path):
    import numpy as np

    log = EventLog(tmp_path / "events.jsonl")
    log.emit("step", step=np.int64(3), loss=np.float32(0.5), bad=np.float32("nan"), flag=np.bool_(True), many=np.arange(2))
    event = next(read_events(tmp_path / "events.jsonl"))
    assert (event["step"], event["loss"], event["bad"], event["flag"], event["many"]) == (3, 0.5, "nan", True, [0, 1])


def test_a_torn_line_is_dropped_and_the_next_stands_alone(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"t": 1, "event": "step", "step": 1}\n{"t": 2, "event": "st')
    log = EventLog(path)
    log.emit("step", step=3)
    log.close()
    assert [e["step"] for e in read_events(path)] == [1, 3]
    assert [e["step"] for e in read_events(path, ("warning",))] == []


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b"[" * 3000, b'{"event": 5}', b'{"event": "step"', b"\xff\xfe{}", b"NaN", b"1e999"])), max_size=6))
def test_any_bytes_between_events_are_passed_over(tmp_path, rubbish):
    path = tmp_path / "events.jsonl"
    good = b'{"t": 0, "event": "step", "step": %d}'
    path.write_bytes(b"\n".join([good % 1, *rubbish, b"", good % 2]) + b"\n")
    steps = [e.get("step") for e in read_events(path)]
    assert steps[0] == 1
    assert steps[-1] == 2


def test_lines_of_many_threads_do_not_mix(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    threads = [threading.Thread(target=lambda k=k: [log.emit("warning", message=str(k) * 3000) for _ in range(50)]) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(read_events(tmp_path / "events.jsonl"))) == 200


def test_a_run_writes_its_settings_and_environment(tmp_path):
    with opened(tmp_path / "r", seed=7):
        pass
    assert "seed = 7  # --set" in (tmp_path / "r" / "run.toml").read_text()
    started = next(read_events(tmp_path / "r" / "events.jsonl"))
    assert started["settings"] == {"seed": 7}
    assert started["environment"]["cores"] >= 1
    assert started["environment"]["memory_bytes"] > 0
    assert set(EVENTS) >= {"run_started"}


def test_states(tmp_path):
    folder = tmp_path / "r"
    assert run_state(folder) == "interrupted"
    with opened(folder) as run:
        assert run_state(folder) == "running"
        run.events.emit("run_finished", seconds=1.0)
    assert run_state(folder) == "finished"
    with pytest.raises(KeyboardInterrupt), opened(folder):
        raise KeyboardInterrupt
    assert run_state(folder) == "stopped"
    with pytest.raises(DataError), opened(folder):
        raise DataError("no text in it", "give more")
    assert run_state(folder) == "failed"
    last = list(read_events(folder / "events.jsonl"))[-1]
    assert (last["error"], last["hint"]) == ("no text in it", "give more")
    assert "DataError" in (folder / "trace.txt").read_text()
    opened(folder).close()
    assert run_state(folder) == "interrupted"


OWNER = """
import sys
from pathlib import Path
from dataclasses import dataclass
from bedplate.core.config import load
from bedplate.core.run import Run
@dataclass(frozen=True)
class S:
    a: int = 0
with Run.open(Path(sys.argv[1]), "pretrain", load(S)) as run:
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_run_held_by_another_process_is_refused_and_free_when_it_dies(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "r")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b"open\n"
    assert run_state(tmp_path / "r") == "running"
    before = (tmp_path / "r" / "run.toml").read_text()
    with pytest.raises(StateError) as caught:
        opened(tmp_path / "r", seed=9)
    assert str(owner.pid) in caught.value.message
    assert "runs watch" in caught.value.hint
    assert (tmp_path / "r" / "run.toml").read_text() == before
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert run_state(tmp_path / "r") == "interrupted"
    opened(tmp_path / "r").close()


def test_looking_at_a_run_does_not_disturb_its_owner(tmp_path):
    """A watcher that asks for the state at the very moment a run starts must not make the start fail."""
    folder = tmp_path / "r"
    opened(folder).close()
    stop = threading.Event()
    threads = [threading.Thread(target=lambda: [run_state(folder) for _ in iter(stop.is_set, True)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(60):
            opened(folder).close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_the_lock_is_let_go_even_if_opening_fails(tmp_path):
    folder = tmp_path / "r"
    (folder / "run.toml").mkdir(parents=True)
    with pytest.raises(OSError):
        opened(folder)
    (folder / "run.toml").rmdir()
    opened(folder).close()


def test_the_heartbeat_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "HEARTBEAT_S", 0.01)
    with opened(tmp_path / "r") as run:
        os.utime(tmp_path / "r" / "heartbeat", (0, 0))
        deadline = time.monotonic() + 20
        while (tmp_path / "r" / "heartbeat").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "r" / "heartbeat").stat().st_mtime > 0
        assert run.seconds > 0


def test_a_closed_run_can_be_closed_again(tmp_path):
    run = opened(tmp_path / "r")
    run.close()
    run.close()
    opened(tmp_path / "r").close()
    assert json.loads((tmp_path / "r" / "events.jsonl").read_text().splitlines()[0])["event"] == "run_started"


def test_a_folder_that_is_refused_stays_as_its_run_left_it(tmp_path):
    with opened(tmp_path / "run", seed=1) as run:
        run.events.emit("run_finished", seconds=0.1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.name not in ("lock", "heartbeat")}

    def refuse(folder):
        raise StateError(f"{folder} holds another run", "give another folder")

    with pytest.raises(StateError, match="holds another run"):
        Run.open(tmp_path / "run", "pretrain", load(Settings, overrides=["seed=2"]), check=refuse)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before
    assert run_state(tmp_path / "run") == "finished"


def test_a_failure_of_the_system_is_recorded_in_words(tmp_path):
    with pytest.raises(OSError), opened(tmp_path / "run"):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "big"))
    failed = next(read_events(tmp_path / "run" / "events.jsonl", ("run_failed",)))
    assert "the disk is full" in failed["error"] and "MiB are free" in failed["hint"]
