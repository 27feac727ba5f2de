"""What a request says next: the tokens that a step's logits come to, guesses ahead among them."""

from __future__ import annotations

from collections import Counter

import numpy as np
from jaxtyping import Float, Int

from bedplate.core.generation import Finish
from bedplate.infer.request import Drawn
from bedplate.infer.sampling import draw, logprobs, plain
from bedplate.infer.sequence import Running
from bedplate.infer.speculate import accepted
from bedplate.infer.step import Runner


class Saying:
    """Draws for every request; counts guesses and those that came true."""

    def __init__(self, special: set[int], drafts: int, counters: Counter[str]) -> None:
        """Nothing was drawn yet.

        Args:
            special: tokens that are no text, marks of other senses.
            drafts: most guesses ahead of one request.
            counters: where to count.
        """
        self._special, self._drafts, self._counters = special, drafts, counters
        self._forbidden: dict[frozenset[int], Int[np.ndarray, "f"]] = {}

    def never(self, running: Running) -> Int[np.ndarray, "f"]:
        """Tokens that are no text: marks of other senses, and ends where the answer must go on."""
        ends = frozenset() if running.request.sampling.ignore_end else running.request.ends
        known = self._forbidden.get(ends)
        if known is None:
            every = (self._special | running.request.ends) - ends
            known = self._forbidden[ends] = np.array(sorted(every), np.int64)
        return known

    def said(self, running: Running, logits: Float[np.ndarray, "k v"], likeliest: Int[np.ndarray, "k"]) -> tuple[list[Drawn], Finish | None]:
        """Tokens that a step adds: one, and as many more as were guessed right; why the answer ends, where it does."""
        request = running.request
        sampling, constraint, draft = request.sampling, request.constraint, running.drafted
        simple = plain(sampling, constraint)
        drawn: list[Drawn] = []
        finish: Finish | None = None
        while finish is None:
            number = len(drawn)
            if simple:
                one = Drawn(int(likeliest[number]), float("nan"))
            else:
                said = np.concatenate([running.ids[running.asked : running.length], np.array([d.token for d in drawn], np.int64)])
                one = draw(logits[number], sampling, running.length + number, running.ids[: running.asked], said, constraint)
            if one.token in request.ends and not sampling.ignore_end:
                finish = "stop"
                break
            drawn.append(one)
            if constraint is not None:
                constraint.advance(one.token)
                if constraint.ended:
                    finish = "stop"
            if running.said + len(drawn) >= sampling.max_tokens:
                finish = finish or "length"
            if number >= len(draft) or draft[number] != one.token:
                break
        if len(draft):
            right = accepted(draft, [d.token for d in drawn])
            self._counters["drafted"] += len(draft)
            self._counters["accepted"] += right
            running.guess_most = min(2 * running.guess_most, self._drafts) if right == len(draft) else max(1, right)
        return drawn, finish

    def guess(self, running: Running, room: int) -> None:
        """Guess what a request says next, within the rows that cost hardly more than one."""
        most = min(running.guess_most, self._drafts, room, running.most - running.length - 1)
        if running.lookup is None or most <= 0:
            return
        running.drafted = running.lookup.draft(most)
        if running.request.constraint is not None and len(running.drafted):
            running.drafted = running.drafted[: running.request.constraint.kept(running.drafted)]


def read(running: Running, runner: Runner, rows: int) -> list[Drawn]:
    """The tokens of a prompt with their log-probabilities.

    Args:
        running: whose states are collected.
        runner: makes logits of them.
        rows: at once.
    """
    states = np.concatenate(running.collected)
    running.collected = []
    tokens, most = running.request.positions.tokens, running.request.prompt_logprobs or 0
    told = [Drawn(int(tokens[0]), float("nan"))]
    for start in range(0, running.asked - 1, rows):
        end = min(start + rows, running.asked - 1)
        logits = runner.logits(states[start:end])
        for row in range(start, end):
            text = running.request.positions.sense[row + 1] == 0
            one = logprobs(logits[row - start], int(tokens[row + 1]), most)
            told.append(one if text else Drawn(int(tokens[row + 1]), float("nan")))
    return told
