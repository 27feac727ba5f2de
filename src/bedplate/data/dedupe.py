"""Duplicates: the same content once, and texts that are nearly the same once.

Exact: a digest of the normalised content. Near: MinHash over runs of five words, cut into bands; two texts that agree in a band are
compared by their whole signatures. The first one stays.

Why our own signatures: they come from word hashes that other filters have computed already. Measured on 20 MB of prose and code in texts
of 5 kB, one core of a busy two-core machine: one-permutation hashing in numpy 150 MB/s given the word hashes, which take about 50 MB/s to make;
rensa 24 MB/s and datasketch 2.0 5 MB/s, with five-word runs as strings and as many values. So alone ours would be a little faster than
rensa, and here it is nearly free; and a signature depends on no library's version.

What it needs: a document takes 12 bytes x (12 bands + 1) in tables that are 30% to 60% full, and a signature of 288 bytes in a temporary
file: for 10 million documents 3 to 6 GB of memory and 2.9 GB of disk. Pictures that agree in half of
dHash are compared by the miniature that it was made from, since simple drawings share it without being the same.

Sources: Broder (1997), MinHash; Li, Owen, Zhang (2012), one-permutation hashing; Shrivastava (2017), densification; the five-word runs and
similarity of about 0.75 follow FineWeb (Penedo et al., 2024).
"""

from __future__ import annotations

import array
import hashlib
import tempfile
from collections.abc import Callable
from typing import IO

import numpy as np
from jaxtyping import UInt8, UInt32, UInt64

from bedplate.data.words import runs

BANDS, BAND_ROWS = 12, 6
SIGNATURE = BANDS * BAND_ROWS
RUN_WORDS = 5
FEWEST_RUNS = 16
"""A shorter text has too few runs for an honest estimate; it is only compared exactly."""

Signature = UInt32[np.ndarray, "s"]
"""MinHash values of a text."""
Miniature = UInt8[np.ndarray, "s"]
"""An 8 x 9 grey picture."""
MOST_DISTANCE = 12
"""Two pictures that agree in half of dHash are near-duplicates when no place of their miniatures differs by more grey levels. The largest
difference, not the mean: two written ones, thin strokes on black, differ little on average."""


def signature(hashes: UInt64[np.ndarray, "w"]) -> Signature | None:
    """The MinHash signature of a text's words; None when the text is too short for one.

    One-permutation hashing: each run's hash chooses a bin and a value, a bin keeps its least value; an empty bin borrows from a bin chosen
    by a hash of its own number and the attempt, so that two equal sets borrow alike.
    """
    values = runs(hashes, RUN_WORDS)
    if len(values) < FEWEST_RUNS:
        return None
    bins = ((values >> np.uint64(32)) * np.uint64(SIGNATURE)) >> np.uint64(32)
    least = np.full(SIGNATURE, 0xFFFFFFFF, np.uint32)
    np.minimum.at(least, bins.astype(np.int64), (values & np.uint64(0xFFFFFFFF)).astype(np.uint32))
    full = np.zeros(SIGNATURE, bool)
    full[bins.astype(np.int64)] = True
    empty = np.flatnonzero(~full)
    if len(empty):
        lenders = _LENDERS[empty]  # [e attempts]
        first = full[lenders].argmax(1)
        chosen = lenders[np.arange(len(empty)), first]
        fallback = np.flatnonzero(full)[0]
        least[empty] = least[np.where(full[chosen], chosen, fallback)]
    return least


def similarity(a: Signature, b: Signature) -> float:
    """Estimate of the Jaccard similarity of two texts' sets of runs, with a standard deviation of at most 0.06."""
    return float((a == b).mean())


def exact_key(content: bytes) -> int:
    """64 bits of a content digest: among 10 million documents two different ones collide with a chance of 3 in a million."""
    return int.from_bytes(content[:8], "little")


def text_digest(text: str) -> bytes:
    """Digest of a text without regard to case and white space."""
    return hashlib.sha256(" ".join(text.lower().split()).encode("utf-8", errors="replace")).digest()


def miniature(pixels: np.ndarray) -> Miniature | None:
    """8 x 9 grey values of a picture: another size or compression gives nearly the same. None for one without any contrast.

    Args:
        pixels: uint8 [h w c].
    """
    from PIL import Image

    grey = Image.fromarray(pixels.mean(2).astype(np.float32))
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.float32)
    return small.round().astype(np.uint8).reshape(-1) if small.max() - small.min() >= 8 else None


def difference_hash(small: Miniature) -> int:
    """dHash: the 64 signs of differences between neighbours in a miniature."""
    rows = small.reshape(8, 9).astype(np.int16)
    return int(np.packbits(rows[:, 1:] > rows[:, :-1]).view(np.uint64)[0])


class Duplicates:
    """What was kept so far; says of each new document whether it is a duplicate, and of which.

    Args:
        exact: look for equal content.
        near: look for nearly equal texts and pictures.
        threshold: least estimated similarity of near-duplicate texts.
    """

    def __init__(self, exact: bool = True, near: bool = True, threshold: float = 0.75) -> None:
        self._look_exact, self._look_near, self._threshold = exact, near, threshold
        self._exact = Table()
        self._texts, self._pictures = _Kept(np.dtype(np.uint32)), _Kept(np.dtype(np.uint8))

    def find(self, content: bytes, near: Signature | Miniature | None) -> tuple[str, int] | None:
        """("duplicate" or "near-duplicate", number of the document that was kept), or None.

        Args:
            content: digest of the content.
            near: signature of a text, miniature of a picture, or nothing.
        """
        if self._look_exact and (at := self._exact.get(exact_key(content))) is not None:
            return "duplicate", at
        if self._look_near and near is not None:
            if near.dtype == np.uint8:
                alike = self._pictures.first(_picture_keys(near), lambda other: picture_distance(near, other) <= MOST_DISTANCE)
            else:
                alike = self._texts.first(_band_keys(near), lambda other: similarity(near, other) >= self._threshold)
            if alike is not None:
                return "near-duplicate", alike
        return None

    def keep(self, document: int, content: bytes, near: Signature | Miniature | None) -> None:
        """Remember a document that is kept."""
        if self._look_exact:
            self._exact.put(exact_key(content), document)
        if self._look_near and near is not None:
            if near.dtype == np.uint8:
                self._pictures.put(document, _picture_keys(near), near)
            else:
                self._texts.put(document, _band_keys(near), near)


