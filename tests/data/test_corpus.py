"""The corpus folder: what is written is what is read, splits, kills, damage."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from bedplate.core.errors import DataError, IntegrityError, StateError
from bedplate.core.files import read_json
from bedplate.data import corpus_writer
from bedplate.data.corpus import Corpus, CorpusWriter, StoredSegment
from bedplate.data.corpus_format import positions_of, token_type, units_of
from bedplate.data.document import COMPONENTS, Origin
from bedplate.modality.specs import SenseSpecs, SeriesSpec
from bedplate.testing.corpora import tiny_corpus, tiny_specs, tiny_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("tiny") / "corpus")


def test_every_sense_comes_back(corpus):
    assert corpus.components == COMPONENTS
    for component in COMPONENTS:
        table = corpus.table(component, "train")
        segments = corpus.segments(int(table.document[0]))
        assert segments[0].sense == "text" and segments[0].value.dtype == np.uint16
        assert segments[-1].sense == (component if component in ("image", "audio", "video", "series") else "text")
        assert table.positions[0] == positions_of(segments, corpus.specs)
        assert table.bytes[0] == len(corpus.text(int(table.document[0])).encode())
    image = corpus.segments(int(corpus.table("image").document[0]))[1].value
    assert image.shape == (28, 28, 1) and image.dtype == np.uint8 and image.max() > 100
    assert not image.flags.writeable  # a view of the map


def test_splits_share_out_all_documents(corpus):
    for component in COMPONENTS:
        train, validation = (corpus.table(component, split).document for split in ("train", "validation"))
        assert len(train) + len(validation) == 24 and len(validation) >= 1
        assert not set(train) & set(validation)
        assert corpus.manifest.about["components"][component]["train"]["documents"] == len(train)


def test_equal_input_gives_an_equal_digest(tmp_path, corpus):
    assert tiny_corpus(tmp_path / "again").manifest.digest == corpus.manifest.digest
    assert tiny_corpus(tmp_path / "other", seed=1).manifest.digest != corpus.manifest.digest


def test_validation_share_and_seed_choose_the_documents(tmp_path):
    held = {}
    for share, seed in ((0.0, 0), (0.3, 0), (0.3, 1)):
        made = _write(tmp_path / f"{share}-{seed}", range(200), share=share, seed=seed)
        held[share, seed] = set(made.table("series", "validation").document.tolist())
    assert not held[0.0, 0]
    assert 30 < len(held[0.3, 0]) < 95
    assert held[0.3, 0] != held[0.3, 1]


def test_a_small_share_still_holds_out_one_of_ten(tmp_path):
    assert len(_write(tmp_path / "ten", range(10), share=1e-9).table("series", "validation").document) == 1
    assert len(_write(tmp_path / "nine", range(9), share=1e-9).table("series", "validation").document) == 0


def test_many_batches_and_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_writer, "BATCH_BYTES", 1 << 10)
    monkeypatch.setattr(corpus_writer, "SHARD_BYTES", 1 << 13)
    made = _write(tmp_path / "c", range(100))
    assert len(list((tmp_path / "c" / "shards").iterdir())) == 3
    for number in (0, 17, 50, 99):
        assert made.segments(number)[0].value[0] == number
    with pytest.raises(DataError):
        made.segments(100)


def test_other_readers_can_read_it(corpus):
    table = pa.ipc.open_file(pa.memory_map(str(corpus.folder / "shards" / "text-00000.arrow"))).read_all()
    first = np.frombuffer(table["data"][0].as_py(), np.uint16)
    assert np.array_equal(first, corpus.segments(table["document"][0].as_py())[0].value)


def test_origin_and_row(corpus):
    origin = corpus.origin(3)
    assert origin.source == "text/3" and origin.sha256.endswith("3") and origin.licence == "CC0-1.0"
    assert corpus.row(3)["component"] == "text"


def test_pickled_corpus_opens_its_own_maps(corpus):
    import copy

    corpus.segments(0)
    again = copy.copy(corpus)
    assert "_open_shards" not in vars(again)
    assert np.array_equal(again.segments(0)[0].value, corpus.segments(0)[0].value)


def test_damage_is_found(tmp_path):
    made = tiny_corpus(tmp_path / "c", ("text",), 12)
    shard = made.folder / "shards" / "text-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="changed"):
        Corpus.open(made.folder)
    shard.write_bytes(b"nothing")
    with pytest.raises(IntegrityError, match="cannot be read"):
        Corpus.open(made.folder, verify=False).segments(0)


def test_a_finished_corpus_or_a_foreign_folder_is_not_overwritten(tmp_path):
    made = tiny_corpus(tmp_path / "c", ("text",), 12)
    with pytest.raises(StateError, match="finished"):
        _writer(made.folder)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(StateError, match="not empty"):
        _writer(tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_nothing_kept_is_an_error(tmp_path):
    writer = _writer(tmp_path / "c")
    writer.drop(Origin("a"), "empty")
    with pytest.raises(DataError, match="no document"):
        writer.seal()


def test_an_interrupted_build_goes_on_and_gives_the_same(tmp_path):
    whole = _write(tmp_path / "whole", range(60), commits=(20, 40))
    for killed_at in (5, 20, 33, 41, 59):
        folder = tmp_path / f"killed-{killed_at}"
        writer = _writer(folder)
        for number in range(writer.chunks_done, killed_at):
            _add(writer, number)
            if number + 1 in (20, 40):
                writer.commit(number + 1, {"at": number + 1})
        del writer  # as a kill would: nothing is closed
        again = _writer(folder)
        assert again.chunks_done == {5: 0, 20: 20, 33: 20, 41: 40, 59: 40}[killed_at]
        assert again.state == ({"at": again.chunks_done} if again.chunks_done else {})
        assert [state for _, state in again.recovered()] == [b"%d" % n for n in range(again.chunks_done)]
        assert _finish(again, range(again.chunks_done, 60), (20, 40)).manifest.digest == whole.manifest.digest


def test_another_key_starts_anew(tmp_path):
    writer = _writer(tmp_path / "c")
    _add(writer, 0)
    writer.commit(1)
    assert _writer(tmp_path / "c", key="other").chunks_done == 0


def test_kill_at_any_instant(tmp_path):
    script = """
