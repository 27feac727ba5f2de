"""Mixture, packing and the loader: pure functions of seed, row and context, in which nothing is lost and nothing leaks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError
from bedplate.data.corpus import StoredSegment
from bedplate.data.loader import STREAMS, Loader, LoaderSettings
from bedplate.data.mixture import BLOCK, Mixture, tempered
from bedplate.data.packing import PackingSettings, assemble, cut_piece, fill_in_middle
from bedplate.data.rows import MARKS, StreamPlan, WholePlan
from bedplate.modality.sequence import PADDING, SPECIAL_TOKENS
from bedplate.modality.specs import SENSES
from bedplate.testing.corpora import tiny_corpus, tiny_specs

SPECIAL = {name: number for number, name in enumerate(SPECIAL_TOKENS)}
PLAIN = PackingSettings(fim_text=0, fim_code=0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpora") / "c", documents=30)


@given(st.dictionaries(st.sampled_from(["text", "code", "image", "audio"]), st.floats(0.01, 10), min_size=1), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_every_block_of_the_mixture_has_the_exact_shares(weights, seed):
    mixture = Mixture(weights, seed)
    for block in (0, 3):
        picks = [mixture.pick(row) for row in range(block * BLOCK, (block + 1) * BLOCK)]
        for number, name in enumerate(mixture.components):
            numbers = sorted(pick[1] for pick in picks if pick.component == name)
            count = int(mixture.counts[number])
            assert numbers == list(range(block * count, (block + 1) * count))
            assert abs(count - BLOCK * weights[name] / sum(weights.values())) <= 1 + len(weights)
        assert mixture.rows_before(mixture.components[0], block * BLOCK + 100) == sum(
            mixture.pick(row).component == mixture.components[0] for row in range(block * BLOCK + 100)
        )


def test_tempered_shares_follow_the_square_root():
    assert tempered({"text": 900, "image": 100}) == {"text": 0.75, "image": 0.25}


def test_unknown_parts_of_a_mixture_are_named(corpus):
    with pytest.raises(ConfigError, match="image"):
        Mixture({"imag": 1.0}, 0)
    with pytest.raises(ConfigError, match="smell"):
        Loader(corpus, LoaderSettings({"smell": 1.0}))


@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(8, 64), st.booleans(), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_a_plan_holds_every_position_exactly_once(lengths, context, whole, seed):
    kind = WholePlan if whole else StreamPlan
    plan = kind(np.arange(len(lengths)), np.array(lengths), context, np.random.default_rng(seed))
    seen = {document: [] for document in range(len(lengths))}
    for row in range(plan.rows):
        parts = plan.row(row)
        assert sum(part.end - part.start for part in parts) <= context
        for part in parts:
            seen[part.document] += range(part.start, part.end)
            if whole and lengths[part.document] <= context:
                assert (part.start, part.end) == (0, lengths[part.document]), "what fits a row is never cut"
    assert all(sorted(seen[document]) == list(range(length)) for document, length in enumerate(lengths))


def test_an_epoch_of_text_is_read_exactly_once(corpus):
    loader = Loader(corpus, LoaderSettings({"text": 1.0}, PLAIN))
    rows = loader._plan("text", 0, 64).rows
    tokens = np.concatenate([loader.batch(row, 1, 64).tokens[loader.batch(row, 1, 64).sense == 0] for row in range(rows)])
    wanted = np.concatenate([[0, *corpus.segments(int(d))[0].value, 0] for d in corpus.table("text").document])
    assert np.array_equal(np.sort(tokens), np.sort(wanted))
    assert loader.epochs(rows, 64) == 1.0


def test_batches_do_not_depend_on_how_they_are_asked_for(corpus):
    loader = Loader(corpus, LoaderSettings(seed=3))
    whole, again = loader.batch(0, 12, 128), Loader(corpus, LoaderSettings(seed=3)).batch(0, 12, 128)
    single = [loader.batch(row, 1, 128) for row in range(12)]
    assert np.array_equal(whole.tokens, again.tokens) and np.array_equal(whole.tokens, np.concatenate([b.tokens for b in single]))
    for sense, units in whole.units.items():
        np.testing.assert_array_equal(units, np.concatenate([b.units[sense] for b in single if sense in b.units]))
    assert not np.array_equal(whole.tokens, Loader(corpus, LoaderSettings(seed=4)).batch(0, 12, 128).tokens)


def test_grouped_batches_hold_the_same_rows_and_text_stands_apart(corpus):
    loader = Loader(corpus, LoaderSettings())
    batches = loader.batches(5, 11, 96, most_rows=4)
    together = np.concatenate([b.tokens for b in batches])
    assert sorted(map(bytes, together)) == sorted(map(bytes, loader.batch(5, 11, 96).tokens))
    assert all(len(b.tokens) <= 4 for b in batches)
    assert all(b.isolated == bool((b.sense > 0).any()) or not b.isolated for b in batches) and any(not b.isolated for b in batches)


def test_units_stand_between_their_marks_and_counts_agree(corpus):
    batch = Loader(corpus, LoaderSettings()).batch(0, 40, 256)
    for sense, units in batch.units.items():
        here = batch.sense == SENSES.index(sense)
        assert here.sum() == len(units) == len(batch.grid[sense]) == len(batch.unit_loss[sense])
        for row, column in np.argwhere(here):
            before = batch.tokens[row, column - 1] if batch.sense[row, column - 1] == 0 else None
            assert column == 0 or batch.sense[row, column - 1] == SENSES.index(sense) or before == SPECIAL[f"<|{sense}|>"]
    assert not batch.token_loss[:, 0].any() and not batch.token_loss[batch.sense != 0].any()
    assert (batch.document[batch.sense == PADDING] == PADDING).all()


def test_the_trace_agrees_with_the_batch(corpus):
    loader = Loader(corpus, LoaderSettings(packing=PLAIN))
    for traced in loader.documents(0, 20, 128):
        if traced.component in STREAMS:
            ids = np.array([0, *corpus.segments(traced.document)[0].value, 0])[traced.start : traced.end]
            row = loader.batch(traced.row, 1, 128).tokens[0]
            assert any(np.array_equal(row[at : at + len(ids)], ids) for at in range(129 - len(ids)))
        assert traced.sha256 and traced.source


def segments(kind="image"):
    rng = np.random.default_rng(0)
    value = rng.integers(0, 256, (28, 28, 1), dtype=np.uint8) if kind == "image" else rng.normal(size=(20, 40)).astype(np.float16)
    return [StoredSegment("text", np.array([20, 21, 22], np.uint16)), StoredSegment(kind, value)]


def assembled(changes, seed, kind="image"):
    return assemble(segments(kind), tiny_specs(), SPECIAL, np.random.default_rng(seed), PackingSettings(**changes))


def test_a_captioned_picture_is_made_from_its_text():
    made = assembled({"caption_first": 1, "caption_drop": 0, "known_share": 0}, 0)
    assert made.tokens[:5].tolist() == [0, 20, 21, 22, SPECIAL["<|image|>"]] and made.tokens[-2:].tolist() == [SPECIAL["<|/image|>"], 0]
    assert made.token_loss[:5].tolist() == [False, True, True, True, True] and not made.token_loss[-2:].any()
    assert made.unit_loss["image"].all() and not made.block.any()


def test_a_picture_that_is_looked_at_is_one_block_and_no_target():
    made = assembled({"caption_first": 0}, 0)
    assert made.tokens[-4:].tolist() == [20, 21, 22, 0] and made.token_loss[-4:].all()
    assert not made.unit_loss["image"].any() and (made.block[made.sense == 1] == 1).all()


def test_the_shares_of_packing_have_their_effect():
    dropped = [len(assembled({"caption_first": 1, "caption_drop": 0.5}, seed)) for seed in range(60)]
    assert set(dropped) == {56, 53} and 15 < dropped.count(53) < 45
    known = [assembled({"caption_first": 1, "caption_drop": 0, "known_share": 0.5}, seed) for seed in range(60)]
    counts = [int((~k.unit_loss["image"]).sum()) for k in known]
    assert 15 < counts.count(0) < 45 and max(counts) <= 48 and len(set(counts)) > 8
    assert all((k.block[k.sense == 1] > 0).tolist() == (~k.unit_loss["image"]).tolist() for k in known)
    first = [assembled({"caption_first": 0.7}, seed).tokens[1] == SPECIAL["<|image|>"] for seed in range(60)]
    assert 8 < sum(first) < 35
    with pytest.raises(ConfigError):
        PackingSettings(fim_text=1.5)


def test_sound_is_all_target_in_order():
    made = assembled({"caption_first": 1, "caption_drop": 0}, 0, "audio")
    assert made.unit_loss["audio"].all() and not made.block.any()


@given(st.integers(16, 200), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_a_filled_in_middle_keeps_the_length_and_the_words(length, seed):
    tokens = np.arange(100, 100 + length, dtype=np.int32)
    made = fill_in_middle(tokens, SPECIAL, np.random.default_rng(seed))
    at = [int(np.flatnonzero(made == SPECIAL[f"<|fim_{part}|>"])[0]) for part in ("prefix", "suffix", "middle")]
    assert len(made) == length and at[0] == 0
    back = np.concatenate([made[1 : at[1]], made[at[2] + 1 :], made[at[1] + 1 : at[2]]])
    assert np.array_equal(back, tokens[:-3])


@pytest.mark.parametrize(("key", "component"), [("fim_text", "text"), ("fim_code", "code")])
def test_filling_in_happens_as_often_as_asked(corpus, key, component):
    marks = {}
    for share in (0.0, 1.0):
        loader = Loader(corpus, LoaderSettings({component: 1.0}, PackingSettings(**{"fim_text": 0, "fim_code": 0, key: share})))
        batch = loader.batch(0, 20, 64)
        marks[share] = int((batch.tokens == SPECIAL["<|fim_middle|>"]).sum())
    assert marks[0.0] == 0 and marks[1.0] > 10


def test_a_document_longer_than_a_row_goes_on_in_pieces_that_stand_on_their_own(corpus):
    loader = Loader(corpus, LoaderSettings({"image": 1.0}))
    batch = loader.batch(0, 12, 32)
    assert batch.units["image"].shape[0] > 100
    whole = assembled({"caption_first": 1, "caption_drop": 0, "known_share": 0}, 0)
    piece = cut_piece(whole, 10, 30, SPECIAL)
    assert len(piece) == 20 + MARKS and len(piece.units["image"]) == 20
    assert piece.tokens[[0, -1]].tolist() == [SPECIAL["<|image|>"], SPECIAL["<|/image|>"]]
    assert piece.unit_loss["image"][:-1].all() and not piece.unit_loss["image"][-1], "the picture does not end where the piece does"
    np.testing.assert_array_equal(piece.units["image"], whole.units["image"][5:25])
