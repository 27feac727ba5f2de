"""Generation and embeddings: what is known stays, what is asked for comes, equal seeds make equal things."""

import re

import numpy as np
import pytest
import torch

from bedplate.adapt.encode import collate
from bedplate.core.errors import ConfigError, DataError
from bedplate.data.corpus_format import StoredSegment
from bedplate.data.packing import PackingSettings, assemble
from bedplate.infer.embed import embed
from bedplate.infer.generate import Generation
from bedplate.infer.sampler import sampler
from bedplate.modality import image
from bedplate.modality.senses import HANDLERS
from bedplate.model.batch import to_torch
from bedplate.testing.corpora import tiny_corpus, tiny_specs
from bedplate.testing.draw import LIKELY, draw
from bedplate.testing.models import tiny_model
from bedplate.testing.stream import Stream


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpora") / "c")


@pytest.fixture(scope="module")
def made(corpus):
    with Generation(tiny_model(senses=tiny_specs(), random=True), (corpus.folder / "tokenizer.json").read_text()) as opened:
        yield opened


def test_text_repeats_with_its_seed_and_varies_without(made):
    one, two = made.text("the quiet", n=2, most_tokens=12, seed=3)
    assert [one, two] == made.text("the quiet", n=2, most_tokens=12, seed=3) and one != two
    assert made.text("the", most_tokens=8, temperature=0, seed=1) == made.text("the", most_tokens=8, temperature=0, seed=2)
    assert made.fill_in("the", "boats", most_tokens=5) and "<|" not in one + two


def test_a_middle_keeps_its_marks_and_what_is_near_it_when_the_texts_are_too_long(made, monkeypatch):
    seen = []
    monkeypatch.setattr(made, "_continue", lambda ids, *rest: seen.append(ids) or [""])
    words = "the quiet river boats " * 400
    for before, after in [(words, words), (words, "end"), ("start", words), ("start", "end")]:
        made.fill_in(before, after, most_tokens=60)
        ids, left, right = seen.pop(), made._encode(before), made._encode(after)
        marks = [ids.index(made.special[f"<|fim_{part}|>"]) for part in ("prefix", "suffix", "middle")]
        kept_left, kept_right = ids[marks[0] + 1 : marks[1]], ids[marks[1] + 1 : marks[2]]
        assert marks[0] == 1 and marks[2] == len(ids) - 1
        assert len(ids) == min(2048 - 60, len(left) + len(right) + 4)
        assert left[len(left) - len(kept_left) :] == kept_left and right[: len(kept_right)] == kept_right and kept_left and kept_right


def test_a_prompt_cannot_name_control_tokens(made):
    assert made.special["<|image|>"] not in made._encode("<|image|><|endoftext|>")


def test_draws_obey_temperature_top_k_and_top_p():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(400, 1)
    generator = torch.Generator().manual_seed(0)
    seen = {key: set(draw(logits.clone(), *arguments, generator).tolist()) for key, arguments in
            {"cold": (0.0, 0, 1.0), "k": (1.0, 2, 1.0), "p": (1.0, 0, 0.79), "all": (1.0, 0, 1.0)}.items()}  # fmt: skip
    assert seen == {"cold": {0}, "k": {0, 1}, "p": {0, 1}, "all": {0, 1, 2, 3}}


@pytest.mark.parametrize(("top_k", "top_p", "sharp"), [(0, 0.9, 3.0), (0, 0.95, 0.01), (50, 1.0, 1.0), (700, 0.5, 1.0), (0, 1.0, 0.1)])
def test_draws_come_from_the_allowed_tokens_only(top_k, top_p, sharp):
    """Against the plain way: order everything, keep the k likeliest, renormalise, keep the first that reach the probability."""
    logits = sharp * torch.randn(3, 2 * LIKELY, generator=torch.Generator().manual_seed(1))
    made = torch.cat([draw(logits, 1.0, top_k, top_p, torch.Generator().manual_seed(i))[:, None] for i in range(2000)], 1)
    for row, tokens in zip(logits, made):
        order = row.argsort(descending=True)[: top_k or None]
        probabilities = row[order].softmax(0)
        allowed = order[: int((probabilities.cumsum(0) < top_p).sum()) + 1]
        assert set(tokens.tolist()) <= set(allowed.tolist())
        likeliest = (tokens == order[0]).float().mean()
        expected = probabilities[0] / probabilities[: len(allowed)].sum()
        assert abs(float(likeliest - expected)) < 4 * float((expected * (1 - expected) / 2000).sqrt()) + 1e-3


