"""Documents as positions: marks, blocks, targets, pairs, pieces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError
from bedplate.data.corpus_format import StoredSegment, positions_of
from bedplate.data.packing import PackingSettings, assemble, cut_piece, cut_positions, fill_in_middle
from bedplate.data.rows import MARKS
from bedplate.modality.sequence import SPECIAL_TOKENS
from bedplate.modality.specs import SENSES
from bedplate.testing.corpora import tiny_specs

SPECS = tiny_specs()
IDS = {name: number for number, name in enumerate(SPECIAL_TOKENS)}
PLAIN = PackingSettings(fim_text=0, fim_code=0, known_share=0, caption_first=1, caption_drop=0)


def text(count: int) -> StoredSegment:
    return StoredSegment("text", np.arange(100, 100 + count, dtype=np.uint16))


def segment(sense: str, size: int = 3) -> StoredSegment:
    rng = np.random.default_rng(size)
    values = {
        "text": text(size).value,
        "image": rng.integers(0, 256, (4 * size, 8, 1)).astype(np.uint8),
        "video": rng.integers(0, 256, (2 * size, 16, 16, 1)).astype(np.uint8),
        "audio": rng.standard_normal((4 * size - 1, 40)).astype(np.float16),
        "series": rng.standard_normal(16 * size).astype(np.float32),
    }
    return StoredSegment(sense, values[sense])


def make(segments, seed=0, packing=PLAIN):
    return assemble(segments, SPECS, IDS, np.random.default_rng(seed), packing)


def names(positions) -> list[str]:
    """What stands at each position, for people."""
    tokens = [SPECIAL_TOKENS[token] if token < len(SPECIAL_TOKENS) else "word" for token in positions.tokens]
    return [SENSES[sense] if sense else token for token, sense in zip(tokens, positions.sense)]


def check_well_formed(positions):
    """Units stand between marks of their sense, and every list has the length it must have."""
    shown = names(positions)
    for number, name in enumerate(shown):
        if positions.sense[number]:
            assert shown[number - 1] in (name, f"<|{name}|>") and shown[number + 1] in (name, f"<|/{name}|>")
            assert positions.tokens[number] == IDS["<|pad|>"] and not positions.token_loss[number]
    assert len(positions.sense) == len(positions.block) == len(positions.token_loss) == len(positions.tokens)
    for sense in SENSES[1:]:
        count = int((positions.sense == SENSES.index(sense)).sum())
        assert (sense in positions.units) == (count > 0)
        if count:
            assert len(positions.units[sense]) == len(positions.grid[sense]) == len(positions.unit_loss[sense]) == count
    assert not positions.block[positions.sense == 0].any()


segment_lists = st.lists(st.builds(segment, st.sampled_from(SENSES), st.integers(1, 6)), min_size=1, max_size=4)
packings = st.builds(PackingSettings, known_share=st.sampled_from([0.0, 0.5, 1.0]), caption_first=st.sampled_from([0.0, 0.5, 1.0]), caption_drop=st.just(0.0))


@given(segment_lists, st.integers(0, 99), packings)
def test_any_document_is_well_formed_and_as_long_as_the_corpus_says(segments, seed, packing):
    positions = make(segments, seed, packing)
    check_well_formed(positions)
    assert len(positions) == positions_of(segments, SPECS)
    assert positions.tokens[0] == positions.tokens[-1] == IDS["<|endoftext|>"] and not positions.token_loss[0]
    assert positions.tokens.dtype == np.int32 and positions.sense.dtype == np.int8


@settings(max_examples=200)
@given(segment_lists, st.integers(0, 99), packings, st.data())
def test_pieces_stand_on_their_own_and_together_are_the_document(segments, seed, packing, data):
    whole = make(segments, seed, packing)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=4)))
    bounds = [0, *cuts, len(whole)]
    pieces = [cut_piece(whole, start, end, IDS) for start, end in zip(bounds, bounds[1:])]
    for piece, start, end in zip(pieces, bounds, bounds[1:]):
        check_well_formed(piece)
        assert end - start <= len(piece) <= end - start + MARKS
        assert start == 0 or not piece.token_loss[0]
    for sense, units in whole.units.items():
        kept = [piece.units[sense] for piece in pieces if sense in piece.units]
        assert np.array_equal(np.concatenate(kept), units)
        targets = np.concatenate([piece.unit_loss[sense] for piece in pieces if sense in piece.unit_loss])
        assert not (targets & ~whole.unit_loss[sense]).any()
    inner = sum(bool(whole.sense[cut] and whole.sense[cut] == whole.sense[cut - 1]) for cut in cuts)
    lost = sum(int((whole.unit_loss[s].astype(int)).sum()) for s in whole.units) - sum(int(p.unit_loss[s].sum()) for p in pieces for s in p.units)
    assert 0 <= lost <= inner  # only units before a cut inside their sense: nothing ends there
    if not cuts:
        assert pieces[0] is whole


def test_a_first_unit_whose_mark_was_cut_off_is_a_target_again():
    whole = make([segment("audio", 6)])
    piece = cut_piece(whole, 4, len(whole), IDS)
    assert names(piece)[:3] == ["<|audio|>", "audio", "audio"]
    assert piece.unit_loss["audio"].all() and not piece.token_loss[0]


def test_plain_positions_keep_their_units():
    whole = make([text(3), segment("image", 3)])
    part = cut_positions(whole, 5, 8)
    assert names(part) == ["image"] * 3
    assert np.array_equal(part.units["image"], whole.units["image"][:3])


def test_text_is_a_target_after_its_start():
    positions = make([text(3)])
    assert names(positions) == ["<|endoftext|>", "word", "word", "word", "<|endoftext|>"]
    assert positions.token_loss.tolist() == [False, True, True, True, True]


def test_a_caption_is_followed_by_its_picture():
    positions = make([text(2), segment("image", 2)])
    assert names(positions) == ["<|endoftext|>", "word", "word", "<|image|>", *["image"] * 4, "<|/image|>", "<|endoftext|>"]
    assert positions.token_loss.tolist() == [False, True, True, True, *[False] * 6]
    assert positions.unit_loss["image"].all() and not positions.block.any()


def test_a_picture_alone_has_no_token_targets():
    assert not make([segment("image", 2)]).token_loss.any()


def share(condition, packing, segments, count=400) -> float:
    return sum(condition(make(segments, seed, packing)) for seed in range(count)) / count


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_known_share_decides_how_often_a_part_is_given(value):
    packing = PackingSettings(known_share=value, caption_first=1, caption_drop=0)
    assert share(lambda p: p.block.any(), packing, [segment("image", 4)]) == pytest.approx(value, abs=0.08)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_caption_first_decides_what_is_learned_from_a_pair(value):
    packing = PackingSettings(known_share=0, caption_first=value, caption_drop=0)
    assert share(lambda p: names(p)[1] == "word", packing, [text(2), segment("image", 4)]) == pytest.approx(value, abs=0.08)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_caption_drop_decides_how_often_the_caption_is_left_out(value):
    packing = PackingSettings(known_share=0, caption_first=1, caption_drop=value)
    assert share(lambda p: "word" not in names(p), packing, [text(2), segment("audio", 4)]) == pytest.approx(value, abs=0.08)


def test_a_given_part_is_the_first_units_and_sees_itself_both_ways():
    sizes = set()
    for seed in range(60):
        positions = make([segment("image", 4)], seed, PackingSettings(known_share=1))
        blocks = positions.block[positions.sense == 1]
        known = int((blocks > 0).sum())
        sizes.add(known)
        assert (blocks[:known] == 1).all() and not blocks[known:].any()
        assert positions.unit_loss["image"].tolist() == [False] * known + [True] * (8 - known)
    assert sizes == set(range(1, 8))


def test_each_frame_of_a_clip_has_its_own_given_part():
    positions = make([segment("video", 3)], 1, PackingSettings(known_share=1))
    blocks, frames = positions.block[positions.sense == 3], positions.grid["video"][:, 0]
    for frame in range(3):
        here = blocks[frames == frame]
        known = int((here > 0).sum())
        assert 1 <= known < 4 and (here[:known] == frame + 1).all() and not here[known:].any()


def test_a_picture_that_is_described_is_looked_at_whole():
    positions = make([text(2), segment("image", 2)], 0, PackingSettings(caption_first=0))
    assert names(positions) == ["<|endoftext|>", "<|image|>", *["image"] * 4, "<|/image|>", "word", "word", "<|endoftext|>"]
    assert (positions.block[positions.sense == 1] == 1).all() and not positions.unit_loss["image"].any()
    assert positions.token_loss.tolist() == [False] * 7 + [True] * 3


def test_sound_and_series_are_causal():
    for sense in ("audio", "series"):
        positions = make([segment(sense, 4)], 0, PackingSettings(known_share=1))
        assert not positions.block.any() and positions.unit_loss[sense].all()


def test_two_pictures_never_share_a_block():
    positions = make([segment("image", 2), segment("image", 3)], 0, PackingSettings(known_share=1))
    first, second = positions.block[positions.sense == 1][:4], positions.block[positions.sense == 1][4:]
    assert not set(first[first > 0]) & set(second[second > 0])


@given(st.integers(3, 60), st.integers(0, 99))
def test_a_filled_in_middle_keeps_length_and_content(count, seed):
    tokens = np.arange(100, 100 + count, dtype=np.int32)
    filled = fill_in_middle(tokens, IDS, np.random.default_rng(seed)).tolist()
    prefix, suffix, middle = (filled.index(IDS[f"<|fim_{name}|>"]) for name in ("prefix", "suffix", "middle"))
    assert len(filled) == count and prefix == 0 < suffix < middle
    assert filled[1:suffix] + filled[middle + 1 :] + filled[suffix + 1 : middle] == tokens[:-3].tolist()


@pytest.mark.parametrize("name", ["fim_text", "fim_code", "known_share", "caption_first", "caption_drop"])
def test_shares_outside_of_0_to_1_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        PackingSettings(**{name: 1.2})
