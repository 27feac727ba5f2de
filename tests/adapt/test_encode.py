"""Encoding: marks where loss is, nothing lost that carries it, no padding that matters."""

from dataclasses import replace

import numpy as np
import torch

from bedplate.adapt.encode import collate, compose, said, shorten
from bedplate.adapt.features import look_at
from bedplate.data.corpus_format import StoredSegment
from bedplate.data.document import Segment
from bedplate.model.batch import to_torch
from bedplate.model.foundation import attention_mask


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 255, (28, 28, 1)).astype(np.uint8)


def test_looking_is_the_same_as_for_features(base):
    value, words = picture(), "stone bridges"
    for segment, stored in ((Segment("text", words), StoredSegment("text", base.encoder.encode(words))), (Segment("image", value), StoredSegment("image", value))):
        ours, theirs = base.look([segment]), look_at(base.model, [stored])
        for part in ("tokens", "sense", "block"):
            assert getattr(ours, part).tolist() == getattr(theirs, part).tolist()
    np.testing.assert_array_equal(ours.units["image"], theirs.units["image"])


def test_padding_changes_nothing(base):
    texts = [base.look([Segment("text", "stone " * n)]) for n in (3, 30, 11)]
    batch = to_torch(collate(texts, base.pad_id))
    assert not batch.isolated and attention_mask(batch) is None
    masked = replace(batch, isolated=True)
    real = batch.sense == 0
    torch.testing.assert_close(base.model.hidden(batch)[real], base.model.hidden(masked)[real], rtol=1e-4, atol=1e-4)
    mixed = collate([*texts, base.look([Segment("image", picture())])], base.pad_id)
    assert mixed.isolated


def test_what_is_too_long_loses_the_middle_of_its_longest_stretch_without_loss(base):
    prompt, answer = np.arange(100, 200), np.arange(200, 220)
    whole = compose([said([0], False), said(prompt, False), said(answer, True)], base.model.config)
    short = shorten(whole, 80)
    assert len(short) == 80 and short.tokens[short.token_loss].tolist() == answer.tolist()
    assert short.tokens[1] == 100 and short.tokens[59] == 199 and not short.token_loss[:60].any()
    assert shorten(whole, 200) is whole
    tiny = shorten(whole, 10)
    assert len(tiny) == 10 and not tiny.token_loss.any()


def test_units_go_with_their_positions(base):
    whole = compose([said([0], False), Segment("image", picture(0)), said(range(300), False), Segment("image", picture(1)), said([1], True)], base.model.config)
    assert sorted(set(whole.block.tolist())) == [0, 1, 2], "each picture sees itself alone"
    short = shorten(whole, 200)
    assert len(short) == 200 and len(short.units["image"]) == (short.sense == 1).sum() == 98 and short.token_loss.sum() == 1
    cut = shorten(whole, 30)
    assert len(cut.units["image"]) == (cut.sense == 1).sum() < 49
    np.testing.assert_array_equal(cut.units["image"], whole.units["image"][: len(cut.units["image"])])
