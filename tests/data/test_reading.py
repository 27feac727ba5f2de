"""The loader: a pure function from rows to batches that says what it read."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError, DataError
from bedplate.data.document import COMPONENTS
from bedplate.data.loader import STREAMS, Loader, LoaderSettings
from bedplate.data.packing import PackingSettings
from bedplate.modality.sequence import PADDING
from bedplate.modality.specs import SENSES
from bedplate.testing.corpora import tiny_corpus

PLAIN = PackingSettings(fim_text=0, fim_code=0, known_share=0, caption_first=1, caption_drop=0)
CONTEXT = 96


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "tiny")


def only(corpus, component, packing=PLAIN, seed=0, split="train"):
    return Loader(corpus, LoaderSettings({component: 1.0}, packing, seed), split)


def epoch_rows(loader, component, context=CONTEXT, epoch=0):
    """(first row, rows) of an epoch of a loader of one component."""
    first = 0
    while loader.documents(first, 1, context)[0].epoch < epoch:
        first += 1
    rows = 0
    while loader.documents(first + rows, 1, context)[0].epoch == epoch:
        rows += 1
    return first, rows


def row_of(batch, number):
    """Everything a batch says about one of its rows."""
    before = {s: int((batch.sense[:number] == SENSES.index(s)).sum()) for s in batch.units}
    count = {s: int((batch.sense[number] == SENSES.index(s)).sum()) for s in batch.units}
    fields = [batch.tokens[number], batch.sense[number], batch.document[number], batch.block[number], batch.token_loss[number]]
    for s in sorted(s for s in batch.units if count[s]):
        here = slice(before[s], before[s] + count[s])
        fields += [batch.units[s][here], batch.grid[s][here], batch.unit_loss[s][here]]
    return [field.tobytes() for field in fields]


@pytest.mark.parametrize("component", STREAMS)
@pytest.mark.parametrize("epoch", [0, 2])
def test_an_epoch_of_text_reads_every_position_of_every_document_once(corpus, component, epoch):
    loader = only(corpus, component)
    first, rows = epoch_rows(loader, component, epoch=epoch)
    batch, traced = loader.batch(first, rows, CONTEXT), loader.documents(first, rows, CONTEXT)
    end = corpus.special_ids["<|endoftext|>"]
    read = {}
    at = dict.fromkeys(range(first, first + rows), 0)
    for part in traced:
        row, length = part.row - first, part.end - part.start
        tokens = batch.tokens[row, at[part.row] : at[part.row] + length]
        at[part.row] += length
        for offset, token in enumerate(tokens.tolist()):
            assert (part.document, part.start + offset) not in read
            read[(part.document, part.start + offset)] = token
    for document in corpus.table(component).document.tolist():
        ids = [end, *corpus.segments(document)[0].value.tolist(), end]
        assert [read.pop((document, position)) for position in range(len(ids))] == ids
    assert not read


@pytest.mark.parametrize("component", [c for c in COMPONENTS if c not in STREAMS])
@pytest.mark.parametrize("epoch", [0, 3])
def test_an_epoch_of_another_sense_has_every_document_whole_and_once(corpus, component, epoch):
    loader = only(corpus, component)
    first, rows = epoch_rows(loader, component, epoch=epoch)
    traced = loader.documents(first, rows, CONTEXT)
    table = dict(zip(corpus.table(component).document.tolist(), corpus.table(component).positions.tolist()))
    short = sorted((p.document, p.start, p.end) for p in traced if table[p.document] <= CONTEXT)
    assert short == sorted((document, 0, length) for document, length in table.items() if length <= CONTEXT)
    assert {p.document for p in traced} == set(table)


@settings(max_examples=25)
@given(first=st.integers(0, 3000), rows=st.integers(1, 12), data=st.data())
def test_rows_do_not_depend_on_how_they_are_asked_for(corpus, first, rows, data):
    asked = LoaderSettings(seed=3)
    loader = Loader(corpus, asked)
    whole = loader.batch(first, rows, CONTEXT)
    cut = data.draw(st.integers(0, rows))
    parts = [loader.batch(start, count, CONTEXT) for start, count in ((first, cut), (first + cut, rows - cut)) if count]
    again = [row_of(part, number) for part in parts for number in range(len(part.tokens))]
    fresh = Loader(corpus, asked).batch(first, rows, CONTEXT)
    assert [row_of(whole, number) for number in range(rows)] == again == [row_of(fresh, number) for number in range(rows)]


@settings(max_examples=25)
@given(first=st.integers(0, 3000), rows=st.integers(1, 24), most=st.integers(1, 8))
def test_portions_are_the_same_rows_with_text_apart(corpus, first, rows, most):
    loader = Loader(corpus, LoaderSettings(seed=1))
    whole, portions = loader.batch(first, rows, CONTEXT), loader.batches(first, rows, CONTEXT, most)
    assert all(len(part.tokens) <= most for part in portions)
    assert all(part.isolated != (not part.units and not (part.sense > 0).any()) for part in portions)
    expected = sorted(row_of(whole, number) for number in range(rows))
    assert sorted(row_of(part, number) for part in portions for number in range(len(part.tokens))) == expected


@pytest.mark.parametrize("context", [CONTEXT, 24])
@pytest.mark.parametrize("component", COMPONENTS)
def test_rows_are_well_formed(corpus, component, context):
    loader = only(corpus, component, PackingSettings())
    batch = loader.batch(0, 40, context)
    pad = corpus.special_ids["<|pad|>"]
    for sense in corpus.specs.present():
        number = SENSES.index(sense)
        here = batch.sense == number
        opened, closed = corpus.special_ids[f"<|{sense}|>"], corpus.special_ids[f"<|/{sense}|>"]
        assert not here[:, 0].any() and not here[:, -1].any(), "units stand between marks"
        starts, ends = here[:, 1:] & ~here[:, :-1], here[:, :-1] & ~here[:, 1:]
        assert (batch.tokens[:, :-1][starts] == opened).all() and (batch.tokens[:, 1:][ends] == closed).all()
        same = batch.document[:, 1:] == batch.document[:, :-1]
        assert same[starts].all() and same[ends].all()
        assert len(batch.units.get(sense, ())) == here.sum()
    empty = batch.sense == PADDING
    assert ((batch.document == PADDING) == empty).all() and (batch.tokens[empty] == pad).all()
    assert not batch.token_loss[empty].any() and not batch.token_loss[:, 0].any() and not batch.token_loss[batch.sense > 0].any()
    assert not (~empty[:, 1:] & empty[:, :-1]).any(), "padding stands at the end"
    starts = np.pad(batch.document[:, 1:] != batch.document[:, :-1], ((0, 0), (1, 0)))
    assert not batch.token_loss[starts].any(), "nothing is predicted across documents"
    blocks = [(row, document, block) for row, document, block in zip(*np.nonzero(batch.block), batch.block[batch.block > 0])]
    owners = {}
    for row, column, block in blocks:
        assert owners.setdefault((row, block), batch.document[row, column]) == batch.document[row, column]
    assert batch.isolated == (component not in STREAMS)


def test_trace_agrees_with_the_batch(corpus):
    loader = Loader(corpus, LoaderSettings(packing=PLAIN))
    batch, traced = loader.batch(100, 40, CONTEXT), loader.documents(100, 40, CONTEXT)
    for number in range(40):
        parts = [part for part in traced if part.row == 100 + number]
        assert [document for document in dict.fromkeys(batch.document[number].tolist()) if document >= 0] == list(range(len(parts)))
        for count, part in enumerate(parts):
            origin = corpus.origin(part.document)
            assert (part.source, part.member, part.sha256) == (origin.source, origin.member, origin.sha256)
            assert part.component == corpus.row(part.document)["component"]
            here = batch.document[number] == count
            words = [token for token in batch.tokens[number][here & (batch.sense[number] == 0)].tolist() if token >= len(corpus.special_ids)]
            ids = [t for s in corpus.segments(part.document) if s.sense == "text" for t in s.value.tolist()]
            if part.component in STREAMS:
                assert words == ids[max(part.start - 1, 0) : part.end - 1]
            elif (part.start, part.end) == (0, corpus.row(part.document)["positions"]):
                assert words == ids
                assert here.sum() == part.end


def test_epochs_have_new_orders_and_are_counted(corpus):
    for component in ("text", "image"):
        loader = only(corpus, component)
        (first, rows), (second, more) = (epoch_rows(loader, component, epoch=epoch) for epoch in (0, 1))
        assert second == first + rows
        assert loader.epochs(rows, CONTEXT) == 1
        orders = [[p.document for p in loader.documents(start, count, CONTEXT)] for start, count in ((first, rows), (second, more))]
        assert orders[0] != orders[1] and set(orders[0]) == set(orders[1])


def test_far_epochs_are_found_without_keeping_all_plans(corpus):
    """Hundreds of epochs of six components: a row costs one plan at most, and what was counted is not counted again."""
    loader = Loader(corpus, LoaderSettings())
    assert {part.component for part in loader.documents(40_000, 60, CONTEXT)} == set(COMPONENTS)
    made = []
    make = loader._make_plan
    loader._plan = lambda component, epoch, context: (made.append(epoch), make(component, epoch, context))[1]
    loader.documents(40_000, 12, CONTEXT)
    assert len(made) <= 12


def test_the_seed_decides_the_order_and_the_choices(corpus):
    one, two = (Loader(corpus, LoaderSettings(seed=seed)) for seed in (0, 1))
    assert one.documents(0, 20, CONTEXT) != two.documents(0, 20, CONTEXT)
    assert not np.array_equal(one.batch(0, 20, CONTEXT).tokens, two.batch(0, 20, CONTEXT).tokens)


def test_another_context_is_shuffled_anew(corpus):
    loader = only(corpus, "image")
    first, second = ([p.document for p in loader.documents(0, 5, context)] for context in (CONTEXT, 2 * CONTEXT))
    assert first[:5] != second[:5]


@pytest.mark.parametrize(("component", "key"), [("text", "fim_text"), ("code", "fim_code")])
def test_a_share_of_pieces_has_its_middle_filled_in(corpus, component, key):
    mark = corpus.special_ids["<|fim_middle|>"]
    counts = {}
    for share in (0.0, 0.4, 1.0):
        loader = only(corpus, component, dataclasses.replace(PLAIN, **{key: share}))
        pieces = len([p for p in loader.documents(0, 300, CONTEXT) if p.end - p.start > 20])
        counts[share] = (loader.batch(0, 300, CONTEXT).tokens == mark).sum() / pieces
    assert counts[0.0] == 0 and counts[0.4] == pytest.approx(0.4, abs=0.1) and counts[1.0] > 0.9


def test_the_mixture_decides_what_is_read(corpus):
    loader = Loader(corpus, LoaderSettings({"text": 3, "series": 1}))
    read = [loader.documents(row, 1, CONTEXT)[0].component for row in range(512)]
    assert read.count("text") == 384 and read.count("series") == 128


def test_without_a_mixture_shares_are_roots_of_sizes(corpus):
    loader = Loader(corpus, LoaderSettings())
    assert set(loader.mixture.shares) == set(COMPONENTS)
    roots = {c: loader.positions[c] ** 0.5 for c in COMPONENTS}
    assert loader.mixture.shares == pytest.approx({c: root / sum(roots.values()) for c, root in roots.items()}, abs=1 / 512)


def test_the_held_out_documents_are_never_read_in_training(corpus):
    train, held = Loader(corpus, LoaderSettings()), Loader(corpus, LoaderSettings(), "validation")
    seen = {p.document for p in train.documents(0, 1024, CONTEXT)}
    assert seen.isdisjoint({p.document for p in held.documents(0, 1024, CONTEXT)})


@pytest.mark.parametrize(("mixture", "error", "message"), [({"txet": 1.0}, ConfigError, "txet"), ({"text": 0.0}, DataError, "nothing of what")])
def test_a_mixture_without_sense_is_refused(corpus, mixture, error, message):
    with pytest.raises(error, match=message):
        Loader(corpus, LoaderSettings(mixture))


def test_a_mixture_of_what_is_not_there_is_refused(tmp_path):
    small = tiny_corpus(tmp_path / "c", ["text"], documents=6, validation_share=0.0)
    with pytest.raises(DataError, match="does not have"):
        Loader(small, LoaderSettings({"image": 1.0}))
    with pytest.raises(DataError, match="no documents"):
        Loader(small, LoaderSettings(), "validation")


def test_several_threads_read_the_same_rows(corpus):
    loader = Loader(corpus, LoaderSettings(seed=2))
    expected = [row_of(Loader(corpus, LoaderSettings(seed=2)).batch(row, 1, CONTEXT), 0) for row in range(900, 930)]
    found: dict[int, list[bytes]] = {}
    threads = [threading.Thread(target=lambda row=row: found.__setitem__(row, row_of(loader.batch(row, 1, CONTEXT), 0))) for row in range(900, 930)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[row] for row in range(900, 930)] == expected
