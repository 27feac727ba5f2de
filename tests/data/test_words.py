"""Words as numbers: the fast numpy path against a slow twin."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bedplate.data.words import runs, split_words


def own_character(c: str) -> bool:
    return 0xE3 <= c.encode("utf-8", errors="replace")[0] <= 0xED


def twin(text: str) -> list[str]:
    """Letters, digits, underscores and all beyond ASCII make words; three-byte characters from U+3000 stand alone."""
    words, current = [], ""
    for c in text.lower().encode("utf-8", errors="replace").decode():
        inside = c == "_" or (c.isascii() and c.isalnum()) or not c.isascii()
        if inside and own_character(c):
            words += [current, c]
            current = ""
        elif inside:
            current += c
        else:
            words.append(current)
            current = ""
    return [word for word in [*words, current] if word]


@given(st.text(alphabet=st.sampled_from(list("aB1_ .,\n'-é日本ñ🌊中x\u0130")), max_size=60) | st.text(max_size=60))
def test_cut_like_the_twin(text):
    words = split_words(text)
    data = text.lower().encode("utf-8", errors="replace")
    assert [data[a:b].decode() for a, b in zip(words.start, words.end)] == twin(text)


def test_equal_words_have_equal_hashes_wherever_they_stand():
    a, b = split_words("one two three two"), split_words("... TWO, one!")
    assert a.hashes[1] == a.hashes[3] == b.hashes[0] and a.hashes[0] == b.hashes[1]
    assert len(np.unique(a.hashes)) == 3


def test_hashes_do_not_change_between_versions():
    assert split_words("bedplate").hashes[0] == np.uint64(HASH)


def test_no_collisions_among_many_words():
    text = " ".join(f"w{number}" for number in range(200_000))
    assert len(np.unique(split_words(text).hashes)) == 200_000


def test_lettered_marks_words_with_a_letter():
    assert split_words("a1 12 _ é").lettered.tolist() == [True, False, False, True]


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 5))
def test_runs_are_equal_where_the_words_are(values, length):
    found = runs(np.array(values, np.uint64), length)
    stretches = [tuple(values[i : i + length]) for i in range(len(values) - length + 1)]
    assert len(found) == len(stretches)
    assert len(set(found.tolist())) == len(set(stretches))


HASH = 5321559975746650274
