"""Every detector fires at its fault and nowhere else, and every action is done."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import SmallModel, SmallRows, small_training

from bedplate.core.errors import ConfigError, StateError
from bedplate.core.events import read_events
from bedplate.pretrain.checkpoint import FOLDER, list_checkpoints
from bedplate.pretrain.health import HealthSettings, find_exhausted, find_nan, find_spike, find_stall

CALM = [3.0 + 0.01 * math.sin(i) for i in range(64)]


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_finite_is_not_nan(loss, norm):
    assert find_nan(loss, norm, HealthSettings()) is None


@pytest.mark.parametrize("pair", [(math.nan, 1.0), (1.0, math.inf), (math.inf, math.nan)])
def test_nan_is_found_and_never_applied(pair):
    assert find_nan(*pair, HealthSettings(on_nan="none")).action == "skip"
    assert find_nan(*pair, HealthSettings(on_nan="stop")).action == "stop"


def test_spike_in_loss_and_in_gradient():
    settings = HealthSettings(on_spike="skip")
    assert find_spike(CALM, CALM, 3.02, 3.0, settings) is None
    assert find_spike(CALM, CALM, 4.0, 3.0, settings).detail.startswith("loss 4")
    assert find_spike(CALM, CALM, 3.0, 9.0, settings).detail.startswith("gradient norm 9")
    assert find_spike(CALM, CALM, 1.0, 0.1, settings) is None, "a fall is good news"
    assert find_spike(CALM[:40], CALM[:40], 9.0, 9.0, settings) is None, "too little is known yet"
    assert find_spike(CALM, CALM, 3.02, 3.0, HealthSettings(spike_sigma=1.0)) is not None
    assert find_spike(CALM[:16], CALM[:16], 9.0, 3.0, HealthSettings(window=16)) is not None


def test_stall_at_the_start_level_and_later():
    settings = HealthSettings(stall_steps=100)
    flat = [3.0] * 100
    assert "start level" in find_stall(flat, 3.0, settings).detail
    assert "no better" in find_stall(flat, 4.0, settings).detail
    falling = [4.0 - 0.005 * i for i in range(100)]
    assert find_stall(falling, 4.0, settings) is None
    assert find_stall(flat[:99], 3.0, settings) is None
    assert find_stall(falling, 4.0, HealthSettings(stall_steps=100, stall_progress=0.5)) is not None


def test_exhausted():
    assert find_exhausted(2.0, HealthSettings(max_epochs=2.0)) is None
    assert find_exhausted(2.1, HealthSettings(max_epochs=2.0, on_exhausted="stop")).action == "stop"


@pytest.mark.parametrize("settings", [{"window": 4}, {"stall_steps": 3}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        HealthSettings(**settings)


class FaultyModel(SmallModel):
    """Its loss is multiplied by `factor` for the rows that start at `fault_row`."""

    def __init__(self, factor: float, rows: SmallRows, fault_rows: set[int]) -> None:
        super().__init__(noise=0.0)
        self.factor, self.faults = factor, [tuple(rows.batch(r, 2, 16).tokens.flatten()) for r in fault_rows]

    def losses(self, batch, generator):
        sums = super().losses(batch, generator)
        if tuple(batch.tokens.flatten().tolist()) in self.faults:
            sums.sums["text"] = sums.sums["text"] * self.factor
        return sums


def faulty(folder, factor, health, fault_rows=(100,), steps=40, **more):
    """A training of 4 rows a step whose rows 100 and 101 (step 25) are ill."""
    rows = SmallRows()
    torch.manual_seed(0)
    model = FaultyModel(factor, rows, set(fault_rows))
    rows.asked.clear()
    tree = {"run": {"steps": steps}, "health": {"window": 16, **health}, "schedule": {"average_share": 0.0}}
    return small_training(folder, tree, model=model, rows=rows, **more), rows


def told(folder):
    return [(e["step"], e["problem"], e["action"]) for e in read_events(folder / "events.jsonl", ("health",))]


def finite(model):
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("action", ["none", "skip"])
def test_nan_is_skipped(tmp_path, factor, action):
    training, _ = faulty(tmp_path, factor, {"on_nan": action})
    assert training.train()
    assert told(tmp_path) == [(25, "nan", "skip")]
    assert finite(training.model)


def test_skip_drops_exactly_that_update(tmp_path):
    ill, _ = faulty(tmp_path / "ill", 1e4, {"on_spike": "skip"})
    before = {}
    take = ill.take_step

    def watched():
        if ill.progress.step == 25:
            before.update({k: v.clone() for k, v in ill.model.state_dict().items()})
            before["momentum"] = ill.stepper.optimiser.muons[0].momentum.clone()
        take()
        if ill.progress.step == 26:
            assert all(torch.equal(before[k], v) for k, v in ill.model.state_dict().items())
            assert torch.equal(before["momentum"], ill.stepper.optimiser.muons[0].momentum)

    ill.take_step = watched
    assert ill.train()
    assert told(tmp_path / "ill") == [(25, "spike", "skip")]
    assert before


def test_a_spike_is_only_told_when_no_action_is_chosen(tmp_path):
    training, _ = faulty(tmp_path, 1e4, {"on_spike": "none"})
    assert training.train()
    assert (25, "spike", "none") in told(tmp_path)


@pytest.mark.parametrize(("factor", "health"), [(math.nan, {"on_nan": "roll_back"}), (1e4, {"on_spike": "roll_back"})])
def test_roll_back_returns_and_jumps_over_the_data(tmp_path, factor, health):
    training, rows = faulty(tmp_path, factor, health)
    assert training.train()
    assert [t[2] for t in told(tmp_path)] == ["roll_back"]
    assert training.progress.step == 40 and training.progress.roll_backs == 1
    assert training.progress.skipped_positions == 6 * 64, "steps 20 to 25"
    read = [first for first, _, _ in rows.asked if first < 10**6]
    assert read.count(80) == 1, "rows after the checkpoint are not read again"
    events = [e["step"] for e in read_events(tmp_path / "events.jsonl", ("step",))]
    assert events == [*range(1, 26), *range(21, 41)]
    assert finite(training.model)


def test_roll_back_before_the_first_checkpoint_returns_to_the_start(tmp_path):
    training, _ = faulty(tmp_path, math.nan, {"on_nan": "roll_back"}, fault_rows=(8,))
    assert training.train()
    assert training.progress.skipped_positions == 3 * 64


def test_roll_backs_are_limited(tmp_path):
    training, _ = faulty(tmp_path, math.nan, {"on_nan": "roll_back", "max_roll_backs": 2}, fault_rows=range(40, 2000, 2))
    with pytest.raises(StateError, match="roll-backs did not help"):
        training.train()
    assert [t[2] for t in told(tmp_path)] == ["roll_back", "roll_back", "stop"]


def test_skips_are_limited(tmp_path):
    training, _ = faulty(tmp_path, math.nan, {"on_nan": "skip", "max_skips": 3}, fault_rows=range(40, 2000, 2))
    with pytest.raises(StateError, match="skipped before"):
        training.train()
    assert [t[2] for t in told(tmp_path)] == ["skip"] * 3 + ["stop"]


def test_stop_leaves_the_last_good_checkpoint(tmp_path):
    training, _ = faulty(tmp_path, math.nan, {"on_nan": "stop"})
    with pytest.raises(StateError, match="stopped at step 25: nan") as caught:
        training.train()
    assert "step 20" in caught.value.hint and "optim.lr_matrix=0.005" in caught.value.hint
    assert list_checkpoints(tmp_path / FOLDER)[-1].name == "step-00000020"
    assert finite(training.model)


@pytest.mark.parametrize("action", ["none", "stop"])
def test_stall_is_told_once_and_can_stop(tmp_path, action):
    tree = {
        "run": {"steps": 60},
        "optim": {"lr_matrix": 0.0, "lr_embedding": 0.0, "lr_head": 0.0, "lr_vector": 0.0},
        "health": {"on_stall": action, "stall_steps": 30},
    }
    training = small_training(tmp_path, tree)
    if action == "stop":
        with pytest.raises(StateError, match="stall"):
            training.train()
        assert training.progress.step == 30
    else:
        assert training.train()
    assert told(tmp_path)[0] == (30, "stall", action)
    assert len(told(tmp_path)) <= 2, "at most once in 30 steps"


@pytest.mark.parametrize("action", ["none", "stop"])
def test_exhausted_data_is_told_once_and_can_stop(tmp_path, action):
    training = small_training(tmp_path, {"health": {"on_exhausted": action, "max_epochs": 1.0}}, epochs=lambda positions: positions / 640)
    if action == "stop":
        with pytest.raises(StateError, match="health.max_epochs"):
            training.train()
        assert list_checkpoints(tmp_path / FOLDER)[-1].name == "step-00000011", "what was learned is kept"
    else:
        assert training.train()
    assert told(tmp_path) == [(11, "exhausted", action)]
