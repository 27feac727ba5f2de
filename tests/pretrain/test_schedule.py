from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError
from bedplate.pretrain.schedule import Schedule, ScheduleSettings

shares = st.floats(0, 0.5)
stage_lists = st.lists(st.tuples(st.floats(0.01, 1), st.sampled_from([8, 16, 32, 64])), max_size=3).map(lambda s: tuple(sorted(s)))


@st.composite
def schedules(draw):
    settings = ScheduleSettings(
        warmup_share=draw(shares), tail_share=draw(shares), floor=draw(shares), context_stages=draw(stage_lists), average_share=draw(shares)
    )
    return Schedule(settings, draw(st.integers(1, 300)), draw(st.integers(1, 8)), 64)


@given(schedules())
def test_learning_rate_rises_stays_and_falls(schedule):
    factors = [schedule.lr_factor(step) for step in range(schedule.steps)]
    assert all(0 < f <= 1 for f in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] >= min(schedule.settings.floor, 1)


@given(schedules())
def test_every_position_is_read_once_and_in_order(schedule):
    next_position = 0
    for step in range(schedule.steps):
        rows = schedule.rows(step)
        start = rows.first_row * rows.context
        # Where the context grows, the start is rounded up to a whole row: less than one row is left out, and nothing is read twice.
        assert 0 <= start - next_position < rows.context
        assert schedule.positions(step + 1) - schedule.positions(step) == rows.rows * rows.context
        next_position = start + rows.rows * rows.context


@given(schedules(), st.integers(0, 10_000))
def test_skipped_positions_are_not_read_and_shape_stays(schedule, skipped):
    for step in range(0, schedule.steps, 7):
        plain, jumped = schedule.rows(step), schedule.rows(step, skipped)
        assert (plain.rows, plain.context) == (jumped.rows, jumped.context)
        assert jumped.first_row * jumped.context >= schedule.positions(step) + skipped


@given(schedules())
def test_momentum_rises_to_its_value(schedule):
    values = [schedule.momentum(step) for step in range(schedule.steps)]
    assert values == sorted(values)
    assert all(schedule.settings.momentum_start - 1e-9 <= v <= schedule.settings.momentum + 1e-9 for v in values)


@given(schedules())
def test_average_covers_the_last_part_only(schedule):
    span = round(schedule.settings.average_share * schedule.steps)
    weights = [schedule.average_weight(step) for step in range(schedule.steps)]
    if span < 2:
        assert not any(weights)
    else:
        assert not any(weights[: schedule.steps - span])
        assert weights[schedule.steps - span] == 1
        assert all(0 < w <= 1 for w in weights[schedule.steps - span :])


def test_context_stages_are_followed_with_equal_positions_a_step():
    schedule = Schedule(ScheduleSettings(context_stages=((0.25, 128), (0.5, 256))), steps=100, rows_per_step=4, context=512)
    assert [schedule.rows(step).context for step in (0, 24, 25, 49, 50, 99)] == [128, 128, 256, 256, 512, 512]
    assert {schedule.rows(step).rows * schedule.rows(step).context for step in range(100)} == {2048}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tail_share": 1.5}, "tail_share"),
        ({"warmup_share": 0.6, "tail_share": 0.6}, "overlap"),
        ({"context_stages": ((0.5, 128), (0.2, 256))}, "context_stages"),
    ],
)
def test_impossible_schedules_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ScheduleSettings(**settings)