class _Kept:
    """Vectors on disk, found by keys in memory."""

    def __init__(self, dtype: np.dtype[np.uint32] | np.dtype[np.uint8]) -> None:
        self._dtype, self._row_bytes = dtype, SIGNATURE * dtype.itemsize
        self._keys = Table()
        self._documents = array.array("I")
        self._vectors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object

    def first(self, keys: UInt64[np.ndarray, "n"], alike: Callable[[np.ndarray], bool]) -> int | None:
        for place in self._keys.get_all(keys):
            self._vectors.seek(place * self._row_bytes)
            if alike(np.frombuffer(self._vectors.read(self._row_bytes), self._dtype)):
                return self._documents[place]
        return None

    def put(self, document: int, keys: UInt64[np.ndarray, "n"], vector: np.ndarray) -> None:
        self._vectors.seek(0, 2)
        self._vectors.write(vector.tobytes())
        self._keys.put_all(keys, len(self._documents))
        self._documents.append(document)


def picture_distance(a: Miniature, b: Miniature) -> int:
    """Largest difference of two miniatures in grey levels of 255."""
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())


class Table:
    """uint64 -> uint32 in two flat arrays (open addressing, linear probing): 12 bytes an entry at 60% full, where a dict takes 100."""

    def __init__(self, slots: int = 1 << 12) -> None:
        self._keys = np.zeros(slots, np.uint64)
        self._values = np.zeros(slots, np.uint32)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def get(self, key: int) -> int | None:
        """The value of a key, or None."""
        slot = self._slot(key or 1)
        return int(self._values[slot]) if self._keys[slot] else None

    def put(self, key: int, value: int) -> None:
        """Set a key; an existing one keeps its first value."""
        key = key or 1  # 0 marks a free slot
        slot = self._slot(key)
        if not self._keys[slot]:
            self._keys[slot], self._values[slot] = key, value
            self._used += 1
            if self._used > 0.6 * len(self._keys):
                self._grow()

    def get_all(self, keys: UInt64[np.ndarray, "n"]) -> list[int]:
        """The different values of those keys that are there, in order of the keys."""
        mask = len(self._keys) - 1
        slots = keys.astype(np.int64) & mask
        found: dict[int, None] = {}
        for key, slot, first in zip(keys.tolist(), slots.tolist(), self._keys[slots].tolist()):
            if first:  # most keys meet a free slot at once
                place = slot if first == key else self._slot(key)
                if self._keys[place]:
                    found[int(self._values[place])] = None
        return list(found)

    def put_all(self, keys: UInt64[np.ndarray, "n"], value: int) -> None:
        """Set several keys to one value."""
        for key in keys.tolist():
            self.put(key, value)

    def _slot(self, key: int) -> int:
        mask = len(self._keys) - 1
        slot = key & mask
        while (there := int(self._keys[slot])) and there != key:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        keys, values = self._keys[self._keys != 0], self._values[self._keys != 0]
        slots = len(self._keys) * 2
        self._keys, self._values = np.zeros(slots, np.uint64), np.zeros(slots, np.uint32)
        at = keys.astype(np.int64) & (slots - 1)
        left = np.arange(len(keys))
        while len(left):  # place all at once; who finds a taken slot tries the next
            _, winners = np.unique(at[left], return_index=True)
            first = left[winners]
            free = self._keys[at[first]] == 0
            placed = first[free]
            self._keys[at[placed]], self._values[at[placed]] = keys[placed], values[placed]
            left = np.setdiff1d(left, placed, assume_unique=True)
            at[left] = (at[left] + 1) & (slots - 1)


def _band_keys(text: Signature) -> UInt64[np.ndarray, "n"]:
    keys = ((text.astype(np.uint64) + np.uint64(1)) * _BAND_FACTORS).reshape(BANDS, BAND_ROWS).sum(1)
    return np.asarray(keys ^ (keys >> np.uint64(31)) | np.uint64(1))


def _picture_keys(small: Miniature) -> UInt64[np.ndarray, "n"]:
    """The upper and the lower half of the hash: recompression turns a sign here and there, seldom in both."""
    hashed = difference_hash(small)
    return np.array([hashed >> 32 | 1 << 32, (hashed & 0xFFFFFFFF) | 1 << 33], np.uint64)


_BAND_FACTORS = np.random.default_rng(19970611).integers(0, 1 << 64, SIGNATURE, np.uint64) | np.uint64(1)
_LENDERS = np.random.default_rng(20170611).integers(0, SIGNATURE, (SIGNATURE, 64))
"""Bins that an empty bin asks, in turn."""


def pack_state(content: bytes, near: Signature | Miniature | None) -> bytes:
    """What a resumed build must know of a kept document, as bytes: digest, then the vector."""
    return content if near is None else content + near.dtype.char.encode() + near.tobytes()


def unpack_state(state: bytes) -> tuple[bytes, Signature | Miniature | None]:
    """The inverse of `pack_state`."""
    content, kind, vector = state[:32], state[32:33], state[33:]
    return content, np.frombuffer(vector, np.uint8 if kind == b"B" else np.uint32) if kind else None
