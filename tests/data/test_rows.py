"""Plans of rows: nothing is lost, nothing is read twice, rows are full."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError
from bedplate.data.rows import MARKS, StreamPlan, WholePlan, best_fit, stream_rows

length_lists = st.lists(st.integers(2, 200), min_size=1, max_size=60)
contexts = st.integers(4, 64)
seeds = st.integers(0, 1000)


def plan_of(kind, lengths, context, seed):
    documents = np.arange(len(lengths), dtype=np.int64) * 3 + 5  # numbers are not indices
    return kind(documents, np.array(lengths, np.int32), context, np.random.default_rng(seed))


def covered(plan):
    """Document -> its slices, sorted."""
    found: dict[int, list[tuple[int, int]]] = {}
    for row in range(plan.rows):
        for part in plan.row(row):
            found.setdefault(part.document, []).append((part.start, part.end))
    return {document: sorted(parts) for document, parts in found.items()}


@given(length_lists, contexts, seeds, st.sampled_from([StreamPlan, WholePlan]))
def test_every_position_of_every_document_is_in_exactly_one_row(lengths, context, seed, kind):
    parts = covered(plan_of(kind, lengths, context, seed))
    assert sorted(parts) == [number * 3 + 5 for number in range(len(lengths))]
    for document, pieces in parts.items():
        assert pieces[0][0] == 0 and pieces[-1][1] == lengths[(document - 5) // 3]
        assert all(before[1] == after[0] for before, after in zip(pieces, pieces[1:]))


@given(length_lists, contexts, seeds)
def test_all_rows_of_a_stream_are_full_but_one(lengths, context, seed):
    plan = plan_of(StreamPlan, lengths, context, seed)
    sizes = sorted(sum(part.end - part.start for part in plan.row(row)) for row in range(plan.rows))
    assert plan.rows == stream_rows(sum(lengths), context)
    assert sizes[1:] == [context] * (plan.rows - 1) and 0 < sizes[0] <= context


@given(length_lists, contexts, seeds)
def test_whole_documents_fit_their_row_and_long_ones_leave_room_for_marks(lengths, context, seed):
    plan = plan_of(WholePlan, lengths, context, seed)
    for row in range(plan.rows):
        taken = 0
        for document, start, end in plan.row(row):
            whole = (start, end) == (0, lengths[(document - 5) // 3])
            assert whole or lengths[(document - 5) // 3] > context
            taken += end - start + (0 if whole else MARKS)
        assert 0 < taken <= context


@given(length_lists, contexts, seeds, st.sampled_from([StreamPlan, WholePlan]))
def test_a_plan_depends_on_nothing_but_its_arguments(lengths, context, seed, kind):
    one, two = plan_of(kind, lengths, context, seed), plan_of(kind, lengths, context, seed)
    assert [one.row(r) for r in range(one.rows)] == [two.row(r) for r in reversed(range(two.rows))][::-1]


def test_another_shuffle_is_another_order():
    lengths = [30] * 50
    for kind in (StreamPlan, WholePlan):
        one, two = (plan_of(kind, lengths, 64, seed) for seed in (0, 1))
        assert [one.row(r) for r in range(one.rows)] != [two.row(r) for r in range(two.rows)]


def test_neighbouring_rows_hold_no_neighbouring_text():
    plan = plan_of(StreamPlan, [100_000], 100, 0)
    starts = [plan.row(row)[0].start for row in range(plan.rows)]
    assert sum(after - before == 100 for before, after in zip(starts, starts[1:])) < 10


@given(st.lists(st.integers(1, 40), max_size=200))
def test_best_fit_never_overfills_and_opens_a_row_only_when_none_has_room(sizes):
    placed = best_fit(np.array(sizes, np.int64), 40)
    used: list[int] = []
    for size, row in zip(sizes, placed.tolist()):
        fitting = [40 - total for total in used if 40 - total >= size]
        if row == len(used):
            assert not fitting
            used.append(0)
        else:
            assert 40 - used[row] == min(fitting)
        used[row] += size
        assert used[row] <= 40


def test_best_fit_wastes_little():
    sizes = np.random.default_rng(0).integers(20, 400, 20_000)
    rows = best_fit(sizes, 512).max() + 1
    assert sizes.sum() / (rows * 512) > 0.97


def test_a_row_without_room_between_marks_is_refused():
    with pytest.raises(ConfigError, match="context of 2"):
        plan_of(WholePlan, [5], 2, 0)
