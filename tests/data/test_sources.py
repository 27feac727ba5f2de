"""Sources: every kind of file, archives in place, pairs, licences; and bad input of every sort, skipped with a counted reason."""

import gzip
import io
import json
import os
import tarfile
import wave
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bedplate.core.config import from_mapping
from bedplate.core.errors import ConfigError, DataError
from bedplate.data import inputs
from bedplate.data.document import Document, Skipped
from bedplate.data.sources import REASONS, Input, SourceSettings, list_inputs, read, survey
from bedplate.modality.specs import AudioSpec, ImageSpec, SenseSpecs, SeriesSpec, VideoSpec

SPECS = SenseSpecs(ImageSpec(size=16), AudioSpec(sample_rate=8000), VideoSpec(), SeriesSpec())


def png(side=16):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(side).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def wav(seconds=0.5):
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes((np.sin(np.arange(int(8000 * seconds)) / 5) * 9000).astype("<i2").tobytes())
    return out.getvalue()


def everything(*sources, **changes):
    found = list(read([str(s) for s in sources], from_mapping(SourceSettings, changes), SPECS))
    return [f for f in found if isinstance(f, Document)], Counter(f.reason for f in found if isinstance(f, Skipped))


def words(documents):
    return [s.value for d in documents for s in d.segments if s.sense == "text"]


def test_a_folder_of_every_kind(tmp_path):
    (tmp_path / "note.md").write_text("---\na: 1\n---\n# Head")
    (tmp_path / "page.html").write_text("<html><p>hello</p></html>")
    (tmp_path / "code.py").write_text("# SPDX-License-Identifier: MIT\nx = 1\n")
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.wav").write_bytes(wav())
    (tmp_path / "n.csv").write_text("t,load\n" + "".join(f"{i},{i % 7}\n" for i in range(64)))
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\nbroken\n{"text": "two"}\n')
    documents, skipped = everything(tmp_path)
    assert Counter(d.component for d in documents) == {"text": 4, "code": 1, "image": 1, "audio": 1, "series": 1}
    assert skipped == {"bad row": 1}
    code = next(d for d in documents if d.component == "code")
    assert code.language == "python" and code.origin.licence == "MIT"
    assert all(len(d.origin.sha256) == 64 for d in documents)


def test_the_order_is_fixed_and_reading_repeats(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert words(everything(tmp_path)[0]) == ["a", "b", "c"] == words(everything(tmp_path)[0])


def test_captions_and_transcripts_stand_beside(tmp_path):
    (tmp_path / "cat.png").write_bytes(png())
    (tmp_path / "cat.txt").write_text("a cat\n")
    (tmp_path / "hi.wav").write_bytes(wav())
    (tmp_path / "hi.txt").write_text("hi")
    documents, _ = everything(tmp_path)
    assert [[s.sense for s in d.segments] for d in documents] == [["text", "image"], ["text", "audio"]]
    assert words(documents) == ["a cat", "hi"]


def test_pairs_in_tables(tmp_path):
    (tmp_path / "p.png").write_bytes(png())
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"image": "p.png", "text": "by path"}) + "\n" + json.dumps({"image": "../../etc/passwd", "text": "x"}))
    table = pa.table({"image": [{"bytes": png(), "path": None}], "caption": ["by bytes"], "license": ["CC0-1.0"]})
    pq.write_table(table, tmp_path / "t.parquet")
    documents, skipped = everything(tmp_path / "pairs.jsonl", tmp_path / "t.parquet")
    assert words(documents) == ["by path", "by bytes"] and [d.component for d in documents] == ["image", "image"]
    assert documents[1].origin.licence == "CC0-1.0" and skipped == {"damaged file": 1}


