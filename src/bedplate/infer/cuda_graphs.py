"""Steps in which sequences say their next tokens, as CUDA graphs: a launch for the whole step instead of one for each operation.

    decode = Decode(compute, width, scratch_page, device, dtype, cuda_graphs(device))
    if few_each(step):
        states = decode.states(step)

Every position is a row of its own with its sequence's pages, so a token and the guesses behind it are some rows more. A graph computes arrays of one
size that lie in one place. So there is one for each of a few sizes, recorded when it is first needed; a step is filled up to the next one: rows with a
sequence of one position on a page that nobody owns, tables with that page, which no row looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bedplate.infer.step import PAGE, Step
from bedplate.infer.torch_step import Group, Inputs, slots

LEAST_PAGES = 8
"""Width of the narrowest table."""
FEW = 16
"""Positions of one sequence: its keys are read for each of them."""
MOST_ROWS = 256
"""Of a graph."""
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Makes of a computation one that is quicker to repeat. What it reads and what it gives stay in their places."""


def few_each(step: Step) -> bool:
    """Whether a step is a few positions of each sequence, that the base alone computes and that see nothing behind themselves."""
    few = len(step.x) <= MOST_ROWS and np.bincount(step.sequence).max() <= FEW
    return bool(few and not step.segments and step.layers is None and (step.until == step.position).all())


def cuda_graphs(device: torch.device) -> Record:
    """A `Record`: what is to be repeated is computed twice, so that libraries choose their ways, then recorded. Other threads may use the GPU meanwhile.

    Args:
        device: a GPU.
    """
    pool = torch.cuda.graph_pool_handle()  # one after the other is replayed, so what lies between first and last may share its places

    def record(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                compute()
                compute()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
                result = compute()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    return record


class Decode:
    """Steps of a few positions a sequence, recorded once for each size."""

    def __init__(self, compute: Callable[[Inputs], Tensor], width: int, scratch_page: int, device: torch.device, dtype: torch.dtype, record: Record) -> None:
        """Nothing is recorded.

        Args:
            compute: the last states [n d] of a step.
            width: of a position.
            scratch_page: a page of the cache that no sequence owns.
            device: where to compute.
            dtype: of `Inputs.x`.
            record: see there.
        """
        self._compute, self._width, self._scratch_page = compute, width, scratch_page
        self._device, self._dtype, self._record = device, dtype, record
        self._recorded: dict[tuple[int, int], _Recorded] = {}

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Rows and pages of what was recorded."""
        return sorted(self._recorded)

    def states(self, step: Step) -> Float[Tensor, "n d"]:
        """The last states of a step; overwritten by the next."""
        rows, pages = _power(len(step.x)), max(LEAST_PAGES, _power(step.table.shape[1]))
        numbers = torch.from_numpy(self._padded(step, rows, pages))
        if (rows, pages) not in self._recorded:
            self._recorded[rows, pages] = self._begin(rows, numbers)
        recorded = self._recorded[rows, pages]
        recorded.x[: len(step.x)].copy_(torch.from_numpy(step.x))
        recorded.numbers.copy_(numbers)
        return recorded.replay()[: len(step.x)]

    def _padded(self, step: Step, rows: int, pages: int) -> Int[np.ndarray, "b 2+p"]:
        """Of each row its position, where its key goes, and its sequence's pages."""
        n, width = len(step.x), step.table.shape[1]
        numbers = np.full((rows, 2 + pages), self._scratch_page, np.int64)
        numbers[:, 0], numbers[:, 1] = 0, self._scratch_page * PAGE
        numbers[:n, 0], numbers[:n, 1], numbers[:n, 2 : 2 + width] = step.position, step.slot, step.table[step.sequence]
        return numbers

    def _begin(self, rows: int, numbers: Int[Tensor, "b 2+p"]) -> _Recorded:
        x = torch.zeros(rows, self._width, dtype=self._dtype, device=self._device)
        # Recording computes: until it is done all rows are filling, and no page of anybody is written.
        here = torch.full(numbers.shape, self._scratch_page, dtype=torch.int64, device=self._device)
        here[:, 0], here[:, 1] = 0, self._scratch_page * PAGE
        alone = torch.arange(rows, device=self._device)[:, None]

        def compute() -> Tensor:
            position = here[:, 0]
            return self._compute(Inputs(x, position, position, here[:, 1], [Group(alone, slots(here[:, 2:]))]))

        return _Recorded(x, here, self._record(compute))


class _Recorded(NamedTuple):
    """What a graph reads, and how it is computed again."""

    x: Float[Tensor, "b d"]
    numbers: Int[Tensor, "b 2+p"]
    replay: Callable[[], Tensor]


def _power(count: int) -> int:
    """The first power of two that is no smaller."""
    return 1 << (count - 1).bit_length()
