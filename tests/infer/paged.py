"""Sequences through a runner: in any portions, side by side, on any pages."""

import numpy as np
import torch

from bedplate.infer.sequence import _until
from bedplate.infer.step import PAGE, Segment, Shape, Step

CONTEXT = 96


def shape(precision="float32", threads=1, pages=64, positions=256, rows=64):
    return Shape(precision, CONTEXT, pages, positions, rows, threads, 6)


def through(runner, sequences, borders=(), permutation=None, adapters=None, blocks=None, layers=None):
    """States [t d] of each sequence (and means, where `layers` asks), computed side by side in portions that end at the borders.

    Args:
        runner: any.
        sequences: embedded positions [t d] of each.
        borders: positions at which portions end.
        permutation: of the pages.
        adapters: name of each sequence's adapter, "" for none; equal ones side by side.
        blocks: of each sequence's positions.
        layers: as in Step.
    """
    pages = list(range(runner.pages) if permutation is None else permutation)
    tables = []
    for x in sequences:
        count = -(-len(x) // PAGE)
        tables.append(pages[:count])
        del pages[:count]
    width = max(map(len, tables))
    untils = [_until(np.zeros(len(x), np.int32) if blocks is None else blocks[i]) for i, x in enumerate(sequences)]
    last, mean = [[] for _ in sequences], [[] for _ in sequences]
    ends = [*sorted(set(borders)), max(map(len, sequences))]
    start = 0
    for end in ends:
        parts = [(i, start, min(end, len(x))) for i, x in enumerate(sequences) if len(x) > start]
        start = end
        if not parts:
            continue
        segments, at = [], 0
        for i, first, until in parts:
            name = adapters[i] if adapters else ""
            if name and segments and segments[-1].adapter == name and segments[-1].end == at:
                segments[-1] = segments[-1]._replace(end=at + until - first)
            elif name:
                segments.append(Segment(at, at + until - first, name))
            at += until - first
        places = [np.arange(first, until, dtype=np.int32) for _, first, until in parts]
        step = Step(
            np.ascontiguousarray(np.concatenate([sequences[i][first:until] for i, first, until in parts])),
            np.concatenate([np.full(until - first, row, np.int32) for row, (_, first, until) in enumerate(parts)]),
            np.concatenate(places),
            np.concatenate([untils[i][first:until] for i, first, until in parts]),
            np.concatenate([np.array(tables[i], np.int32)[p // PAGE] * PAGE + p % PAGE for (i, _, _), p in zip(parts, places)]),
            np.array([[*tables[i], *[tables[i][0]] * (width - len(tables[i]))] for i, _, _ in parts], np.int32),
            segments,
            layers,
        )
        states = runner.run(step)
        at = 0
        for i, first, until in parts:
            last[i].append(states.last[at : at + until - first].copy())
            if states.mean is not None:
                mean[i].append(states.mean[at : at + until - first].copy())
            at += until - first
    whole = [np.concatenate(part) for part in last]
    return (whole, [np.concatenate(part) for part in mean]) if layers is not None else whole


@torch.inference_mode()
def plainly(model, x, block=None):
    """The slow twin: the model itself over a whole sequence [t d]."""
    mask = None
    if block is not None and block.any():
        past = torch.ones(len(x), len(x), dtype=torch.bool).tril_()
        numbers = torch.from_numpy(block)
        mask = (past | ((numbers[:, None] == numbers[None]) & (numbers[:, None] > 0)))[None, None]
    return model.model(torch.from_numpy(x)[None], mask)[0].numpy()


def embedded(model, lengths, seed=0):
    """Random tokens' vectors of so many positions."""
    rng = np.random.default_rng(seed)
    table = model.model.embed_tokens.weight.detach().numpy()
    return [table[rng.integers(0, len(table), n)] for n in lengths]


def apart(a, b):
    """Length of the difference over the length of b."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


