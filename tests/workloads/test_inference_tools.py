"""Calls of tools in what a model says: whole or in pieces, and what only looks like one stays text."""

import json

import pytest

from llmsched.data.parameters import RequestError
from workloads.inference.tools import ToolReader, tools_of


def tool(name, **properties):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


TOOLS = tools_of({"tools": [tool("weather", city={"type": "string"}), tool("clock")]})
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def read(pieces, tools=TOOLS):
    reader = ToolReader(tools)
    shown = [reader.push(piece) for piece in pieces]
    rest, calls = reader.finish()
    return "".join(shown), rest, [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in calls]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_text_before_a_call_is_shown_at_once_and_the_call_never(size):
    text = "Let me look. <b>" + CALL
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert read(pieces) == ("Let me look. <b>", "", [("weather", {"city": "Köln"})])


def test_several_calls_are_several_unless_one_at_a_time_is_wanted():
    both = CALL + '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    assert [name for name, _ in read([both])[2]] == ["weather", "clock"]
    single = tools_of({"tools": [tool("weather"), tool("clock")], "parallel_tool_calls": False})
    assert [name for name, _ in read([both], single)[2]] == ["weather"]


def test_an_answer_that_is_one_object_is_a_call_too():
    assert read(['{"name": "clock", ', '"parameters": {"zone": 1}}']) == ("", "", [("clock", {"zone": 1})])


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "rocket", "arguments": {}}', '{"city": "x"}', "<tool_call>{broken}</tool_call>", "a < b and <tool",
        '<tool_call>{"name": "clock", "arguments": 3}</tool_call>', "{", "plain",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_call_stays_text(text):
    shown, rest, calls = read(list(text))
    assert (shown + rest, calls) == (text, [])


def test_each_call_has_an_id_of_its_own():
    reader = ToolReader(TOOLS)
    reader.push(CALL + CALL)
    first, second = reader.finish()[1]
    assert first["id"] != second["id"] and first["type"] == "function"


def test_a_demanded_call_is_a_schema_with_definitions_where_references_find_them():
    city = {"$ref": "#/$defs/City"}
    asked = tool("weather", city=city)
    asked["function"]["parameters"]["$defs"] = {"City": {"enum": ["Köln", "Rom"]}}
    one = json.loads(tools_of({"tools": [asked], "tool_choice": "required"}).schema)
    assert one["$defs"] == {"City": {"enum": ["Köln", "Rom"]}}
    assert one["properties"]["name"] == {"const": "weather"}
    named = {"type": "function", "function": {"name": "clock"}}
    two = json.loads(tools_of({"tools": [asked, tool("clock")], "tool_choice": named}).schema)
    assert two["properties"]["name"] == {"const": "clock"}
    other = tool("other")
    other["function"]["parameters"]["$defs"] = {"City": {"type": "string"}}
    with pytest.raises(RequestError, match=r'"City" differently'):
        tools_of({"tools": [asked, other], "tool_choice": "required"})
