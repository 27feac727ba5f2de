"""Calls come out of text in any cut of it; what is no valid call stays the text it was."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError
from bedplate.core.generation import Tool
from bedplate.infer.tools import Calls, form

TOOLS = (Tool("weather", "of a city", {"properties": {"city": {"type": "string"}}}), Tool("time"))
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Łódź <tool_call> }"}}\n</tool_call>'


def heard(pieces, tools=TOOLS):
    reader = Calls(tools)
    found = [*(reader.push(piece) for piece in pieces), reader.end()]
    return "".join(one.text for one in found), [call for one in found for call in one.calls]


def cuts(text):
    """Every way to cut a text in two, and letter by letter."""
    return [[text[:at], text[at:]] for at in range(len(text) + 1)] + [list(text)]


@pytest.mark.parametrize(
    ("text", "left", "names"),
    [
        (CALL, "", ["weather"]),
        (f"Let me see.\n{CALL}\n{CALL}\n", "Let me see.", ["weather", "weather"]),
        ('{"name": "time", "arguments": {}}', "", ["time"]),
        ('  [{"name": "time"}, {"name": "weather", "parameters": {"city": "a"}}] \n', "", ["time", "weather"]),
        ('<tool_call>{"name": "time", "arguments": "{}"}', "", ["time"]),
        ('{"name": "time"} and so on', "and so on", ["time"]),
    ],
)
def test_calls_are_found_in_any_cut(text, left, names):
    for pieces in cuts(text):
        said, calls = heard(pieces)
        assert said == left and [call.name for call in calls] == names, pieces
        assert all(isinstance(json.loads(call.arguments), dict) for call in calls)
        assert len({call.id for call in calls}) == len(calls)


@pytest.mark.parametrize(
    "text",
    [
        "plain text, no call", "  \n", '{"a": 1}', '{"name": "unknown", "arguments": {}}', '{"name": "time", "arguments": [1]}', '{"name": 1}', "{", "[[[", "<tool_call",
        "<tool_call>not json</tool_call> behind", '<tool_call>{"name": "unknown"}</tool_call>', "a <tool_call> without an end", '{"name": "time", "arguments": "no"}',
        "a < b and \\ <", '["\\"]', "<tool_call></tool_call>",
    ],
)  # fmt: skip
def test_what_is_no_call_stays_text(text):
    for pieces in cuts(text):
        assert heard(pieces) == (text, []), pieces


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "<tool_", "{", "}", '"', "\\", "\n", " ", "a", "[", "]", '{"name": "time"}', "time"]), max_size=12))
def test_any_text_is_kept_whole_or_called_the_same_in_any_cut(parts):
    whole = heard(["".join(parts)])
    pieces = heard(parts)
    assert whole[0] == pieces[0] and [c[1:] for c in whole[1]] == [c[1:] for c in pieces[1]]
    if not whole[1]:
        assert whole[0] == "".join(parts)


def test_text_leaves_at_once():
    reader = Calls(TOOLS)
    assert reader.push("Hello").text == "Hello" and reader.push(" you <").text == " you" and reader.push("b").text == " <b"


def test_a_call_that_never_ends_is_let_go():
    said, calls = heard(["{" + '"a": [' * 30_000, "x" * 50_000])
    assert said.startswith('{"a"') and not calls


def test_forms_of_choices():
    assert form(TOOLS, "auto") is None and form((), "none") is None
    one = form(TOOLS, "weather").schema
    assert one["properties"]["name"] == {"const": "weather"} and one["properties"]["arguments"]["type"] == "object"
    assert [kind["properties"]["name"]["const"] for kind in form(TOOLS, "required").schema["anyOf"]] == ["weather", "time"]
    for tools, choice in (((), "required"), (TOOLS, "wether")):
        with pytest.raises(ConfigError):
            form(tools, choice)


def test_definitions_of_tools_move_to_the_root_and_do_not_meet():
    own = {"properties": {"a": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"type": "array", "items": {"$ref": "#/$defs/X"}}}}
    schema = form((Tool("one", "", own), Tool("two", "", {**own, "$defs": {"X": {"type": "integer"}}})), "required").schema
    assert schema["$defs"]["1.X"] == {"type": "integer"} and schema["$defs"]["0.X"]["items"] == {"$ref": "#/$defs/0.X"}
    assert schema["anyOf"][1]["properties"]["arguments"]["properties"]["a"] == {"$ref": "#/$defs/1.X"}