def test_chats_are_text(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": turns}))
    assert words(everything(tmp_path)[0]) == ["<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"]


def archive_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members.items():
            z.writestr(name, data)


def test_archives_are_read_in_place(tmp_path):
    archive_zip(tmp_path / "a.zip", {"d/LICENSE": "Permission is hereby granted, free of charge", "d/x.txt": "in zip", "d/c.png": png(), "d/c.txt": "pair"})
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as t:
        info = tarfile.TarInfo("y.txt")
        info.size = 6
        t.addfile(info, io.BytesIO(b"in tar"))
    before = {p.name for p in tmp_path.iterdir()}
    documents, _ = everything(tmp_path / "a.zip", tmp_path / "b.tar.gz")
    assert {"in zip", "pair", "in tar"} <= set(words(documents))
    assert next(d for d in documents if d.component == "image").origin.licence == "MIT"
    assert {p.name for p in tmp_path.iterdir()} == before


def test_hostile_archives(tmp_path):
    archive_zip(tmp_path / "bomb.zip", {"big.txt": b"0" * (30 << 20), "good.txt": "good"})
    archive_zip(tmp_path / "climb.zip", {"../../out.txt": "x", "/abs.txt": "x", "C:\\w.txt": "x", "ok.txt": "ok"})
    with tarfile.open(tmp_path / "link.tar", "w") as t:
        info = tarfile.TarInfo("l")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        t.addfile(info)
    archive_zip(tmp_path / "nest.zip", {"inner.zip": b"PK"})
    (tmp_path / "cut.zip").write_bytes((tmp_path / "climb.zip").read_bytes()[:60])
    documents, skipped = everything(tmp_path)
    assert sorted(words(documents)) == ["good", "ok"]
    assert skipped == {"archive bomb": 1, "archive climbs out": 3, "archive link": 1, "archive in an archive": 1, "archive damaged": 1}


def test_bad_files_are_counted(tmp_path, monkeypatch):
    (tmp_path / "cut.jpg").write_bytes(png()[:60])
    (tmp_path / "lies.wav").write_bytes(wav()[:44])
    (tmp_path / "zero.txt").touch()
    (tmp_path / "blob.bin").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nonsense PAR1")
    (tmp_path / "secret.txt").write_text("x")
    (tmp_path / "dir.txt").mkdir()
    outside = tmp_path.parent / "outside.txt"
    outside.write_text("not yours")
    (tmp_path / "link.txt").symlink_to(outside)
    original = Path.read_bytes

    def refuse(path):
        if path.name == "secret.txt":
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    documents, skipped = everything(tmp_path)
    assert documents == []
    assert skipped == {"damaged file": 2, "empty": 1, "binary": 1, "damaged table": 1, "unreadable": 1, "link leaves the folder": 1}
    assert set(skipped) <= set(REASONS)


def test_a_source_that_is_not_there_names_its_neighbour(tmp_path):
    (tmp_path / "reports").mkdir()
    with pytest.raises(DataError, match="reports"):
        list(list_inputs([str(tmp_path / "report")], SourceSettings()))
    with pytest.raises(DataError):
        list(list_inputs([str(tmp_path / "*.nothing")], SourceSettings()))


@pytest.mark.parametrize("line", ["x" * 300_000, "ä" * 200_000, "short line\n" * 40_000])
def test_large_text_is_read_in_ranges_and_nothing_is_lost(tmp_path, line):
    (tmp_path / "big.txt").write_text(line, encoding="utf-8")
    documents, skipped = everything(tmp_path, range_bytes=70_000, max_text_bytes=50_000)
    assert "".join(words(documents)) == line and not skipped
    assert max(map(len, words(documents))) <= 70_000 + 65_536


def test_ranges_never_cut_a_json_row(tmp_path):
    rows = [json.dumps({"text": f"row {i} " + "y" * (i % 700)}) for i in range(500)]
    (tmp_path / "r.jsonl").write_text("\n".join(rows))
    documents, skipped = everything(tmp_path, range_bytes=3000)
    assert not skipped and sorted(words(documents)) == sorted(json.loads(r)["text"] for r in rows)


def test_gaps_are_filled_and_told_and_constants_left_out(tmp_path):
    lines = [f"{i},{'' if 10 < i < 14 else i * 0.5},7,word" for i in range(64)]
    (tmp_path / "s.csv").write_text("time,load,same,name\n" + "\n".join(lines))
    (document,), _ = everything(tmp_path)
    assert [s.value for s in document.segments[::2]] == ["time", "load"]
    np.testing.assert_allclose(document.segments[3].value, np.arange(64) * 0.5)
    assert document.notes == ("load: 3 gaps interpolated",)


@pytest.mark.parametrize(
    ("change", "kept"),
    [({"hidden": True}, 3), ({}, 2), ({"max_file_bytes": 50}, 1), ({"licence": "CC0-1.0"}, 2)],
)
def test_settings_have_an_effect(tmp_path, change, kept):
    (tmp_path / ".hidden.txt").write_text("h")
    (tmp_path / "a.txt").write_text("small")
    (tmp_path / "b.rtf").write_text("large " * 20)
    documents, _ = everything(tmp_path, **change)
    assert len(documents) == kept and all(d.origin.licence == change.get("licence", "") for d in documents)


def test_member_limits_have_an_effect(tmp_path):
    archive_zip(tmp_path / "a.zip", {f"{i}.txt": "0" * 1_200_000 for i in range(3)})
    assert everything(tmp_path)[1] == {"archive bomb": 3}
    assert len(everything(tmp_path, max_ratio=1e6, max_members=2)[0]) == 4
    with pytest.raises(ConfigError):
        SourceSettings(max_members=0)


def test_a_survey_sees_sizes_and_colours(tmp_path):
    for side in (16, 16, 200):
        (tmp_path / f"{side}-{len(list(tmp_path.iterdir()))}.png").write_bytes(png(side))
    (tmp_path / "a.wav").write_bytes(wav())
    (tmp_path / "t.txt").write_text("x")
    found = survey([str(tmp_path)], SourceSettings())
    assert found.files == {"image": 3, "audio": 1, "text": 1} and sorted(found.picture_sides) == [16, 16, 200]
    assert found.grey == [False] * 3 and found.sound_rates == [8000] and found.sound_s == [0.5]


ENDINGS = ("txt", "md", "html", "eml", "py", "jsonl", "parquet", "csv", "png", "wav", "mp4", "zip", "tar.gz", "bin")


@given(st.sampled_from(ENDINGS), st.binary(max_size=300), st.integers(0, 2))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_gives_documents_or_reasons(tmp_path, ending, data, kind):
    valid = {"png": png(), "wav": wav(), "jsonl": b'{"text": "a"}\n{"a": 1}\n', "csv": b"a,b\n1,2\n", "tar.gz": gzip.compress(b"x" * 600)}
    base = valid.get(ending, b"")
    if kind == 1 and base:  # a valid file with a stretch replaced
        at = len(data) % len(base)
        data = base[:at] + data + base[at + len(data) :]
    path = tmp_path / f"f.{ending}"
    path.write_bytes(data)
    for found in read([str(path)], SourceSettings(), SPECS):
        assert isinstance(found, Document) or found.reason in REASONS


def test_inputs_are_plain_data():
    item = Input(Path("a"), "a")
    assert inputs.Input(**{f: getattr(item, f) for f in item.__dataclass_fields__}) == item
    assert os.fspath(item.path) == "a"
