"""Duplicates: found, and different things kept apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.data.dedupe import (
    MOST_DISTANCE,
    SIGNATURE,
    Duplicates,
    Table,
    difference_hash,
    miniature,
    pack_state,
    picture_distance,
    signature,
    similarity,
    text_digest,
    unpack_state,
)
from bedplate.data.words import split_words


def text_of(rng, words, vocabulary=3000):
    return [f"w{n}" for n in rng.integers(0, vocabulary, words)]


def sign(words):
    return signature(split_words(" ".join(words)).hashes)


def jaccard(a, b):
    first, second = ({tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in (a, b))
    return len(first & second) / len(first | second)


@pytest.mark.parametrize("words", [60, 300, 3000])
def test_the_estimate_is_close_to_the_truth(words):
    rng = np.random.default_rng(words)
    errors = []
    for _ in range(60):
        a = text_of(rng, words)
        b = list(a)
        for place in rng.integers(0, words, int(words * rng.uniform(0, 0.15))):
            b[place] = "changed"
        errors.append(similarity(sign(a), sign(b)) - jaccard(a, b))
    assert abs(np.mean(errors)) < 0.03 and np.std(errors) < 0.08


def test_near_duplicates_are_found_and_others_are_not():
    rng = np.random.default_rng(0)
    found = wrong = 0
    duplicates = Duplicates()
    originals = [text_of(rng, 200) for _ in range(100)]
    for number, words in enumerate(originals):
        assert duplicates.find((number + 2).to_bytes(32, "little"), sign(words)) is None
        duplicates.keep(number, (number + 2).to_bytes(32, "little"), sign(words))
    for number, words in enumerate(originals):
        changed = list(words)
        changed[50] = changed[150] = "other"  # similarity about 0.9
        found += duplicates.find(b"x" * 32, sign(changed)) == ("near-duplicate", number)
        wrong += duplicates.find(b"y" * 32, sign(text_of(rng, 200))) is not None
    assert found >= 97 and wrong == 0


def test_settings_turn_each_search_off():
    words = sign(text_of(np.random.default_rng(1), 100))
    for exact, near, expected in ((True, True, "duplicate"), (False, True, "near-duplicate"), (False, False, None)):
        duplicates = Duplicates(exact, near)
        duplicates.keep(7, b"a" * 32, words)
        found = duplicates.find(b"a" * 32, words)
        assert (found and found[0]) == expected


def test_threshold_decides():
    rng = np.random.default_rng(2)
    a = text_of(rng, 200)
    b = list(a)
    b[40] = b[120] = b[180] = "other"
    for threshold, expected in ((0.5, True), (1.0, False)):
        duplicates = Duplicates(threshold=threshold)
        duplicates.keep(0, b"a" * 32, sign(a))
        assert (duplicates.find(b"b" * 32, sign(b)) is not None) == expected


def test_short_texts_have_no_signature():
    assert signature(split_words("only a few words here").hashes) is None


def test_case_and_space_do_not_matter_for_exact():
    assert text_digest("A  b\n\nC") == text_digest("a b c") != text_digest("a b d")


def picture(rng, size=32):
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y + rng.uniform(0, 6)) for _ in range(3)]
    return np.clip(np.stack(waves, -1) * 100 + 128, 0, 255).astype(np.uint8)


def test_recompressed_and_resized_pictures_are_duplicates():
    import io

    from PIL import Image

    rng = np.random.default_rng(3)
    same = different = 0
    pictures = [picture(rng, 64) for _ in range(60)]
    duplicates = Duplicates()
    for number, pixels in enumerate(pictures):
        different += duplicates.find((number + 2).to_bytes(32, "little"), miniature(pixels)) is not None
        duplicates.keep(number, (number + 2).to_bytes(32, "little"), miniature(pixels))
    for number, pixels in enumerate(pictures):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=85)
        again = np.asarray(Image.open(file).resize((60, 60)))
        same += duplicates.find(b"z" * 32, miniature(again)) == ("near-duplicate", number)
    assert different == 0 and same >= 50


def test_simple_drawings_with_one_hash_are_kept_apart():
    a, b = np.zeros((28, 28, 1), np.uint8), np.zeros((28, 28, 1), np.uint8)
    a[4:24, 12:15], b[4:24, 12:17] = 255, 90
    small_a, small_b = miniature(a), miniature(b)
    assert difference_hash(small_a) == difference_hash(small_b)
    assert picture_distance(small_a, small_b) > MOST_DISTANCE
    assert miniature(np.full((28, 28, 1), 9, np.uint8)) is None


@pytest.mark.parametrize("shape", [(4, 4, 1), (1, 1, 3), (8, 9, 1), (5, 300, 3), (7, 8, 1)])
def test_pictures_of_any_shape(shape):
    small = miniature(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))
    assert small is None or small.shape == (SIGNATURE,)


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 20), st.integers(0, 2**32 - 1)), max_size=300))
def test_table_is_a_dict_that_keeps_the_first(pairs):
    table, twin = Table(slots=4), {}
    for key, value in pairs:
        table.put(key, value)
        twin.setdefault(key or 1, value)
    assert len(table) == len(twin)
    assert all(table.get(key) == value for key, value in twin.items())
    keys = np.array([key for key, _ in pairs] + [12345678901], np.uint64)
    expected = list(dict.fromkeys(twin[k] for k in keys.tolist() if k in twin))
    assert table.get_all(keys) == expected or 0 in keys


def test_state_of_a_kept_document_comes_back():
    for near in (None, np.arange(SIGNATURE, dtype=np.uint32), np.arange(SIGNATURE, dtype=np.uint8)):
        content, again = unpack_state(pack_state(b"c" * 32, near))
        assert content == b"c" * 32
        assert (again is None) == (near is None) and (near is None or (np.array_equal(again, near) and again.dtype == near.dtype))