def test_what_makes_nothing_is_refused_with_what_would_do(made):
    past = np.sin(np.arange(90) / 4)
    for call, says in [
        (lambda: made.text("a", temperature=-1.0), "likeliest"),
        (lambda: made.text("a", temperature=float("nan")), "likeliest"),
        (lambda: made.text("a", top_p=0.0), "all tokens"),
        (lambda: made.text("a", top_k=-1), "all tokens"),
        (lambda: made.text("a", n=0), "1 or more"),
        (lambda: made.text("a", most_tokens=0), "1 or more"),
        (lambda: made.image("a", n=-2), "1 or more"),
        (lambda: made.image("a", steps=0), "1 or more"),
        (lambda: made.series(past, 0), "1 or more"),
        (lambda: made.audio("a", most_s=1e6), r"8\d.\d s of sound"),
        (lambda: made.series(past, 10**6), "327\\d\\d points"),
    ]:
        with pytest.raises(ConfigError) as caught:
            call()
        assert re.search(says, caught.value.hint)


def test_a_tokenizer_that_is_none_or_another_is_refused(corpus, tmp_path):
    small = tiny_model(vocab_size=64)
    with pytest.raises(DataError, match="64"):
        Generation(small, (corpus.folder / "tokenizer.json").read_text())
    damaged = tmp_path / "tokenizer.json"
    damaged.write_bytes(b'{"model": 3}')
    tiny_model().save(tmp_path / "m", tokenizer=damaged)
    with pytest.raises(DataError, match="not a tokenizer"):
        Generation.load(tmp_path / "m")


def test_pictures_have_the_size_and_what_is_known_stays(made):
    pictures = made.image("a disc", n=3, steps=4)
    assert [p.shape for p in pictures] == [(28, 28, 1)] * 3 and not np.array_equal(pictures[0], pictures[1])
    whole = np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)
    rest = made.image(known=whole, known_share=4 / 7, steps=4)[0]
    assert np.array_equal(rest[:16], whole[:16]) and not np.array_equal(rest[16:], whole[16:])
    assert made.image(side=(8, 12), steps=2)[0].shape == (8, 12, 1)


def test_guidance_changes_the_picture(made):
    plain, guided = (made.image("a disc", guidance=g, steps=4)[0] for g in (1.0, 3.0))
    assert not np.array_equal(plain, guided)


def test_sounds_end_where_the_model_ends_them(made):
    heads = made.model.unit_heads["audio"]
    with torch.no_grad():
        before = heads.end.bias.clone()
        heads.end.weight.zero_()
        heads.end.bias.fill_(-5.0)
        assert len(made.log_mel("high", most_s=1.0, steps=2)[0]) == 100
        heads.end.bias.fill_(5.0)
        assert len(made.log_mel("high", most_s=1.0, steps=2)[0]) == 12
        heads.end.bias.copy_(before)
    assert made.audio("high", most_s=0.5, steps=2)[0].ndim == 1


def test_forecasts_are_in_the_series_own_unit(made):
    past = 1e4 + 10 * np.sin(np.arange(90) / 4)
    forecast = made.series(past, 40, "load", samples=5, steps=4)
    assert forecast.median.shape == (40,) and (forecast.low <= forecast.high).all()
    assert abs(forecast.median.mean() - 1e4) < 400
    with pytest.raises(DataError, match="16"):
        made.series(past[:5], 10)


