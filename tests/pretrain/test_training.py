from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
import torch
from small import SmallRows, small_training

from bedplate.core.events import read_events
from bedplate.pretrain.checkpoint import FOLDER, list_checkpoints
from bedplate.pretrain.training import lost_seconds


def events(folder, *names):
    return list(read_events(folder / "events.jsonl", names))


def test_steps_are_told_and_the_model_learns(tmp_path):
    training = small_training(tmp_path, {"run": {"steps": 80}})
    assert training.train()
    steps = events(tmp_path, "step")
    assert [e["step"] for e in steps] == list(range(1, 81))
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"]
    assert {"loss_text", "gradient_norm", "lr", "step_s", "loader_s", "memory_bytes", "units_per_s", "tokens"} <= steps[0].keys()
    assert steps[-1]["tokens"] == 80 * 4 * 16
    evaluated = events(tmp_path, "evaluated")
    assert [e["step"] for e in evaluated] == [20, 40, 60, 80]
    assert evaluated[-1]["bits_per_byte"] < evaluated[0]["bits_per_byte"]


def test_bits_per_byte_counts_ordinary_tokens_only(tmp_path):
    training = small_training(tmp_path)
    everything = training.evaluate()
    training.token_bytes = np.where(np.arange(32) < 16, 0, 2)  # half of the tokens are special, the others two bytes long
    ordinary = training.evaluate()
    assert everything.bits_per_byte == pytest.approx(everything.losses["text"] / np.log(2))
    assert ordinary.bits_per_byte == pytest.approx(ordinary.losses["text"] / np.log(2) / 2)
    training.token_bytes = np.zeros(32, np.int64)
    assert training.evaluate().bits_per_byte is None


def test_the_average_is_what_is_evaluated_and_training_goes_on_without_it(tmp_path):
    training = small_training(tmp_path, {"schedule": {"average_share": 0.5}})
    assert training.train()
    own = {name: p.detach().clone() for name, p in training.parameters.items()}
    assert training.average.tensors and any(not torch.equal(own[n], a) for n, a in training.average.tensors.items())
    with training.average.in_place():
        assert all(torch.equal(training.average.tensors[n], own[n]) for n in own), "they have changed places"
        inside = {name: p.detach().clone() for name, p in training.parameters.items()}
    assert all(torch.equal(p, own[n]) for n, p in training.parameters.items())
    assert all(torch.equal(a, inside[n]) for n, a in training.average.tensors.items())


def test_without_an_average_share_there_is_none(tmp_path):
    training = small_training(tmp_path, {"schedule": {"average_share": 0.0}})
    assert training.train()
    assert not training.average.tensors


def test_samples_are_told(tmp_path):
    made = []

    def sampler(model, step, folder):
        made.append(step)
        return [{"sense": "text", "text": f"at {step}"}]

    assert small_training(tmp_path, {"sample": {"every_steps": 15}}, sampler=sampler).train()
    assert made == [15, 30, 40]
    assert [e["text"] for e in events(tmp_path, "sample")] == ["at 15", "at 30", "at 40"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_a_step_boundary_and_the_run_goes_on_later(tmp_path, number):
    def run(folder, stop_after):
        training = small_training(folder, {"checkpoint": {"every_steps": 0}})
        take = training.take_step

        def watched():
            take()
            if training.progress.step == stop_after:
                os.kill(os.getpid(), number)

        training.take_step = watched
        finished = training.train()
        training.run.close()
        return training, finished

    whole, finished = run(tmp_path / "whole", None)
    assert finished
    stopped, finished = run(tmp_path / "stopped", 17)
    assert not finished and stopped.progress.step == 17
    told = events(tmp_path / "stopped", "run_stopped")
    assert [(e["step"], e["reason"]) for e in told] == [(17, signal.Signals(number).name)]
    resumed, finished = run(tmp_path / "stopped", None)
    assert finished
    assert [e["step"] for e in events(tmp_path / "stopped", "run_resumed")] == [17]
    assert all(torch.equal(p, resumed.parameters[n]) for n, p in whole.parameters.items())


def test_a_second_signal_stops_at_once(tmp_path):
    training = small_training(tmp_path)

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")

    training.take_step = twice
    with pytest.raises(KeyboardInterrupt):
        training.train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_works_outside_the_main_thread(tmp_path):
    training = small_training(tmp_path)
    results = []
    thread = threading.Thread(target=lambda: results.append(training.train()))
    thread.start()
    thread.join()
    assert results == [True]


def test_rows_are_read_once_in_order_and_in_portions(tmp_path):
    rows = SmallRows()
    training = small_training(tmp_path, {"run": {"rows_per_step": 6, "rows_per_micro": 4}}, rows=rows)
    rows.asked.clear()
    assert training.train()
    assert rows.asked == [r for step in range(40) for r in ((6 * step, 4, 16), (6 * step + 4, 2, 16))]


def test_lost_seconds_are_those_after_the_checkpoint(tmp_path):
    assert small_training(tmp_path).train()
    steps = {e["step"]: e["step_s"] for e in events(tmp_path, "step")}
    assert lost_seconds(tmp_path / "events.jsonl", 30) == pytest.approx(sum(steps[s] for s in range(31, 41)))
    assert lost_seconds(tmp_path / "nothing.jsonl", 30) == 0


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("schedule", "warmup_share", 0.3),
        ("schedule", "tail_share", 0.1),
        ("schedule", "floor", 0.5),
        ("schedule", "momentum_start", 0.5),
        ("schedule", "momentum", 0.7),
        ("schedule", "momentum_warmup_share", 0.5),
        ("schedule", "context_stages", [[0.5, 8]]),
        ("optim", "clip_norm", 0.01),
        ("run", "steps", 41),
        ("run", "rows_per_step", 5),
        ("run", "seed", 1),
        ("model", "context", 17),
    ],
)
def test_every_setting_of_learning_changes_the_weights(tmp_path, table, key, value):
    base = small_training(tmp_path / "base")
    other = small_training(tmp_path / "other", {table: {key: value}})
    assert base.train() and other.train()
    assert any(not torch.equal(p, other.parameters[n]) for n, p in base.parameters.items())


def test_settings_of_saving_change_no_weights(tmp_path):
    base = small_training(tmp_path / "base")
    other = small_training(tmp_path / "other", {"checkpoint": {"every_steps": 3}, "evaluate": {"every_steps": 1}})
    assert base.train() and other.train()
    assert all(torch.equal(p, other.parameters[n]) for n, p in base.parameters.items())
    assert len(list_checkpoints(tmp_path / "other" / FOLDER)) == 2