import sys, pathlib
sys.path.insert(0, sys.argv[2])
from test_corpus import _writer, _add
writer = _writer(pathlib.Path(sys.argv[1]))
print("ready", flush=True)
for number in range(writer.chunks_done, 400):
    _add(writer, number, points=2000)
    if number % 10 == 9:
        writer.commit(number + 1)
writer.seal()
"""
    def start(folder):
        here = os.path.dirname(__file__)
        process = subprocess.Popen([sys.executable, "-c", script, str(folder), here], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        return process

    assert start(tmp_path / "whole").wait() == 0
    whole = Corpus.open(tmp_path / "whole").manifest.digest
    rng = np.random.default_rng(5)
    kills = 0
    for _ in range(6):
        process = start(tmp_path / "killed")
        time.sleep(float(rng.uniform(0, 0.15)))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if (tmp_path / "killed" / "manifest.json").exists():  # killed after its end, or not at all
            break
    if not (tmp_path / "killed" / "manifest.json").exists():
        assert start(tmp_path / "killed").wait() == 0
    assert kills and Corpus.open(tmp_path / "killed").manifest.digest == whole


def test_token_type_follows_the_vocabulary():
    assert token_type(1 << 16) == np.uint16 and token_type((1 << 16) + 1) == np.uint32


def test_positions_of_each_sense():
    specs = tiny_specs()
    assert units_of("image", (28, 20, 1), specs) == 35
    assert units_of("audio", (41, 40), specs) == 11
    assert units_of("video", (5, 16, 16, 1), specs) == 12
    assert units_of("series", (33,), specs) == 3
    both = [StoredSegment("text", np.arange(5)), StoredSegment("series", np.zeros(33))]
    assert positions_of(both, specs) == 2 + 5 + 2 + 3
    with pytest.raises(DataError):
        units_of("image", (1, 1, 1), SenseSpecs())


def test_manifest_says_what_is_inside(corpus):
    about = read_json(corpus.folder / "manifest.json")["about"]
    assert json.dumps(about)
    assert about["special_ids"]["<|endoftext|>"] == 0 and about["vocabulary"] == 320 and about["token_type"] == "uint16"
    assert corpus.specs == tiny_specs()


def _writer(folder, key="k", share=0.02, seed=0):
    return CorpusWriter(folder, specs=SenseSpecs(series=SeriesSpec()), tokenizer=tiny_tokenizer(), validation_share=share, seed=seed, key=key)


def _add(writer, number, points=32):
    value = np.full(points, number, np.float32)
    writer.add("series", [StoredSegment("series", value)], Origin(f"s{number}"), content=b"%d" % number, state=b"%d" % number)


def _finish(writer, numbers, commits=()):
    for number in numbers:
        _add(writer, number)
        if number + 1 in commits:
            writer.commit(number + 1, {"at": number + 1})
    writer.seal()
    return Corpus.open(writer.folder)


def _write(folder, numbers, share=0.02, seed=0, commits=()):
    return _finish(_writer(folder, share=share, seed=seed), numbers, commits)
