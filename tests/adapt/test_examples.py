"""Reading examples: every kind of table, folders of files, and errors that say which row and what it holds."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bedplate.adapt.examples import read_rows
from bedplate.core.errors import ConfigError, DataError
from bedplate.modality.specs import ImageSpec, SenseSpecs
from bedplate.testing.corpora import tiny_specs

ROWS = [{"text": "a, b\nc", "label": "x"}, {"text": "d", "label": "y"}]


def png():
    buffer = io.BytesIO()
    Image.fromarray(np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_kind_of_table_gives_the_same_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "a.csv").write_text('text,label\n"a, b\nc",x\nd,y\n')
    (tmp_path / "b.csv").write_text('text;label\n"a, b\nc";x\nd;y\n')
    (tmp_path / "a.tsv").write_text('text\tlabel\n"a, b\nc"\tx\nd\ty\n')
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        rows = read_rows(path)
        assert [dict(row.values) for row in rows] == ROWS and [row.number for row in rows] == [1, 2], path


def test_columns_are_renamed(tmp_path):
    (tmp_path / "a.csv").write_text("sentence,technique\nd,y\n")
    row = read_rows(tmp_path / "a.csv", {"text": "sentence", "label": "technique"})[0]
    assert row.text("text") == "d" and row.values["label"] == "y"
    with pytest.raises(ConfigError, match="tecnique"):
        read_rows(tmp_path / "a.csv", {"label": "tecnique"})


@pytest.mark.parametrize(("name", "content", "told"), [
    ("a.jsonl", '{"text": "a"}\nnonsense\n', "line 2"),
    ("a.jsonl", '{"text": "a"}\n[1]\n', "row 2"),
    ("a.csv", "text,label\na,b,c\n", "row 1"),
    ("a.csv", "text,label\na\n", "row 1"),
    ("a.parquet", "no parquet", "cannot be read"),
    ("a.jsonl", "\n", "no examples"),
    ("a.xml", "<a/>", "no kind of table"),
])  # fmt: skip
def test_damage_is_told_with_its_place(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=told):
        read_rows(tmp_path / name)


def test_errors_name_row_and_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "score": "high", "messages": [{"role": 1}], "labels": "a"}')
    row = read_rows(tmp_path / "a.jsonl")[0]
    for ask in (lambda: row.text("text"), lambda: row.number_of("score"), row.messages, lambda: row.list_of("labels"), lambda: row.get("prompt", int)):
        with pytest.raises(DataError, match="row 1"):
            ask()
    with pytest.raises(DataError) as caught:
        row.text("completion")
    assert "prompt, score, messages, labels" in caught.value.hint


def test_pictures_and_series_are_read_beside_the_table(tmp_path):
    (tmp_path / "cell.png").write_bytes(png())
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a cell", "image": "cell.png", "series": [1, 2, 3.5]}))
    row = read_rows(tmp_path / "a.jsonl")[0]
    words, picture, series = row.inputs(tiny_specs())
    assert words.value == "a cell" and picture.value.shape == (28, 28, 1) and series.value.tolist() == [1, 2, 3.5]
    with pytest.raises(DataError, match="never learned"):
        row.inputs(SenseSpecs())
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "../cell.png"}))
    with pytest.raises(DataError, match="row 1: the image cannot be read"):
        read_rows(tmp_path / "a.jsonl")[0].inputs(SenseSpecs(image=ImageSpec(channels=1)))
    with pytest.raises(DataError, match="nothing to look at"):
        read_rows_of(tmp_path, {"label": "x"}).inputs(tiny_specs())


def read_rows_of(folder, row):
    (folder / "one.jsonl").write_text(json.dumps(row))
    return read_rows(folder / "one.jsonl")[0]


def test_a_folder_of_files_is_labelled_by_its_folders(tmp_path):
    for label in ("yes", "no"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").write_bytes(png())
        (tmp_path / label / "2.txt").write_text("words")
    rows = read_rows(tmp_path)
    assert sorted((row.values["label"], "image" in row.values) for row in rows) == [("no", False), ("no", True), ("yes", False), ("yes", True)]
    assert rows[0].inputs(tiny_specs())[0].sense == "image"
