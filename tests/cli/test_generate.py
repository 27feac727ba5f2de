"""`bedplate generate` and `bedplate embed` as a user types them: every sense, every kind of file, and what is refused."""

import csv
import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from bedplate.testing.corpora import tiny_corpus, tiny_specs
from bedplate.testing.models import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    corpus = tiny_corpus(folder / "corpus")
    tiny_model(senses=tiny_specs(), random=True).save(folder / "model", tokenizer=corpus.folder / "tokenizer.json")
    return folder / "model"


def test_text_goes_to_stdout_and_into_a_file(run, model, tmp_path):
    code, out, _ = run("generate", model, "the quiet", "--n", 2, "--most-tokens", 6, "--seed", 4, "--out", tmp_path / "t.txt")
    assert code == 0 and out.count("the quiet") == 2 and (tmp_path / "t.txt").read_text().count("the quiet") == 2
    code, again, _ = run("generate", model, "the quiet", "--n", 2, "--most-tokens", 6, "--seed", 4)
    assert code == 0 and again == out
    code, out, _ = run("generate", model, "the quiet", "--most-tokens", 4, "--json")
    assert code == 0 and len(json.loads(out)["texts"]) == 1, "the continuation alone"


def test_a_filled_middle_stands_between_its_ends(run, model):
    code, out, _ = run("generate", model, "--fill", "start<FILL>end", "--most-tokens", 4, "--json")
    assert code == 0 and len(json.loads(out)["texts"]) == 1
    code, out, _ = run("generate", model, "--fill", "start<FILL>end", "--most-tokens", 4)
    assert code == 0 and out.startswith("start") and out.rstrip().endswith("end")
    code, _, err = run("generate", model, "--fill", "no mark")
    assert code == 2 and "<FILL>" in err


def test_pictures_sounds_and_clips_are_files_that_open(run, model, tmp_path):
    code, *_ = run("generate", model, "the word one", "--sense", "image", "--n", 2, "--out", tmp_path / "p.png")
    spec = tiny_specs()
    sizes = {Image.open(tmp_path / f"p-{n}.png").size for n in (1, 2)}
    assert code == 0 and sizes == {(spec.image.size, spec.image.size)}
    code, *_ = run("generate", model, "--complete", tmp_path / "p-1.png", "--known", 0.5, "--out", tmp_path / "whole.png")
    before, after = (np.asarray(Image.open(tmp_path / name).convert("RGB"), int) for name in ("p-1.png", "whole.png"))
    top = spec.image.size // spec.image.patch // 2 * spec.image.patch  # whole rows of patches
    assert code == 0 and np.abs(before[:top] - after[:top]).max() <= 2, "the known half stays"
    code, *_ = run("generate", model, "a sound", "--sense", "audio", "--seconds", 0.5, "--out", tmp_path / "s.wav")
    sound, rate = soundfile.read(tmp_path / "s.wav")
    assert code == 0 and rate == spec.audio.sample_rate and 0 < len(sound) <= 0.6 * rate
    code, *_ = run("generate", model, "a clip", "--sense", "video", "--out", tmp_path / "c.gif")
    assert code == 0 and Image.open(tmp_path / "c.gif").n_frames >= 1


def test_a_forecast_is_a_table_with_its_range(run, model, tmp_path):
    rows = "\n".join(f"{np.sin(t / 5):.4f},{t % 7}" for t in range(80))
    (tmp_path / "past.csv").write_text(f"load,calls\n{rows}\n")
    code, out, _ = run("generate", model, "--series", tmp_path / "past.csv", "--points", 9, "--out", tmp_path / "f.csv", "--json")
    assert code == 0 and len(json.loads(out)["channels"]) == 2
    table = list(csv.DictReader(io.StringIO((tmp_path / "f.csv").read_text())))
    names = json.loads(out)["channels"]
    assert len(table) == 9 and all(float(row[f"{n} low"]) <= float(row[n]) <= float(row[f"{n} high"]) for row in table for n in names)
    code, _, err = run("generate", model, "--sense", "series")
    assert code == 2 and "--series" in err


def test_a_sense_that_was_never_learned_is_refused(run, tmp_path, model):
    corpus = tiny_corpus(tmp_path / "corpus")
    tiny_model(random=True).save(tmp_path / "text-only", tokenizer=corpus.folder / "tokenizer.json")
    for sense in ("image", "audio", "video"):
        code, _, err = run("generate", tmp_path / "text-only", "x", "--sense", sense)
        assert code == 2 and f"never learned {sense}" in err
    code, _, err = run("generate", tmp_path / "nowhere", "x")
    assert code != 0 and "hint:" in err


@pytest.mark.parametrize("kind", ["npy", "csv", "jsonl"])
def test_embed_writes_vectors_of_any_sense(run, model, tmp_path, kind):
    (tmp_path / "a.txt").write_text("The quiet river carries boats past the bridge in winter.\n")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    out = tmp_path / f"v.{kind}"
    code, text, err = run("embed", model, tmp_path / "a.txt", tmp_path / "b.png", tmp_path / "broken.png", "--out", out, "--json")
    told = json.loads(text)
    assert code == 0 and told["senses"] == ["text", "image"] and told["width"] == 32
    if kind == "npy":
        assert np.load(out).shape == (2, 32)
    elif kind == "csv":
        assert len(list(csv.DictReader(out.open()))) == 2
    else:
        assert [len(json.loads(line)["vector"]) for line in out.read_text().splitlines()] == [32, 32]


def test_embed_prints_vectors_as_json_and_names_what_it_skipped(run, model, tmp_path):
    (tmp_path / "a.txt").write_text("The quiet river carries boats past the bridge in winter.\n")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    code, text, _ = run("embed", model, tmp_path / "a.txt", tmp_path / "broken.png", "--json")
    assert code == 0 and np.shape(json.loads(text)["vectors"]) == (1, 32)
    code, _, err = run("embed", model, tmp_path / "a.txt", tmp_path / "broken.png", "--plain")
    assert code == 0 and "1 skipped" in err and "broken.png" in err
    code, _, err = run("embed", model, tmp_path / "a.txt", "--out", tmp_path / "v.txt")
    assert code == 2 and ".npy" in err
