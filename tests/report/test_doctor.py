"""Each diagnosis fires on a log that has its trouble, and none on healthy logs."""

import numpy as np
import pytest
from synthetic import SETTINGS, change, events, log

from bedplate.report.doctor import CHECKS, diagnose
from bedplate.report.log import Setting


def names(these=None, state="finished", now=None, **how):
    return [d.name for d in diagnose(log(these, state, **how), now)]


def found(name, these, state="finished", now=None):
    matching = [d for d in diagnose(log(these, state), now) if d.name == name]
    assert matching, f"{name} did not fire; found {names(these, state, now)}"
    assert matching[0].evidence
    assert matching[0].change
    assert 0 < matching[0].confidence <= 1
    return matching[0]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("steps", [30, 200, 1000])
def test_a_healthy_run_has_no_diagnosis(seed, steps):
    assert names(events(steps, seed)) == []


@pytest.mark.parametrize("part", [0.1, 0.4, 0.8])
def test_a_healthy_run_that_is_not_over_has_no_diagnosis(part):
    these = events(int(800 * part), total=800)
    assert names(these, "running", now=these[-1]["t"] + 5) == []
    assert names(these + [{"t": these[-1]["t"], "event": "run_stopped", "reason": "interrupted"}], "stopped") == []


def test_empty_and_tiny_logs_have_no_diagnosis():
    assert names([]) == []
    assert names(events(1)) == []
    assert names(events(3, total=500)) == []


def test_loader_bound():
    slow = change(events(200), loader_s=lambda n, v: 0.3, step_s=lambda n, v: 0.5)
    diagnosis = found("loader-bound", slow)
    assert "60%" in diagnosis.evidence[0]
    assert "2.5x" in diagnosis.change


def test_diverged_upwards_names_the_step_and_halves_the_rates():
    rising = change(events(600), loss=lambda n, v: v if n < 300 else v + (n - 300) * 0.02, gradient_norm=lambda n, v: v if n < 300 else v * 30)
    diagnosis = found("diverged", rising)
    assert "--set optim.adam_lr=0.0015" in diagnosis.change
    assert "--set optim.muon_lr=0.01" in diagnosis.change
    assert "gradient norm" in diagnosis.evidence[1]


def test_diverged_to_nan():
    nan = change(events(300), loss=lambda n, v: "nan" if n > 250 else v)
    nan.append({"t": 0, "event": "health", "step": 251, "problem": "nan", "action": "stop", "detail": "loss nan, gradient norm 3.1e+04"})
    diagnosis = found("diverged", nan)
    assert "after step 250" in diagnosis.evidence[0]
    assert "3.1e+04" in diagnosis.evidence[1]


def test_spike_that_came_back_is_found_in_the_numbers_alone():
    spiked = change(events(400), loss=lambda n, v: v + 3.0 if n == 217 else v)
    diagnosis = found("spike", spiked)
    assert "step 217" in diagnosis.evidence[0]
    assert "data trace runs/first --step 217" in diagnosis.change
    assert "diverged" not in names(spiked)


def test_spike_that_the_run_itself_told():
    told = events(100) + [{"t": 0, "event": "health", "step": 60, "problem": "spike", "action": "skip", "detail": "loss 9 is 20 robust sigma above"}]
    assert "(action: skip)" in found("spike", told).evidence[0]


def test_stalled_from_the_start():
    rng = np.random.default_rng(0)
    flat = change(events(300, total=1000), loss=lambda n, v: 7.6 + rng.normal(0, 0.02))
    diagnosis = found("stalled", flat)
    assert diagnosis.confidence > 0.9
    assert "--set optim.adam_lr=0.009" in diagnosis.change


def test_stalled_halfway_with_the_rate_still_high():
    rng = np.random.default_rng(0)
    flat = change(events(1000, total=4000), loss=lambda n, v: max(2.5, 7.6 - n * 0.02) + rng.normal(0, 0.02))
    assert found("stalled", flat).confidence < 0.9


