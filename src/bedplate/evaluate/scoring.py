"""Teacher-forced scoring: how likely a model finds continuations, many at a time.

Rows go in portions of like length, longest first. Where the rows of one example share a long prefix (one question, several answers), the
prefix is read once and every tail continues from its cached keys and values. Which rows meet in a portion follows from all rows of a task
alone, so a task that was interrupted gives the same bits as one that was not; another size of portion changes nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bedplate.adapt.base import Base
from bedplate.adapt.encode import collate, said
from bedplate.adapt.encode import compose as join
from bedplate.core.errors import DataError
from bedplate.model.batch import to_torch
from bedplate.model.transformer import Cache
from bedplate.pretrain.step import autocast

POSITIONS = 4096
"""In one portion, padding counted."""
LOGITS_AT_ONCE = 512
"""Targets whose logits exist at the same time."""
PAYS = 0.3
"""Share of all positions that shared prefixes must save, for the smaller portions that they make cost time too."""


class Row(NamedTuple):
    """A sequence of tokens, and from where on it is scored."""

    ids: Int[np.ndarray, "t"]
    start: int
    """Index of the first token that is scored; at least 1, for nothing predicts the first."""


class Scored(NamedTuple):
    """How likely the scored tokens are, given those before."""

    log_probability: float
    """Sum, in nats."""
    tokens: int
    likeliest: bool
    """Whether each is the likeliest token where it stands."""


Family = Sequence[Row]
"""The rows of one example: they are scored together, and share a prefix where they have one."""


@dataclass(frozen=True)
class Scorer:
    """Scores with one base, adapted or not.

    Args:
        base: the model with its tokenizer.
        dtype: of the network's products.
        positions: in one portion.
        share: whether prefixes are shared; None: where that pays.
    """

    base: Base
    dtype: torch.dtype = torch.float32
    positions: int = POSITIONS
    share: bool | None = None

    # Text to rows.

    @property
    def longest(self) -> int:
        """Positions that the model reads at once; the token behind the last can be scored too."""
        return self.base.model.config.max_position_embeddings

    @property
    def begin(self) -> list[int]:
        """What stands before every text: the mark between documents, where the model knows one."""
        config = self.base.model.config
        mark = config.special_ids.get("<|endoftext|>", config.begin_token_id)
        return [] if mark is None else [mark]

    def row(self, context: str, continuation: str) -> Row:
        """A continuation to be scored behind its context; both are encoded as one text, and spaces between them belong to the continuation.

        Raises:
            DataError: the continuation is empty, or longer than the model can hold.
        """
        bare = context.rstrip()
        whole, before = (self.base.encoder.encode(text).tolist() for text in (context + continuation, bare))
        ids = [*self.begin, *whole]
        start = len(self.begin) + min(len(before), len(whole) - 1)
        if not continuation.strip() or not whole:
            raise DataError(f"there is nothing to score behind {context[-40:]!r}", "give a continuation that is not blank")
        if len(ids) - start > self.longest:
            raise DataError(f"a continuation of {len(ids) - start} tokens does not fit", f"the model holds {self.longest} positions")
        cut = max(0, len(ids) - self.longest - 1)  # what does not fit is taken off the beginning
        return Row(np.array(ids[cut:], np.int32), max(1, start - cut))

    def windows(self, text: str) -> list[Row]:
        """A text of any length as rows in which each of its tokens is scored once, behind as many of those before as fit."""
        ids = self.base.encoder.encode(text).tolist()
        whole = np.array(self.begin + ids, np.int32)
        first, rows = len(self.begin) or 1, []
        while first < len(whole):
            end = min(len(whole), first + self.longest)
            begin = max(0, end - self.longest - 1)
            rows.append(Row(whole[begin:end], first - begin))
            first = end
        return rows

    # Portions.

    def portions(self, families: Sequence[Family]) -> list[list[int]]:
        """Indices of families that are scored together, those that take longest first."""
        shared = self.shares(families)
        # A portion with shared prefixes has no padding in them: their lengths are equal.
        size = [(prefix(family) if shared else 0, max((len(row.ids) for row in family), default=0)) for family in families]
        parts: list[list[int]] = []
        rows = longest = 0
        for index in sorted(range(len(families)), key=lambda i: size[i], reverse=True):
            added = max(1, len(families[index]))
            fits = parts and (rows + added) * longest <= self.positions and size[parts[-1][0]][0] == size[index][0]
            if not fits:
                parts.append([])
                rows = longest = 0
            parts[-1].append(index)
            rows, longest = rows + added, max(longest, size[index][1])
        return parts

    def shares(self, families: Sequence[Family]) -> bool:
        """Whether prefixes are read once."""
        if self.share is not None:
            return self.share and all(prefix(family) for family in families if family)
        everything = sum(len(row.ids) for family in families for row in family)
        saved = sum(prefix(family) * (len(family) - 1) for family in families if family)
        return saved > PAYS * everything and all(prefix(family) for family in families if family)

    # Numbers.

    def score(self, families: Sequence[Family]) -> list[list[Scored]]:
        """The scores of all rows, by family, in order."""
        found: list[list[Scored]] = [[] for _ in families]
        shared = self.shares(families)
        for part in self.portions(families):
            for index, scored in zip(part, self.score_portion([families[i] for i in part], shared)):
                found[index] = scored
        return found

    @torch.inference_mode()
    def score_portion(self, families: Sequence[Family], shared: bool) -> list[list[Scored]]:
        """The scores of one portion.

        Args:
            families: with prefixes of one length where those are shared.
            shared: read prefixes once.
        """
        rows = [row for family in families for row in family]
        if not rows:
            return [[] for _ in families]
        model = self.base.model
        with autocast(model.head.device, self.dtype):
            hidden, offset = self._behind_prefixes(families) if shared else (self._hidden([row.ids[:-1] for row in rows]), 0)
            states, targets = [], []
            for row, state in zip(rows, hidden):
                states.append(state[row.start - 1 - offset : len(row.ids) - 1 - offset])
                targets.append(torch.from_numpy(row.ids[row.start :].astype(np.int64)))
            log_p, likeliest = self._judge(torch.cat(states), torch.cat(targets).to(model.head.device))
        scored = iter(_sums(rows, log_p, likeliest))
        return [[next(scored) for _ in family] for family in families]

    def _behind_prefixes(self, families: Sequence[Family]) -> tuple[Float[Tensor, "b t d"], int]:
        """States of the tails, and how many positions stand before them."""
        length = prefix(families[0])
        cache = Cache(self.base.model.config.num_hidden_layers)
        self._hidden([family[0].ids[:length] for family in families], cache)
        copies = torch.tensor([len(family) for family in families], device=self.base.model.head.device)
        cache.keys = [None if keys is None else keys.repeat_interleave(copies, 0) for keys in cache.keys]
        cache.values = [None if values is None else values.repeat_interleave(copies, 0) for values in cache.values]
        return self._hidden([row.ids[length:-1] for family in families for row in family], cache), length

    def _hidden(self, ids: Sequence[np.ndarray], cache: Cache | None = None) -> Float[Tensor, "b t d"]:
        model = self.base.model
        batch = to_torch(collate([join([said(one, False)], model.config) for one in ids], self.base.pad_id), model.head.device)
        hidden: Tensor = model.model(model.embed(batch), None, cache)
        return hidden

    def _judge(self, states: Float[Tensor, "n d"], targets: Int[Tensor, "n"]) -> tuple[np.ndarray, np.ndarray]:
        """(log probability, whether it is the likeliest) of each target."""
        log_p, likeliest = [], []
        for start in range(0, len(targets), LOGITS_AT_ONCE):
            logits, wanted = self.base.model.logits(states[start : start + LOGITS_AT_ONCE]).float(), targets[start : start + LOGITS_AT_ONCE]
            log_p.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1))
            likeliest.append(logits.argmax(1) == wanted)
        return torch.cat(log_p).double().cpu().numpy(), torch.cat(likeliest).cpu().numpy()


def prefix(family: Family) -> int:
    """Tokens that all rows of a family begin with and none of them scores; at least one state is left to predict from."""
    longest = min((min(row.start, len(row.ids) - 1) for row in family), default=1) - 1
    first = family[0].ids[:longest]
    for row in family[1:]:
        apart = np.flatnonzero(row.ids[: len(first)] != first)
        first = first[: apart[0]] if len(apart) else first
    return len(first)


def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2)


def _sums(rows: Sequence[Row], log_p: np.ndarray, likeliest: np.ndarray) -> Iterator[Scored]:
    at = 0
    for row in rows:
        count = len(row.ids) - row.start
        yield Scored(float(log_p[at : at + count].sum()), count, bool(likeliest[at : at + count].all()))
        at += count
