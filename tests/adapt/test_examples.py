"""Reading examples: every kind of table, folders of files, and errors that say which row and what it holds."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bedplate.adapt.examples import each, read_rows
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


TABLE = "text;label\r\nbroken door;repair\r\nwhere is my bill;office\r\n"


@pytest.mark.parametrize("content", [
    TABLE.encode(),
    b"\xef\xbb\xbf" + TABLE.encode(),
    TABLE.replace(";", "\t").encode("utf-16"),
    TABLE.replace(";", "|").encode(),
    b"sep=;\r\n" + TABLE.encode(),
    TABLE.replace("text;label", " text ;label ").encode(),
    (TABLE + ";\r\n;\r\n\r\n").encode(),
    ("\r\n" + TABLE).encode(),
], ids=["semicolons", "mark", "unicode text", "bars", "sep line", "blanks in the header", "empty rows", "blank first line"])  # fmt: skip
def test_what_spreadsheets_save_is_read(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    rows = read_rows(tmp_path / "a.csv")
    assert [dict(row.values) for row in rows] == [{"text": "broken door", "label": "repair"}, {"text": "where is my bill", "label": "office"}]


def test_two_columns_of_one_name_are_not_mixed_up(tmp_path):
    (tmp_path / "a.csv").write_text("text,label,text\na,b,c\n")
    with pytest.raises(DataError, match="'text' twice"):
        read_rows(tmp_path / "a.csv")


def test_an_empty_cell_is_told_from_a_missing_column_and_the_hint_can_be_typed(tmp_path):
    (tmp_path / "a.csv").write_text("text,label,Kind of it\na,,c\n")
    row = read_rows(tmp_path / "a.csv")[0]
    with pytest.raises(DataError, match="'label' is empty"):
        row.get("label", str)
    with pytest.raises(DataError, match="'label' is empty"):
        read_rows(tmp_path / "a.csv", {"kind": "Kind of it"})[0].get("label", str)
    (tmp_path / "a.csv").write_text("Text ,b\na,1\n")
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / "a.csv")[0].text("text")
    assert caught.value.hint == "its columns are Text, b; --set data.columns.text=Text takes another for it"


def test_a_number_that_is_none_is_an_empty_cell(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1.0, float("nan")]}), tmp_path / "a.parquet")
    assert [row.empty for row in read_rows(tmp_path / "a.parquet")] == [(), ("label",)]


def test_decimal_commas_are_told(tmp_path):
    with pytest.raises(DataError) as caught:
        read_rows_of(tmp_path, {"value": "1,50"}).number_of("value")
    assert caught.value.hint == "write 1.50, with a point"


def test_one_error_tells_how_many_rows_are_like_it(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "a,x\nb,\n" * 10)
    rows = read_rows(tmp_path / "a.csv")
    with pytest.raises(DataError) as caught:
        each(rows, lambda row: row.text("label"))
    assert caught.value.message == "row 2: 'label' is empty; 10 of 20 rows cannot be used (also 4, 6, 8, 10, 12, ...)"
    assert each(rows, lambda row: row.text("text"))[:2] == ["a", "b"]


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


@pytest.mark.parametrize("content", [None, ""])
@pytest.mark.parametrize("call", [CALL, {"id": "c1", "name": "weather", "arguments": {"city": "Oslo"}}], ids=["nested", "flat"])
def test_calls_of_tools_are_kept(tmp_path, content, call):
    turns = [{"role": "user", "content": [{"type": "text", "text": "warm?"}]}, {"role": "assistant", "content": content, "tool_calls": [call]}]
    row = read_rows_of(tmp_path, {"messages": [*turns, {"role": "tool", "content": "4", "tool_call_id": "c1"}], "tools": [{"function": {"name": "weather"}}]})
    user, assistant, tool = row.messages()
    assert user.content == "warm?" and tool.tool_call_id == "c1" and row.tools()[0].name == "weather"
    assert assistant.content == "" and assistant.tool_calls == (("c1", "weather", '{"city": "Oslo"}'),)


@pytest.mark.parametrize("turn", [
    {"role": "assistant", "content": None},
    {"role": "assistant", "content": "", "tool_calls": ["weather"]},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": 1}}]},
    {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]},
    ["user", "hello"],
])  # fmt: skip
def test_a_turn_that_cannot_be_kept_whole_is_refused(tmp_path, turn):
    with pytest.raises(DataError, match="row 1"):
        read_rows_of(tmp_path, {"messages": [turn]}).messages()


def test_a_tool_that_is_none_is_refused(tmp_path):
    for tools in ([{"function": {"parameters": {}}}], ["weather"], [{"name": "a", "parameters": [1]}]):
        with pytest.raises(DataError, match="is no tool"):
            read_rows_of(tmp_path, {"tools": tools}).tools()
