"""Scoring: against a plain loop, the same whatever the portions, and what does not fit."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bedplate.core.errors import DataError
from bedplate.evaluate.scoring import Row, Scorer, bits, prefix

QUESTIONS = [("the quiet river", [" carries boats", " past", " rain rain rain and birds"]), ("", [" lamps", " winter"]), ("and children count the lamps " * 3, [" while", " x"])]


def plain(base, row):
    """One row alone, all logits at once: the slow twin."""
    with torch.inference_mode():
        log_p = base.model.forward_tokens(torch.tensor(row.ids[None, :-1].astype(np.int64)))[0].double().log_softmax(-1)
    wanted = torch.tensor(row.ids[1:].astype(np.int64))
    return float(log_p.gather(1, wanted[:, None])[row.start - 1 :].sum()), bool((log_p.argmax(1) == wanted)[row.start - 1 :].all())


@pytest.fixture
def families(base):
    scorer = Scorer(base)
    return [[scorer.row(context, continuation) for continuation in rest] for context, rest in QUESTIONS]


@pytest.mark.parametrize("share", [None, True, False])
@pytest.mark.parametrize("positions", [1, 40, 4096])
def test_the_same_numbers_whatever_the_portions(base, families, positions, share):
    scored = Scorer(base, positions=positions, share=share).score(families)
    for family, found in zip(families, scored):
        for row, one in zip(family, found):
            expected, likeliest = plain(base, row)
            assert one.log_probability == pytest.approx(expected, abs=1e-5) and one.tokens == len(row.ids) - row.start and one.likeliest == likeliest
    backwards = Scorer(base, positions=positions, share=share).score(families[::-1])[::-1]
    pairs = [(one, other) for family, turned in zip(scored, backwards) for one, other in zip(family, turned)]
    assert all(one.log_probability == pytest.approx(other.log_probability, abs=1e-5) for one, other in pairs)


def test_shared_prefixes_are_read_once(base):
    scorer = Scorer(base)
    rows = [scorer.row("the quiet river carries small boats past stone bridges", answer) for answer in (" a", " b", " c")]
    assert prefix(rows) == rows[0].start - 1 > 5 and scorer.shares([rows]) and not scorer.shares([rows[:1]])
    read = []
    hook = base.model.model.register_forward_pre_hook(lambda module, given: read.append(given[0].shape[:2]))
    scorer.score([rows])
    hook.remove()
    assert [n for n, _ in read] == [1, 3] and read[0][1] == prefix(rows)


def test_a_row_begins_as_a_document_and_spaces_belong_to_the_continuation(base):
    scorer = Scorer(base)
    first, second = scorer.row("the river ", "carries"), scorer.row("the river", " carries")
    assert first.ids.tolist() == second.ids.tolist() and first.start == second.start and first.ids[0] == base.ends.ids[0]
    assert base.decode(first.ids[first.start :]) == " carries"
    with pytest.raises(DataError, match="nothing to score"):
        scorer.row("the river", " ")


def test_what_does_not_fit_loses_its_beginning(base):
    scorer = Scorer(base)
    base.model.config = replace(base.model.config, max_position_embeddings=12)
    row = scorer.row("the quiet river carries small boats" * 4, " past")
    assert len(row.ids) == 13 and base.decode(row.ids[row.start :]) == " past"
    with pytest.raises(DataError, match="does not fit"):
        scorer.row("the", " quiet river" * 20)


@pytest.mark.parametrize("longest", [5, 16, 1000])
def test_windows_score_each_token_once_behind_what_fits(base, longest):
    base.model.config = replace(base.model.config, max_position_embeddings=longest)
    text = "the quiet river carries small boats past stone bridges while children count lamps"
    rows = Scorer(base).windows(text)
    assert np.concatenate([row.ids[row.start :] for row in rows]).tolist() == base.encoder.encode(text).tolist()
    assert all(len(row.ids) <= longest + 1 for row in rows)
    assert len(rows[-1].ids) == min(longest + 1, len(base.encoder.encode(text)) + 1), "the last window looks back as far as it can"
    assert Scorer(base).windows("") == []


def test_a_lone_state_and_bits(base):
    row = Row(np.array([0, 30], np.int32), 1)
    one = Scorer(base).score([[row]])[0][0]
    assert one.tokens == 1 and one.log_probability == pytest.approx(plain(base, row)[0], abs=1e-5)
    assert bits(math.log(2)) == 1 and Scorer(base).score([[], [row]])[0] == []