def test_clips_have_the_frames(made):
    assert made.video("a disc", frames=4, steps=2)[0].shape == (4, 16, 16, 1)


def test_a_sense_that_was_never_learned_is_named(corpus):
    deaf = Generation(tiny_model(), (corpus.folder / "tokenizer.json").read_text())
    with pytest.raises(ConfigError, match="image"):
        deaf.image("x")
    with pytest.raises(ConfigError, match="1024"):
        deaf.text("x", most_tokens=5000)


def test_a_stream_of_units_sees_what_the_whole_sequence_sees(made):
    """Unit by unit through the cache, and all at once through the mask of known units, give the same next state when causal."""
    model, spec = made.model, made.model.config.senses.series
    units, grid = HANDLERS["series"].cut(np.sin(np.arange(64) / 3).astype(np.float32), spec)
    units, grid = torch.from_numpy(units), torch.from_numpy(grid.astype(np.int64))
    with torch.no_grad():
        stream = Stream(model, 1, [0, 20, 13])
        for number in range(len(units)):
            stream.push_units("series", units[number : number + 1], grid[number])
        x = torch.cat([model.model.embed_tokens(torch.tensor([0, 20, 13])), model.unit_embeddings["series"](units, grid)])
        whole = model.model(x[None])[0, -1]
    torch.testing.assert_close(stream.last[0], whole, rtol=1e-4, atol=1e-5)


def test_known_patches_are_seen_as_in_training(made, corpus):
    """Known patches read by a stream give the state that the training batch gives, where the first k see each other both ways."""
    model, k = made.model, 5
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)
    caption = made.base.encoder.encode("a disc")
    segments = [StoredSegment("text", caption), StoredSegment("image", pixels)]
    positions = assemble(segments, model.config.senses, made.special, np.random.default_rng(0), PackingSettings(caption_first=1, caption_drop=0, known_share=0))
    first = int((positions.sense == 1).argmax())
    positions.block[first : first + k] = 1
    with torch.no_grad():
        whole = model.hidden(to_torch(collate([positions], 1)))[0]
        units, grid = (torch.from_numpy(x) for x in (positions.units["image"], positions.grid["image"].astype(np.int64)))
        stream = Stream(model, 1, positions.tokens[:first].tolist(), "image", (units[:k], grid[:k]))
        torch.testing.assert_close(stream.last[0], whole[first + k - 1], rtol=1e-4, atol=1e-5)
        causal = Stream(model, 1, positions.tokens[:first].tolist())
        for number in range(k):
            causal.push_units("image", units[number : number + 1], grid[number])
        assert (causal.last[0] - whole[first + k - 1]).abs().max() > 1e-3  # and both ways is not the same as causal
        for number in range(k, len(units)):
            stream.push_units("image", units[number : number + 1], grid[number])
            torch.testing.assert_close(stream.last[0], whole[first + number], rtol=1e-4, atol=1e-5)


def test_vectors_for_any_sense(made, tmp_path):
    (tmp_path / "a.txt").write_text("the quiet river")
    (tmp_path / "b.png").write_bytes(image.encode(np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    found = embed(made.base, [str(tmp_path)])
    assert found.senses == ["text", "image"] and found.vectors.shape == (2, 32) and np.isfinite(found.vectors).all()
    assert found.skipped[0][1] == "damaged file"
    alone = embed(made.base, [str(tmp_path / "a.txt")])
    np.testing.assert_allclose(alone.vectors[0], found.vectors[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="damaged"):
        embed(made.base, [str(tmp_path / "bad.png")])


def test_samples_along_a_run_have_every_sense(made, corpus, tmp_path):
    fields = sampler(corpus.folder)(made.model, 7, tmp_path / "samples")
    assert [f["sense"] for f in fields] == ["text", "image", "audio", "video", "series"]
    assert all((tmp_path / f["path"]).stat().st_size > 20 for f in fields[1:])
