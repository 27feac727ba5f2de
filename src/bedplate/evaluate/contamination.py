"""Contamination: which examples a model may have seen, because its training corpus shares a run of thirteen words with them.

The search is the one by which `data build` keeps evaluation texts out of a corpus. An example shorter than that is looked for as a whole; one
of fewer than eight words cannot be looked for, and is counted as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.core.run import Run
from bedplate.data.corpus import Corpus
from bedplate.data.decontaminate import FEWEST_WORDS, RUN_WORDS, Evaluations
from bedplate.data.words import runs, split_words
from bedplate.evaluate.kinds import Example
from bedplate.evaluate.report import Judged, as_json, scores

TELL_EVERY = 1000
"""Documents between two words of progress."""


@dataclass(frozen=True)
class Searched:
    """What was found of each task's examples in a corpus."""

    corpus: str
    """Digest of its manifest."""
    seen: Mapping[str, frozenset[str]]
    """Task -> ids of examples that share a run."""
    too_short: Mapping[str, frozenset[str]]
    """Task -> ids of examples that say too little to be looked for."""

    def of(self, judged: Judged, seed: int) -> dict[str, Any]:
        """What a report says of a task: how many were seen, and the scores of those that were not."""
        seen = self.seen[judged.name]
        clean = [name for name in judged.values if name not in seen]
        found = scores(judged, seed, clean) if seen and clean else {}
        told = {"seen": len(seen), "too_short": len(self.too_short[judged.name]), "run_words": RUN_WORDS, "ids": sorted(seen)}
        return {**told, "scores_without": [as_json(measure, found[measure.name]) for measure in judged.measures if measure.name in found]}


def look_for(tasks: Mapping[str, Sequence[Example]], folder: Path, run: Run) -> Searched:
    """Look for examples in the text that a corpus trains on.

    Args:
        tasks: name -> its examples.
        folder: a corpus.
        run: is told how far the search is.
    Raises:
        DataError: it is no corpus.
    """
    corpus = Corpus.open(folder)
    texts = {(task, example.id): split_words(example.own_text).hashes for task, examples in tasks.items() for example in examples}
    known = Evaluations.gather((name, example.own_text) for name, examples in tasks.items() for example in examples)
    hit = {length: np.zeros(len(hashes), bool) for length, hashes in known.hashes.items()}
    documents = [int(number) for component in corpus.components for number in corpus.table(component, "train").document]
    for count, document in enumerate(documents, 1):
        words = split_words(corpus.text(document)).hashes
        for length, found in hit.items():
            found[known.hits(words, length)] = True
        if count % TELL_EVERY == 0 or count == len(documents):
            run.events.emit("progress", done=count, total=len(documents), unit="documents", label="looking for examples")

    def shares(words: np.ndarray) -> bool:
        length = min(RUN_WORDS, len(words))
        return length >= FEWEST_WORDS and bool(hit[length][np.searchsorted(known.hashes[length], runs(words, length))].any())

    seen = {task: frozenset(example.id for example in examples if shares(texts[task, example.id])) for task, examples in tasks.items()}
    short = {task: frozenset(e.id for e in examples if len(texts[task, e.id]) < FEWEST_WORDS) for task, examples in tasks.items()}
    return Searched(corpus.manifest.digest, seen, short)