def test_a_process_that_hangs_is_told_by_its_silence():
    these = events(100, total=500)
    assert "old" in found("stalled", these, "running", now=these[-1]["t"] + 900).evidence[0]
    assert names(these, "running", now=these[-1]["t"] + 30) == []


def test_duplicated_data_by_the_gap_to_held_out_data():
    def learned_by_heart(n, v):
        return v * (1 - 0.5 * n / 600)

    these = change(events(600), **dict.fromkeys(("loss", "loss_text", "loss_image", "loss_audio", "loss_series"), learned_by_heart))
    rising = [e | {"loss_text": 3.4 + e["step"] / 1000} if e["event"] == "evaluated" else e for e in these]
    diagnosis = found("duplicated data", rising)
    assert any("loss_text" in line for line in diagnosis.evidence)


def test_a_gap_of_next_to_nothing_is_none():
    these = change(events(600), loss_audio=lambda n, v: v if n < 30 else 0.001)
    close = [e | {"loss_audio": 0.004 if e["step"] > 300 else 0.003} if e["event"] == "evaluated" else e for e in these]
    assert "duplicated data" not in names(close)


def test_duplicated_data_by_falls_where_epochs_begin():
    these = change(events(600), epoch=lambda n, v: n / 150, loss=lambda n, v: v - 0.25 * (n // 150))
    diagnosis = found("duplicated data", these)
    assert "step 150" in diagnosis.evidence[0]
    assert "epoch 1" in diagnosis.evidence[0]
    assert len(diagnosis.evidence) >= 3


def test_epochs_alone_are_no_trouble():
    assert names(change(events(600), epoch=lambda n, v: n / 150)) == []


def test_memory_near_the_machine_limit_asks_for_half_the_rows():
    full = change(events(100), memory_bytes=lambda n, v: int(7.7 * 2**30))
    assert "run.rows_per_micro=4" in found("memory near limit", full).change


def test_memory_limit_of_a_step_counts_before_the_machine():
    gpu = change(events(100), memory_bytes=lambda n, v: 78 << 30, memory_limit_bytes=lambda n, v: 80 << 30)
    assert "80.0 GiB" in found("memory near limit", gpu).evidence[0]
    assert names(change(events(100), memory_bytes=lambda n, v: 40 << 30, memory_limit_bytes=lambda n, v: 80 << 30)) == []


def test_memory_that_grows_towards_the_limit():
    leak = change(events(400, total=2000), memory_bytes=lambda n, v: (2 << 30) + n * (4 << 20))
    assert "before the end" in found("memory near limit", leak).evidence[0]


def test_died_without_a_word():
    these = events(200, total=500)
    assert "continues from step 200" in found("died without a word", these, "interrupted").change
    full = change(these, memory_bytes=lambda n, v: int(7.9 * 2**30))
    diagnosis = found("died without a word", full, "interrupted")
    assert any("system probably ended it" in line for line in diagnosis.evidence)


def test_data_exhausted():
    these = events(200) + [{"t": 0, "event": "health", "step": 150, "problem": "exhausted", "action": "none", "detail": "the data was read 9.0 times"}]
    assert "9.0 times" in found("data exhausted", these).evidence[0]


def test_failed_gives_the_error_and_its_hint():
    these = events(20, total=50) + [{"t": 0, "event": "run_failed", "error": "no room", "hint": "largest batch that fits: 12"}]
    diagnosis = found("failed", these, "failed")
    assert diagnosis.change == "largest batch that fits: 12"


def test_every_check_is_tested_to_fire():
    """A new check must come with a test above: this list is what they cover."""
    covered = {"failed", "died", "diverged", "spike", "stalled", "loader_bound", "duplicated", "exhausted", "memory_near_limit"}
    assert {check.__name__ for check in CHECKS} == covered


def test_changes_name_settings_of_the_run():
    only_one = (Setting("optim.lr_peak", 0.01, "default"),)
    nan = change(events(100), loss=lambda n, v: "nan" if n > 50 else v)
    assert diagnose(log(nan, settings=only_one))[0].change == "halve the learning rate: --set optim.lr_peak=0.005"
    assert SETTINGS[0].value == 8
